"""`diptych eval`: scores in a table, files in --out, two runs compared; one line for what cannot be done."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner

from diptych import cli
from diptych.evaluate import evaluated_morph
from diptych.evaluate.metrics.reference_statistics import read_reference
from diptych.evaluate.suites import known_suites
from tiny_judges import write_inception
from tiny_pixel_decoder import build_decoder, decoder_recipe, write_parts
from toy_suite import STAMP, ColourSuite, FakeMorph, always_commonest, look


def call(*arguments: object) -> Any:
    return CliRunner().invoke(cli.app, ["eval", *map(str, arguments)])


def errors_of(*arguments: object) -> str:
    result = call(*arguments)
    assert result.exit_code == 2, result.stdout
    (line,) = result.stderr.strip().splitlines()
    assert line.startswith("error: ")
    return line


@pytest.fixture
def colours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A suite `colours`, and in place of a morph one that answers as it is named."""
    rules = {"right": look, "commonest": always_commonest}
    monkeypatch.setattr(
        known_suites, "SUITES", {"colours": lambda data: ColourSuite(data or tmp_path / "data"), "others": ColourSuite}
    )
    monkeypatch.setattr(
        evaluated_morph, "load_evaluated", lambda name, **_: (FakeMorph(rules[name]), STAMP | {"morph": name})
    )


@pytest.mark.usefixtures("colours")
def test_a_run_tells_its_scores_and_where_they_lie(tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = call("right", "--suite", "colours", "--limit", 20, "--out", out)
    assert result.exit_code == 0, result.stderr
    table, *files = result.stdout.strip().rsplit("\n", 3)
    assert files == [str(out / name) for name in ("results.jsonl", "scores.json", "report.html")]
    assert "100.0%   80.6% to 100.0%" in table
    assert all(Path(file).is_file() for file in files)
    assert len((out / "results.jsonl").read_text().splitlines()) == 20
    assert json.loads((out / "scores.json").read_text())["stamp"]["batch_size"] == 50


@pytest.mark.usefixtures("colours")
def test_two_runs_are_compared(tmp_path: Path) -> None:
    for name in ("commonest", "right"):
        assert call(name, "--suite", "colours", "--out", tmp_path / name).exit_code == 0
    result = call("--compare", tmp_path / "commonest", tmp_path / "right")
    assert result.exit_code == 0, result.stderr
    assert "+0.5 " in result.stdout
    assert "clear" in result.stdout
    assert "morph: commonest, not right" in result.stdout


@pytest.mark.usefixtures("colours")
def test_data_is_given_by_suite(tmp_path: Path) -> None:
    for given in (str(tmp_path), f"colours={tmp_path}"):
        assert call("right", "--suite", "colours", "--data", given, "--out", tmp_path / "out").exit_code == 0
    assert (tmp_path / "0.png").is_file()


@pytest.mark.usefixtures("colours")
@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "give a MORPH to evaluate"),
        (["right"], "no suite is named"),
        (["right", "--suite", "colour"], "did you mean colours"),
        (["right", "--suite", "colours", "--data", "nowhere"], "--data nowhere is no folder"),
        (["right", "--suite", "colours,others", "--data", "."], "write NAME=."),
        (["right", "--suite", "colours", "--data", "others=."], "given for others"),
        (["right", "--suite", "colours", "--data", ".", "--data", "."], "given twice"),
        (["right", "--compare", "a", "b"], "leave out MORPH"),
        (["--compare", "a", "b"], "holds no stamp.json"),
    ],
)
def test_wrong_use_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert says in errors_of(*arguments)


def test_unknown_suites_and_morphs_are_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    assert "there are: emoji-vqa" in errors_of("emoji-dual", "--suite", "imagenet", "--out", tmp_path)
    assert "there is no morph at nothing" in errors_of("nothing", "--suite", "language", "--out", tmp_path)


@pytest.mark.assets("efficientnet-lite0")
def test_a_pixel_decoder_alone_reconstructs_and_is_refused_all_else(tmp_path: Path) -> None:
    pytest.importorskip("torchmetrics")
    parts = write_parts(tmp_path / "parts")
    build_decoder(decoder_recipe(parts)).save_pretrained(tmp_path / "decoder")
    told = errors_of(tmp_path / "decoder", "--suite", "language", "--out", tmp_path / "out")
    assert "suite language needs a morph that writes" in told
    out = tmp_path / "out"
    arguments = [tmp_path / "decoder", "--suite", "reconstruction", "--data", parts / "data", "--out", out]
    result = call(*arguments, "--num-inference-steps", 2)
    assert result.exit_code == 0, result.stderr
    scores = json.loads((out / "scores.json").read_text())
    assert scores["suites"]["reconstruction"]["n"] == 4
    assert scores["stamp"]["num_inference_steps"] == 2
    assert scores["stamp"]["base_hash"] is None
    assert len(list((out / "images" / "reconstruction").glob("*.png"))) == 4
    assert "num_inference_steps: 2, not 3" in errors_of(*arguments, "--num-inference-steps", 3)


def test_the_prompts_of_others_are_drawn_into_their_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = [Image.new("RGB", (8, 8), colour) for colour in ("red", "green", "blue", "white")]

    class Drawer(FakeMorph):
        def generate_batch(self, conversations: Any, **options: Any) -> list[list[Any]]:
            return [drawn for _ in conversations]

    monkeypatch.setattr(evaluated_morph, "load_evaluated", lambda name, **_: (Drawer(look), STAMP))
    prompts, out = tmp_path / "prompts", tmp_path / "out"
    prompts.mkdir()
    (prompts / "7.txt").write_text("A hill.")
    result = call("any", "--suite", "dpg", "--data", prompts, "--out", out)
    assert result.exit_code == 0, result.stderr
    assert str(out / "dpg") in result.stdout.splitlines()
    assert (out / "dpg" / "7.png").is_file()
    assert "judge coco-30k" in errors_of("any", "--suite", "language", "--clip", "some/clip", "--out", tmp_path / "b")


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_a_reference_is_made_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    for number in range(3):
        Image.new("RGB", (12, 8), (number, 0, 0)).save(tmp_path / "real" / f"{number}.png")
    weights = write_inception(tmp_path / "inception.pt")
    out = tmp_path / "coco" / "reference.safetensors"
    arguments = ["eval-reference", str(tmp_path / "real"), "--inception", str(weights)]
    result = CliRunner().invoke(cli.app, [*arguments, "--out", str(out)])
    assert result.exit_code == 0, result.stderr
    assert result.stdout == f"{out}: 3 images as inception sees them\n"
    reference = read_reference(out)
    assert reference.features is not None
    assert reference.features.shape == (3, 2048)
    for wrong, says in (
        ([*arguments, "--out", "a.npz"], "must end in .safetensors"),
        (["eval-reference", str(tmp_path / "none")], "is no folder"),
    ):
        result = CliRunner().invoke(cli.app, wrong)
        assert result.exit_code == 2
        assert says in result.stderr

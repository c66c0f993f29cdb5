"""Laws of GenEval and DPG-Bench: drawings lie where their keepers' scorers look, and are scored here by CLIP alone."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import transformers
from PIL import Image

from diptych.evaluate.harness import evaluate_suites
from diptych.evaluate.suites.prompt_benchmarks import NUM_IMAGES, dpg, geneval
from diptych.evaluate.suites.prompt_judges import Judges
from tiny_judges import write_clip
from toy_suite import STAMP, FakeMorph

LINES = [
    {"tag": tag, "include": [{"class": what, "count": 1}], "prompt": f"a photo of a {what}"}
    for tag, what in (("single_object", "bench"), ("single_object", "cow"), ("colors", "red car"))
]
SIZE = 16


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    transformers.utils.logging.disable_progress_bar()


def tone(prompt: str, number: int) -> tuple[int, int, int]:
    return (len(prompt) % 256, 60 * number, sum(map(ord, prompt)) % 256)


class Drawer(FakeMorph):
    """Draws plain tones: image k of a prompt in a tone of its own."""

    def __init__(self) -> None:
        super().__init__(lambda prompt, images: prompt)

    def generate_batch(self, conversations: Any, **options: Any) -> list[list[Any]]:
        prompts = [prompt for (prompt,) in super().generate_batch(conversations, **options)]
        return [
            [Image.new("RGB", (SIZE, SIZE), tone(prompt, k)) for k in range(options["num_images"])]
            for prompt in prompts
        ]


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    folder = tmp_path / "prompts"
    folder.mkdir()
    (folder / "evaluation_metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in LINES))
    (folder / "7.txt").write_text("A green hill under a blue sky.\n")
    (folder / "COCOval2014000000000042.txt").write_text("Two dogs, three cats, and a very long text after them.\n")
    return folder


def test_genevals_scorer_finds_the_drawings(prompts: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (result,) = evaluate_suites(Drawer(), [geneval(prompts)], out, stamp=STAMP)
    assert result.scores == {}
    for number, line in enumerate(LINES):
        folder = out / "geneval" / f"{number:05}"
        assert folder.name.isdigit()
        assert json.loads((folder / "metadata.jsonl").read_text()) == line
        samples = sorted((folder / "samples").iterdir())
        assert [re.fullmatch(r"\d+\.png", path.name) is not None for path in samples] == [True] * NUM_IMAGES
        for k, path in enumerate(samples):
            with Image.open(path) as image:
                assert image.getpixel((0, 0)) == tone(line["prompt"], k)
    assert (out / "report.html").is_file()


def test_dpgs_scorer_finds_the_drawings_in_a_grid_of_four(prompts: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    evaluate_suites(Drawer(), [dpg(prompts)], out, stamp=STAMP)
    assert sorted(path.name for path in (out / "dpg").iterdir()) == ["7.png", "COCOval2014000000000042.png"]
    corners = [(0, 0), (SIZE, 0), (0, SIZE), (SIZE, SIZE)]  # in the order in which that scorer cuts them out
    with Image.open(out / "dpg" / "7.png") as grid:
        assert grid.size == (2 * SIZE, 2 * SIZE)
        for k, (x, y) in enumerate(corners):
            part = grid.crop((x, y, x + SIZE, y + SIZE))
            assert part.getcolors() == [(SIZE * SIZE, tone("A green hill under a blue sky.", k))]


def test_a_clip_that_is_given_scores_them_and_stands_in_the_stamp(prompts: Path, tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip")
    out = tmp_path / "out"
    suites = [make(prompts, Judges(clip=str(clip))) for make in (geneval, dpg)]
    of_geneval, of_dpg = evaluate_suites(Drawer(), suites, out, stamp=STAMP)
    assert set(of_geneval.by_kind) == {"colors", "single_object"}
    assert (of_geneval.scores["clip_score"].num, of_dpg.scores["clip_score"].num) == (3, 2)
    assert -100 < of_geneval.scores["clip_score"].mean < 100
    assert len({row.scores["clip_score"] for row in of_geneval.rows}) == 3
    stamp = json.loads((out / "stamp.json").read_text())
    assert re.fullmatch("[0-9a-f]{64}", stamp["suites"]["geneval"]["judges"]["clip"])
    with pytest.raises(ValueError, match=r"suites\.geneval\.judges\.clip"):
        evaluate_suites(Drawer(), [geneval(prompts)], out, stamp=STAMP)


def test_without_its_prompts_each_says_how_to_get_them(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"clone github\.com/djghosh13/geneval and give --data geneval="):
        evaluate_suites(Drawer(), [geneval(None)], tmp_path, stamp=STAMP)
    with pytest.raises(ValueError, match=r"clone github\.com/TencentQQGYLab/ELLA and give --data dpg="):
        evaluate_suites(Drawer(), [dpg(None)], tmp_path, stamp=STAMP)
    with pytest.raises(ValueError, match="CLIP 'no/such/clip': there is no such folder"):
        evaluate_suites(Drawer(), [dpg(tmp_path, Judges(clip="no/such/clip"))], tmp_path, stamp=STAMP)

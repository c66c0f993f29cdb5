"""What a user sees of `diptych data validate` and `diptych data show --tokens`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from diptych.commands.datasets import app

pytestmark = pytest.mark.assets("smollm2-135m-instruct")


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    Image.new("RGB", (8, 8), "red").save(tmp_path / "red.png")
    record = {
        "messages": [{"role": "user", "content": "Draw red."}, {"role": "assistant", "content": "<image>"}],
        "images": ["red.png"],
    }
    (tmp_path / "train.jsonl").write_text(json.dumps(record) + "\n")
    path = tmp_path / "recipe.yaml"
    path.write_text(
        f"method: vpit\nvpit: {{num_image_tokens: 16}}\ntemplate: plain\n"
        f"data:\n  sources:\n    - path: {tmp_path}/train.jsonl\n"
    )
    return path


def test_good_data_passes_and_is_counted(recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "found" / "report.json"
    done = CliRunner().invoke(app, ["validate", str(recipe), "--out", str(out)])
    assert done.exit_code == 0, done.output
    (report,) = json.loads(out.read_text())
    assert (report["num_samples"], report["target_images"], report["problems"]) == (1, 1, {})
    assert report["supervised_tokens"] == 16 + 2 + 1  # with both boundary tokens and the end of the turn


def test_bad_data_fails_and_says_why(recipe: Path, tmp_path: Path) -> None:
    samples = (tmp_path / "train.jsonl").read_text()
    (tmp_path / "held_out_draw.jsonl").write_text(samples)
    (tmp_path / "train.jsonl").write_text(samples + "{\n")
    done = CliRunner().invoke(app, ["validate", str(recipe)])
    assert isinstance(done.exception, ValueError)
    assert "2 of 2 samples have a problem" in str(done.exception)
    assert "held out: 1 samples" in done.output
    assert "JSON: 1 samples" in done.output
    assert "line 2" in done.output or "record 2" in done.output


def test_tokens_with_loss_are_marked(recipe: Path) -> None:
    done = CliRunner().invoke(app, ["show", str(recipe), "--tokens", "--num", "1"])
    assert done.exit_code == 0, done.output
    lines = [line.strip() for line in done.output.splitlines()]
    assert "| 'Draw red.\\n'" in lines
    assert any(line.startswith("loss | [target image, 16 tokens: ") and "red.png" in line for line in lines)
    assert any(line.startswith("loss | ") and "<image_start>" in line for line in lines)


def test_what_no_pack_can_hold_is_no_good_sample(recipe: Path) -> None:
    recipe.write_text(recipe.read_text() + "train: {packing_length: 16}\n")
    done = CliRunner().invoke(app, ["validate", str(recipe)])
    assert isinstance(done.exception, ValueError)
    assert "too long: 1 samples" in done.output
    assert "packs of 16" in " ".join(done.output.split())


def test_a_bad_sample_is_named_and_the_next_ones_shown(recipe: Path, tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    good = path.read_text()
    unlearnt = json.dumps({"messages": [{"role": "user", "content": "What?"}], "images": []}) + "\n"
    path.write_text(good + "{\n" + unlearnt + good)
    done = CliRunner().invoke(app, ["show", str(recipe), "--tokens", "--num", "4"])
    assert done.exit_code == 0, done.output
    lines = done.output.splitlines()
    assert sum("tokens" in line and line.startswith(str(path)) for line in lines) == 2
    assert sum("training skips it" in line and line.startswith(str(path)) for line in lines) == 2

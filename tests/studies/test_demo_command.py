"""The demo as a user runs it: the command itself, the embedded models and images, a quarter of a minute of training."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image


def diptych(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "diptych", *arguments], capture_output=True, text=True, check=False, timeout=550
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.assets
@pytest.mark.timeout(600)
def test_the_demo_runs_and_its_morph_draws_and_answers(tmp_path: Path) -> None:
    out = tmp_path / "demo"
    told = diptych(
        *("demo", "--out", str(out), "--num-concepts", "5", "--minutes", "0.25"),
        *("sample.num_inference_steps=4", "train.sample_every=null", "train.logging_steps=2"),
    )
    assert f"report: {out / 'report.html'}" in told
    assert "Text-only logits: difference to the base LLM" in told
    scores = json.loads((out / "scores.json").read_text(encoding="utf-8"))
    assert scores["num_concepts"] == 5
    assert scores["language_max_abs_diff"] == 0
    assert scores["language_same_weights"] is True
    assert scores["details"]["retrieval_top1"]["n"] == 9
    assert scores["details"]["naming_held_out"]["n"] == 1
    assert (out / "report.html").stat().st_size > 20_000
    morph, drawn = str(out / "morph"), tmp_path / "drawn"
    diptych("generate", morph, "Draw red apple in 3D style.", "--num-inference-steps", "2", "--out", str(drawn))
    with Image.open(drawn / "image-0.png") as image:
        assert image.size == (64, 64)
    answer = diptych("generate", morph, "What is this?", "--image", str(drawn / "image-0.png"), "--out", str(drawn))
    assert answer.strip() == (drawn / "text.txt").read_text(encoding="utf-8").strip()

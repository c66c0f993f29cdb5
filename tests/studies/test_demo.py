"""Laws of the demo, end to end at tiny scale: everything promised is there, and what was stopped goes on."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from diptych.backbones.tiny_language import build_tiny_language_model
from diptych.config import load_recipe
from diptych.evaluate.emoji_gallery import read_combinations
from diptych.models.checkpoint import load_morph
from diptych.studies import demo
from diptych.studies.demo import demo_recipe, find_recipe, run_demo
from diptych.studies.run_report import report_runs
from diptych.train.log import read_log
from emoji_packages import FOLDERS, NAMES, entry, write_packages

NUM_CONCEPTS = 6
PROMISED = {
    "retrieval_top1",
    "retrieval_top5",
    "naming_exact",
    "naming_held_out",
    "retrieval_held_out_top1",
    "language_max_abs_diff",
    "train_seconds",
    "num_concepts",
}
# What a user's shell would start, but for the packages and the encoder, which are not in a tiny world's asset cache.
STARTED = """
import sys
sys.path.insert(0, {tests!r})
from studies.test_demo import Corners, folders
from diptych.studies.demo import run_demo
sys.exit(run_demo({out!r}, num_concepts={num}, overrides={overrides!r}, asset_folders=folders({world!r}),
                  encoder=Corners()))
"""


class Corners:
    """An encoder that sees 4 x 4 mean colours."""

    def pooled(self, images: Tensor) -> Tensor:
        return torch.nn.functional.adaptive_avg_pool2d(images, 4).flatten(1)


def folders(world: str) -> dict[str, Path]:
    names = ("openmoji", "fluent-emoji-3d", "emojibase-data")
    return {name: Path(world) / folder for name, folder in zip(names, FOLDERS, strict=True)}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny language model and tiny emoji packages."""
    root = tmp_path_factory.mktemp("world")
    write_packages(root, [entry(name, i, group=3 + i % 5, subgroup=i % 7) for i, name in enumerate(NAMES)])
    build_tiny_language_model().save_pretrained(root / "llm")
    return root


def settings(world: Path, *more: str) -> list[str]:
    tower = {"hidden_size": 16, "num_attention_heads": 2, "patch_size": 2, "time_conditioning": "adaln"}
    return [
        f"language_model={json.dumps(str(world / 'llm'))}",
        f"cache_dir={json.dumps(str(world / 'cache'))}",
        f"vision_tower={json.dumps(tower)}",
        "train.per_device_train_batch_size=4",
        "train.logging_steps=1",
        "train.save_every=2",
        "train.sample_every=2",
        "sample.num_inference_steps=2",
        'sample.prompts=["Draw bam in 3D style.", "Draw bam in flat style."]',
        *more,
    ]


def run(out: Path, world: Path, *more: str) -> int:
    return run_demo(
        out,
        num_concepts=NUM_CONCEPTS,
        overrides=settings(world, *more),
        asset_folders=folders(str(world)),
        encoder=Corners(),
    )


@pytest.fixture(scope="module")
def finished(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "demo"
    assert run(out, world, "train.max_steps=4") == 0
    return out


def read_scores(out: Path) -> dict[str, Any]:
    return json.loads((out / "scores.json").read_text(encoding="utf-8"))


def test_everything_promised_is_there(finished: Path, world: Path) -> None:
    scores = read_scores(finished)
    assert scores.keys() >= PROMISED
    assert scores["num_concepts"] == NUM_CONCEPTS
    assert scores["language_max_abs_diff"] == 0
    assert scores["language_same_weights"] is True
    assert scores["train_seconds"] > 0
    assert scores["chance"]["retrieval_top1"] == scores["chance"]["naming_exact"] == 1 / NUM_CONCEPTS
    assert scores["details"]["retrieval_top1"]["n"] == 2 * NUM_CONCEPTS - 1
    assert scores["details"]["naming_held_out"]["n"] == 1
    assert set(scores["costs"]["flops_per_token"]) == {"text token", "image token"}
    assert scores["costs"]["assumed"] is None
    assert (finished / "samples" / "step-000004.png").is_file()
    assert [row["step"] for row in read_log(finished / "log.jsonl")] == [1, 2, 3, 4]
    morph = load_morph(finished / "morph")
    assert morph.recipe.language_model == str(world / "llm")


def test_the_report_opens_offline_and_shows_every_combination(finished: Path) -> None:
    html = (finished / "report.html").read_text(encoding="utf-8")
    for combination in read_combinations(finished / "data"):
        assert combination.prompt in html
    assert "src=" in html
    assert html.count("<img ") == html.count('src="data:image/png;base64,')
    assert "<script" not in html
    assert "href=" not in html
    assert "CC BY-SA 4.0" in html, "the terms of the images go where the images go"


def test_the_page_about_runs_has_the_demos_scores_and_costs(finished: Path) -> None:
    page = report_runs([finished])
    for told in ("Run demo", "complete", "Drawing: right concept first", "FLOPs of each image token", "commit"):
        assert told in page, told
    assert page.count("<img ") == 2, "the grids of both steps"


def test_what_is_done_is_not_done_again(finished: Path, world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> Any:
        raise AssertionError("trained again")

    monkeypatch.setattr(demo, "train_with_record", refuse)
    before = (finished / "scores.json").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(demo, "evaluate_demo", refuse)
        assert run(finished, world, "train.max_steps=4") == 0
    assert (finished / "scores.json").read_bytes() == before
    (finished / "scores.json").unlink()
    assert run(finished, world, "train.max_steps=4") == 0
    after = read_scores(finished)
    for name in PROMISED:
        assert after[name] == json.loads(before)[name], name


def test_longer_training_goes_on_from_what_there_is(finished: Path, world: Path, tmp_path: Path) -> None:
    out = tmp_path / "demo"
    shutil.copytree(finished, out)
    assert run(out, world, "train.max_steps=6") == 0
    assert read_scores(out)["steps"] == 6
    assert [row["step"] for row in read_log(out / "log.jsonl")] == [1, 2, 3, 4, 5, 6]


def test_ctrl_c_keeps_what_was_learnt_and_the_same_command_goes_on(world: Path, tmp_path: Path) -> None:
    out, errors = tmp_path / "demo", tmp_path / "stderr"
    started = STARTED.format(
        tests=str(Path(__file__).parent.parent),
        out=str(out),
        num=NUM_CONCEPTS,
        overrides=settings(world, "train.max_steps=100000"),
        world=str(world),
    )
    with errors.open("w") as stderr:
        process = subprocess.Popen([sys.executable, "-c", started], stderr=stderr, env=os.environ)
    try:
        deadline = time.monotonic() + 120
        while not any((out / "checkpoints").glob("step-*")) and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130, errors.read_text()
    finally:
        process.kill()
    assert "the same command goes on from here" in errors.read_text()
    assert not (out / "scores.json").exists()
    learnt = read_log(out / "log.jsonl")[-1]
    assert run(out, world, f"train.max_steps={learnt['step'] + 2}") == 0
    rows = read_log(out / "log.jsonl")
    assert [row["step"] for row in rows] == list(range(1, learnt["step"] + 3))
    assert read_scores(out)["train_seconds"] >= learnt["train_seconds"], "resumed time counts on"


def test_ctrl_c_during_evaluation_is_130_too(finished: Path, world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    (finished / "report.html").unlink()
    monkeypatch.setattr(demo, "evaluate_demo", interrupt)
    assert run(finished, world, "train.max_steps=4") == 130


def test_guidance_that_will_not_be_learnt_is_refused_before_training() -> None:
    with pytest.raises(ValueError, match=r"sample.guidance_scale 3 needs .*text_cond_dropout_prob above 0"):
        demo_recipe(overrides=["objective.text_cond_dropout_prob=0", "sample.guidance_scale=3"])


def test_the_recipe_follows_the_folder(tmp_path: Path) -> None:
    recipe = demo_recipe(tmp_path / "elsewhere", minutes=3)
    assert recipe.output_dir == str(tmp_path / "elsewhere")
    data = tmp_path / "elsewhere" / "data"
    assert [source.path for source in recipe.data.sources] == [
        str(data / "train_draw.jsonl"),
        str(data / "train_read.jsonl"),
    ]
    assert recipe.train.max_train_minutes == 3
    plain = load_recipe(find_recipe("demo.yaml"))
    assert [source.weight for source in recipe.data.sources] == [source.weight for source in plain.data.sources]


def test_damaged_data_is_refused_by_name(finished: Path, tmp_path: Path) -> None:
    """A style that lacks a concept would have an easier gallery than the other."""
    folder = tmp_path / "data"
    shutil.copytree(finished / "data", folder)
    samples = folder / "train_draw.jsonl"
    samples.write_text("".join(samples.read_text(encoding="utf-8").splitlines(keepends=True)[1:]), encoding="utf-8")
    with pytest.raises(ValueError, match="every concept in every style"):
        read_combinations(folder)

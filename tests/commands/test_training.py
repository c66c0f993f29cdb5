"""Laws of `diptych train` over stages: what a later one lacks is told first, one model is held, a resume is exact."""

from __future__ import annotations

import os
import signal
import weakref
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file
from typer.testing import CliRunner

from diptych import cli
from diptych.models import registry
from diptych.models.vpit_training import VPiTTraining
from tiny_vpit import NUM_TOKENS, write_emblems, write_encoder
from tiny_xfusion import build_language


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """data/ (four emblems), llm/ and encoder/."""
    folder = write_emblems(tmp_path_factory.mktemp("parts") / "data").parent
    build_language().save_pretrained(folder / "llm")
    write_encoder(folder / "encoder")
    return folder


def write_recipe(parts: Path, output: Path, **second: Any) -> str:
    """Two stages: the connector for three steps, then everything for four. `second`: more changes of the second."""
    recipe = {
        "method": "vpit",
        "output_dir": str(output),
        "dtype": "float32",
        "template": "chatml",
        "language_model": str(parts / "llm"),
        "cache_dir": str(parts / "cache"),
        "vpit": {"image_encoder": str(parts / "encoder"), "num_image_tokens": NUM_TOKENS},
        "data": {"sources": [{"path": str(parts / "data" / "read.jsonl")}]},
        "train": {"learning_rate": 3e-3, "per_device_train_batch_size": 2, "max_steps": 4, "logging_steps": 1},
        "stages": [
            {"name": "connect", "changes": {"vpit": {"train_parts": ["connector"]}, "train": {"max_steps": 3}}},
            {
                "name": "whole",
                "changes": {"data": {"sources": [{"path": str(parts / "data" / "draw.jsonl")}]}} | second,
            },
        ],
    }
    path = output.parent / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return str(path)


def train(*arguments: str) -> Any:
    return CliRunner().invoke(cli.app, ["train", *arguments])


def test_two_stages_run_from_end_to_end_and_one_model_is_held_at_a_time(
    parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built: list[weakref.ref[Any]] = []
    build_method = registry.build_method

    def build(recipe: Any) -> Any:
        assert [ref() for ref in built] == [None] * len(built), "the stage before still holds its model"
        method: Any = build_method(recipe)
        built.append(weakref.ref(method.model))
        return method

    monkeypatch.setattr(registry, "build_method", build)
    result = train(write_recipe(parts, tmp_path / "run"))
    assert result.exit_code == 0, result.output
    assert len(built) == 2
    first, second = (load_file(tmp_path / "run" / morph / "model.safetensors") for morph in ("connect/morph", "morph"))
    assert any(name.startswith("language_model.") for name in second)
    assert not [name for name in first if name.startswith("language_model.")]
    assert not first["connector.layers.0.weight"].equal(second["connector.layers.0.weight"])
    assert not train(str(tmp_path / "recipe.yaml"), "train.resume_from_checkpoint=latest").exit_code


@pytest.mark.parametrize("stage", ["run/connect", "run"])
def test_stopped_in_a_stage_it_goes_on_there_and_ends_as_the_uninterrupted_run(
    parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    assert train(write_recipe(parts, tmp_path / "whole")).exit_code == 0
    seen: list[int] = []
    forward = VPiTTraining.forward

    def stopping(self: VPiTTraining, batch: Any) -> Any:
        if self.recipe.output_dir == str(tmp_path / stage):
            seen.append(1)
            if len(seen) == 2:
                os.kill(os.getpid(), signal.SIGINT)
        return forward(self, batch)

    monkeypatch.setattr(VPiTTraining, "forward", stopping)
    recipe = write_recipe(parts, tmp_path / "run")
    assert train(recipe).exit_code == 130
    assert (tmp_path / "run" / "checkpoints").exists() == (stage == "run"), "no stage begins behind one that stopped"
    assert (tmp_path / stage / "checkpoints" / "step-000002").is_dir()
    assert train(recipe, "train.resume_from_checkpoint=latest").exit_code == 0
    monkeypatch.undo()
    for morph in ("connect/morph", "morph"):
        whole, resumed = (tmp_path / name / morph / "model.safetensors" for name in ("whole", "run"))
        assert whole.read_bytes() == resumed.read_bytes(), morph


@pytest.mark.parametrize(
    ("second", "says"),
    [
        ({"data": {"sources": [{"path": "PARTS/none.jsonl"}]}}, "none.jsonl does not exist"),
        ({"data": {"sources": [{"path": "PARTS/data/draw.jsonl", "image_root": "PARTS/llm"}]}}, "0.png"),
        ({"vpit": {"init_from": "PARTS/earlier"}}, "there is no morph at"),
        ({"vpit": {"init_from": "PARTS/llm"}}, "llm/config.json is not the config of a morph"),
        ({"vpit": {"pixel_decoder": "PARTS/pixels"}}, "there is no morph at"),
        ({"vpit": {"image_encoder": "PARTS/another"}}, "config of image encoder"),
        ({"vpit": {"image_encoder": "PARTS/data"}}, "has no config.json"),
        ({"language_model": "PARTS/another"}, "config of language model"),
        ({"output_dir": "PARTS/used"}, "already holds step-000009"),
    ],
    ids=lambda value: str(value) if isinstance(value, str) else "",
)
def test_what_a_later_stage_lacks_is_told_before_the_first_is_trained(
    parts: Path, tmp_path: Path, second: dict[str, Any], says: str
) -> None:
    (parts / "used" / "checkpoints" / "step-000009").mkdir(parents=True, exist_ok=True)
    changes = yaml.safe_load(yaml.safe_dump(second).replace("PARTS", str(parts)))
    result = train(write_recipe(parts, tmp_path / "run", **changes))
    assert result.exit_code == 2
    assert says in result.stderr
    assert f"stage that writes into {changes.get('output_dir', tmp_path / 'run')}: " in result.stderr
    assert not (tmp_path / "run").exists()


def test_a_run_that_would_be_overwritten_is_told_before_anything_is_loaded(
    parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = Path(write_recipe(parts, tmp_path / "run"))
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), "stages": []}), encoding="utf-8")
    (tmp_path / "run" / "checkpoints" / "step-000009").mkdir(parents=True)
    monkeypatch.setattr(registry, "build_method", lambda _: pytest.fail("a model was built"))
    result = train(str(path))
    assert result.exit_code == 2
    assert "already holds step-000009; continue with train.resume_from_checkpoint=latest" in result.stderr


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ({"path": "not-there.jsonl"}, "not-there.jsonl"),
        ({"task": "draw"}, "task"),
        ({"image_root": "nowhere"}, "nowhere"),
    ],
    ids=str,
)
def test_sources_that_cannot_be_used_are_told_before_a_model_is_loaded(
    parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: dict[str, Any], said: str
) -> None:
    monkeypatch.setattr(registry, "build_method", lambda recipe: pytest.fail("the model was built"))
    recipe = yaml.safe_load(Path(write_recipe(parts, tmp_path / "run")).read_text(encoding="utf-8"))
    del recipe["stages"]
    recipe["data"]["sources"][0] |= source
    (tmp_path / "one.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    refused = train(str(tmp_path / "one.yaml"))
    assert refused.exit_code == 2, refused.output
    assert said in refused.stderr


def test_what_an_earlier_stage_writes_is_not_looked_for(parts: Path, tmp_path: Path) -> None:
    start = tmp_path / "run" / "connect" / "morph"
    result = train(write_recipe(parts, tmp_path / "run", vpit={"init_from": str(start)}))
    assert result.exit_code == 0, result.output
    assert (tmp_path / "run" / "morph" / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("vision_tower.layers=[18,19,20,21,22,24,26,40]", "names layer 40"),
        ("vision_tower.fresh_attention=[23]", "fresh_attention names layer 23"),
        ("vision_tower.hidden_size=320", "has vision_tower.hidden_size 256, not 320 as here"),
        ("vision_tower.patch_size=4", "has vision_tower.patch_size 2, not 4 as here"),
    ],
)
def test_inspect_compares_the_morph_to_start_from(override: str, said: str) -> None:
    recipe = Path(__file__).parents[2] / "recipes" / "emoji-tasks.yaml"
    result = CliRunner().invoke(cli.app, ["inspect", str(recipe), "--gflops", "100", override])
    assert result.exit_code == 2
    assert said in result.stderr
    assert not result.stdout


def test_inspect_of_what_cannot_be_a_start_is_refused(tmp_path: Path) -> None:
    recipe = str(Path(__file__).parents[2] / "recipes" / "emoji-tasks.yaml")
    llm = tmp_path / "llm"
    llm.mkdir()
    (llm / "config.json").write_text('{"model_type": "gpt2"}')
    starts = [(f"vision_tower.init_from={tmp_path}", "is not a morph"), (f"language_model={llm}", "gpt2")]
    for override, said in starts:
        result = CliRunner().invoke(cli.app, ["inspect", recipe, "--gflops", "100", override])
        assert result.exit_code == 2, result.exception
        assert said in result.stderr.lower()


def test_inspect_says_that_a_morph_to_start_from_is_not_there(tmp_path: Path) -> None:
    recipe = Path(__file__).parents[2] / "recipes" / "emoji-tasks.yaml"
    elsewhere = f"vision_tower.init_from={tmp_path / 'none'}"
    result = CliRunner().invoke(cli.app, ["inspect", str(recipe), "--gflops", "100", elsewhere])
    assert result.exit_code == 0, result.exception
    assert "there is no morph at" in result.stderr

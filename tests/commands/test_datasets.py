"""Law: whatever a recipe may say, every command that takes one understands it: here, widths that are to be matched."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file
from typer.testing import CliRunner

from diptych import cli
from tiny_xfusion import build_language
from train.tiny_xfusion_runs import write_samples


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A gated tower that costs what the symmetric dual one does, over plain pixels."""
    folder = tmp_path_factory.mktemp("matched")
    write_samples(folder / "data")
    build_language().save_pretrained(folder / "llm")
    settings = {
        "output_dir": str(folder / "run"),
        "cache_dir": str(folder / "cache"),
        "language_model": str(folder / "llm"),
        "autoencoder": "pixels",
        "image_size": 16,
        "template": "chatml",
        "vision_tower": {"layer_design": "gated", "match": "compute", "patch_size": 8},
        "data": {"sources": [{"path": str(folder / "data" / "draw.jsonl")}]},
        "train": {"max_steps": 1, "per_device_train_batch_size": 2},
    }
    path = folder / "matched.yaml"
    path.write_text(yaml.safe_dump(settings), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["inspect", "--gflops", "1"], "matched to the compute of a dual tower: hidden_size"),
        (["data", "validate"], "no held-out files given"),
        (["data", "show", "--tokens"], "target image, 6 tokens"),
        (["data", "encode"], "8 samples are encoded, 0 skipped"),
    ],
    ids=str,
)
def test_matched_widths_are_understood(recipe: str, arguments: list[str], said: str) -> None:
    done = CliRunner().invoke(cli.app, [*arguments, recipe])
    assert done.exit_code == 0, done.exception
    assert said in done.output


def test_what_is_trained_tells_the_widths(recipe: str) -> None:
    """And not that some were to be found, which other data would find others for."""
    done = CliRunner().invoke(cli.app, ["train", recipe])
    assert done.exit_code == 0, done.exception
    run = Path(recipe).parent / "run"
    tower = yaml.safe_load((run / "recipe.yaml").read_text())["vision_tower"]
    assert tower["match"] is None
    trained = load_file(run / "morph" / "model.safetensors")
    sizes = {len(tensor) for name, tensor in trained.items() if name.endswith("mlp.up_proj.weight")}
    assert sizes == {tower["intermediate_size"]}

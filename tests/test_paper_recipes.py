"""The papers' own recipes: they build without weights, train what the paper trains, and pass `diptych inspect`."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
from typer.testing import CliRunner

from diptych.cli import app
from diptych.config import Recipe, load_recipe
from diptych.models.accounts.recipe_account import account_recipe
from diptych.models.accounts.run_account import RunAccount
from diptych.stages import expand_stages

PAPER = Path(__file__).parent.parent / "recipes" / "paper"
NUM_GPUS = 8
WIDTH, FEATURE_DIM, VOCABULARY = 4096, 1152, 128256
CONNECTOR = FEATURE_DIM * WIDTH + WIDTH + WIDTH * WIDTH + WIDTH
VISUAL_HEAD = WIDTH * WIDTH + WIDTH + WIDTH * FEATURE_DIM + FEATURE_DIM
BOUNDARY_EMBEDDINGS = 2 * WIDTH
BOUNDARY_TOKENS = 2 * BOUNDARY_EMBEDDINGS
"""Rows of the embedding and of the LM head, which Llama-3.1 8B does not tie."""
LLAMA_8B = 8_030_261_248


@cache
def account_of(name: str, number: int = 0) -> RunAccount:
    return account_recipe(stages(name)[number])


def stages(name: str) -> list[Recipe]:
    return expand_stages(load_recipe(PAPER / f"metamorph{name}.yaml"))


def adam(recipe: Recipe) -> tuple[float, float, float]:
    return recipe.train.adam_beta1, recipe.train.adam_beta2, recipe.train.weight_decay


def batch_size(recipe: Recipe) -> int:
    train = recipe.train
    return train.per_device_train_batch_size * train.gradient_accumulation_steps * NUM_GPUS


def test_stage_1_trains_the_connector_and_the_new_embedding_rows() -> None:
    account = account_of("-stage1")
    recipe = account.recipe
    assert sum(account.trained.values()) == CONNECTOR + BOUNDARY_EMBEDDINGS
    assert account.frozen["language model meta-llama/Llama-3.1-8B-Instruct"] == LLAMA_8B
    assert (batch_size(recipe), recipe.train.learning_rate, recipe.data.max_length) == (768, 4.90e-5, 4096)
    assert adam(recipe) == (0.9, 0.999, 0)
    assert recipe.vpit.visual_weight == 0


def test_stage_2_trains_everything_but_the_encoder() -> None:
    account = account_of("-stage2")
    recipe = account.recipe
    assert sum(account.trained.values()) == LLAMA_8B + CONNECTOR + VISUAL_HEAD + BOUNDARY_TOKENS
    assert (batch_size(recipe), recipe.train.learning_rate) == (1536, 6.93e-5)
    assert adam(recipe) == (0.9, 0.999, 0)
    assert recipe.vpit.init_from is not None
    assert recipe.vpit.visual_input_dropout == recipe.vpit.visual_input_noise == 0
    weights = [source.weight for source in recipe.data.sources]
    assert [round(100 * weight / sum(weights), 1) for weight in weights] == [44.0, 9.9, 31.1, 8.8, 3.2, 3.0]


def test_the_decoder_is_stable_diffusion_with_a_new_projector() -> None:
    account = account_of("-decoder")
    unet, projector = 859_520_964, FEATURE_DIM * 2048 + 2048 + 2 * 2048 + 2048 * 768 + 768 + 2 * 768
    assert sum(account.trained.values()) == unet + projector
    assert account.frozen["autoencoder"] == 83_653_863
    assert (batch_size(account.recipe), account.recipe.train.learning_rate) == (2112, 1.1e-5)
    assert adam(account.recipe) == (0.9, 0.999, 0.01)


def test_the_two_ways_to_write_it_are_one() -> None:
    apart, together = [stages("-stage1")[0], stages("-stage2")[0]], stages("")
    for one, other in zip(apart, together, strict=True):
        mine, theirs = one.model_dump(exclude={"output_dir"}), other.model_dump(exclude={"output_dir"})
        assert mine["vpit"].pop("init_from") is None or theirs["vpit"]["init_from"] is not None
        theirs["vpit"].pop("init_from")
        assert mine == theirs


def test_inspect_names_both_stages() -> None:
    result = CliRunner().invoke(app, ["inspect", str(PAPER / "metamorph.yaml"), "--gflops", "400000"])
    assert result.exit_code == 0, result.stderr
    assert result.stdout.count("stage that writes into") == 2
    assert {"parameters", "FLOPs", "memory,", "time"} <= set(result.stdout.split())


@pytest.mark.parametrize(
    ("size", "layers", "language"),
    [
        ("1b", 16 * 60_821_504, 1_235_814_400),
        ("3b", 28 * 100_669_440, 3_212_749_824),
        ("8b", 32 * 218_112_000, LLAMA_8B),
    ],
)
def test_xfusion_trains_a_copy_of_every_layer(size: str, layers: int, language: int) -> None:
    recipe = load_recipe(PAPER / f"xfusion-{size}.yaml")
    account = account_recipe(recipe)
    blocks = next(count for name, count in account.trained.items() if name.startswith("vision tower"))
    assert blocks == layers
    assert account.frozen[f"language model {recipe.language_model}"] == language
    assert account.frozen["autoencoder"] == 83_653_863
    tokens_per_image = (recipe.image_size // 8 // recipe.vision_tower.patch_size) ** 2 + 2
    assert tokens_per_image == 258
    assert 0.75e6 < batch_size(recipe) * (tokens_per_image + 100) < 0.85e6
    assert (recipe.objective.ce_weight, recipe.objective.flow_weight, recipe.objective.context_noise) == (0.2, 1, 0)
    assert (recipe.train.learning_rate, recipe.train.adam_beta1, recipe.train.adam_beta2) == (1e-4, 0.9, 0.95)
    assert recipe.train.max_steps == (200_000 if size == "8b" else 100_000)
    assert recipe.sample.guidance_scale == 5.5
    draw, read = recipe.data.sources
    assert (draw.weight, read.weight) == (2, 1)
    assert recipe.text_cache_gb == 0
    held = sum(account.rank_bytes(NUM_GPUS).values()) / 1e9
    assert f"# Of a card {held:.0f} GB, and activations" in (PAPER / f"xfusion-{size}.yaml").read_text()


def test_inspect_knows_the_encoder_of_the_alignment_study(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the recipe's header writes it, with no network."""
    monkeypatch.setattr("diptych.backbones.skeletons.fetch_file", lambda *_: pytest.fail("something was fetched"))
    path = PAPER / "xfusion-1b.yaml"
    header = next(line for line in path.read_text(encoding="utf-8").splitlines() if "alignment study:" in line)
    overrides = header.partition("study:")[2].split()
    assert len(overrides) == 3
    result = CliRunner().invoke(app, ["inspect", str(path), *overrides, "--gflops", "400000"])
    assert result.exit_code == 0, result.stderr
    assert "303 M" in next(line for line in result.stdout.splitlines() if "image encoder of alignment" in line)

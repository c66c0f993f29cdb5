"""Law: what `diptych inspect` says of a VPiT recipe is what torch's counter sees when the step is really run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from diptych.backbones.tiny_language import build_tiny_language_model
from diptych.config import Recipe
from diptych.models.accounts.recipe_account import account_recipe
from diptych.models.vpit_checkpoint import build_vpit_morph
from diptych.models.vpit_training import VPiTTraining
from tiny_vpit import build_encoder, vpit_recipe, write_emblems

PARTS: dict[str, dict[str, Any]] = {
    "all": {},
    "stage 1": {"train_parts": ["connector", "boundary_tokens"]},
    "stage 1, the paper's": {"train_parts": ["connector", "boundary_embeddings"]},
    "head alone": {"train_parts": ["visual_head"]},
    "late layers": {"first_trained_layer": 1},
    "late layers, kept states": {
        "first_trained_layer": 1,
        "cached_forms": 1,
        "train_parts": ["visual_head", "boundary_tokens", "language_model"],
    },
    "adapters": {"lora": {"r": 4}},
    "adapters alone": {"lora": {"r": 4}, "train_parts": ["language_model"]},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("account")
    build_tiny_language_model("llama", hidden_size=64, intermediate_size=160).save_pretrained(folder / "language")
    network: Any = build_encoder().network
    network.network.save_pretrained(folder / "encoder")
    write_emblems(folder / "data")
    return folder


def recipe_of(folder: Path, **vpit: Any) -> Recipe:
    recipe = vpit_recipe(
        folder / "run",
        folder / "data",
        language_model=str(folder / "language"),
        vpit={"image_encoder": str(folder / "encoder"), **vpit},
        train={"gradient_accumulation_steps": 2},
    )
    return recipe.model_copy(update={"data": recipe.data.model_copy(update={"mixing": "batch"})})


@pytest.mark.parametrize("settings", PARTS.values(), ids=PARTS)
def test_flops_and_parameters_are_those_of_a_real_step(folder: Path, settings: dict[str, Any]) -> None:
    recipe = recipe_of(folder, **settings)
    account = account_recipe(recipe)
    training = VPiTTraining(recipe, build_vpit_morph(recipe, encoder=build_encoder(), cached=False))
    counted = 0
    for source in (0, 1):  # a micro-batch that draws and one that reads: one step of this mixture
        batch = training.build_batch([(k, source, k) for k in range(4)], seed=0)
        training(batch)  # what is computed once is kept
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            losses = [loss.total for loss in training(batch).values() if loss.total.requires_grad]
            if losses:
                torch.stack(losses).sum().backward()
        counted += counter.get_total_flops()
    assert account.assumed is None
    assert account.samples_per_step == 8
    assert account.step.total == pytest.approx(counted, rel=0.03)
    assert sum(account.trained.values()) == sum(p.numel() for p in training.trainable_parameters().values())
    of_encoder = next(count for name, count in account.frozen.items() if name.startswith("image encoder"))
    of_model = sum(account.trained.values()) + sum(account.frozen.values()) - of_encoder
    assert of_model == sum(p.numel() for p in training.model.parameters())


def test_what_is_computed_once_is_that_of_all_forms(folder: Path) -> None:
    settings = {k: v for k, v in PARTS["late layers, kept states"].items() if k != "cached_forms"}
    one, three = (account_recipe(recipe_of(folder, **settings, cached_forms=forms)) for forms in (1, 3))
    kept = "states before the first trained layer"
    assert three.once[kept].total == pytest.approx(3 * one.once[kept].total)
    assert three.cached[kept][0] == pytest.approx(3 * one.cached[kept][0], rel=0.01)
    training = VPiTTraining(one.recipe, build_vpit_morph(one.recipe, encoder=build_encoder(), cached=False))
    batch = training.build_batch([(k, 0, k) for k in range(4)], seed=0)
    training(batch)
    assert training.frozen_layers is not None
    per_sample = training.frozen_layers.num_bytes_kept / 4
    assert one.cached[kept][0] == pytest.approx(per_sample, rel=0.2), "drawing and reading differ a little in length"


def test_nothing_trained_before_the_states_means_no_backward_in_the_language_model(folder: Path) -> None:
    parts = {part.name: part.flops for part in account_recipe(recipe_of(folder, train_parts=["visual_head"])).parts}
    assert parts["language model"].forward > 0
    assert parts["language model"].backward == 0
    assert parts["visual head"].backward > 0


def test_recomputation_is_counted(folder: Path) -> None:
    recipe = recipe_of(folder)
    train = recipe.train.model_copy(update={"gradient_checkpointing": True})
    plain, again = (account_recipe(r) for r in (recipe, recipe.model_copy(update={"train": train})))
    once, twice = plain.parts[0].flops, again.parts[0].flops
    # torch recomputes each layer up to what the backward pass needs, which is not all of its last product.
    assert once.backward + 0.7 * once.forward < twice.backward <= once.backward + once.forward


def test_without_data_lengths_are_assumed_and_said_to_be(folder: Path) -> None:
    nowhere = vpit_recipe(folder, folder / "nowhere").data
    account = account_recipe(recipe_of(folder).model_copy(update={"data": nowhere}))
    assert account.assumed is not None
    assert "is not there" in account.assumed
    assert "assumed" in account.describe(1e9, measured=False)

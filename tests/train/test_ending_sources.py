"""Laws of runs whose sources end: resumed to the exact sample, and only with the same ends."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from diptych.config import Recipe
from diptych.train.checkpoint import CheckpointError
from diptych.train.loop import run_training
from train.toy_method import HookedMethod, ToyMethod, toy_recipe


def recipe_of(folder: Path, *, first: dict[str, Any], **train: Any) -> Recipe:
    """Of 11 and 7 samples, 2 : 1; the first source ends within the run."""
    recipe = toy_recipe(folder, resume_from_checkpoint="latest", **train)
    one, other = recipe.data.sources
    sources = (one.model_copy(update=first), other)
    return recipe.model_copy(update={"data": recipe.data.model_copy(update={"sources": sources})})


@pytest.mark.parametrize("train", [{}, {"packing_length": 16}], ids=["batches", "packs"])
@pytest.mark.parametrize("first", [{"epochs": 1.0}, {"tokens": 60}], ids=["epochs", "tokens"])
@pytest.mark.parametrize("after", [3, 9])
def test_a_run_resumes_to_the_exact_sample(tmp_path: Path, first: Any, train: dict[str, Any], after: int) -> None:
    whole = ToyMethod()
    run_training(recipe_of(tmp_path / "whole", first=first, **train), whole)
    stop = threading.Event()
    halting = HookedMethod(lambda done: stop.set() if done == after else None)
    run_training(recipe_of(tmp_path / "halted", first=first, **train), halting, stop=stop)
    later = ToyMethod()
    result = run_training(recipe_of(tmp_path / "halted", first=first, **train), later)
    assert result.step == 12
    assert later.built == whole.built[len(whole.built) - len(later.built) :]
    for name in ("trained", "optimizer"):
        ends = [tmp_path / run / f"checkpoints/step-000012/{name}.safetensors" for run in ("whole", "halted")]
        assert ends[0].read_bytes() == ends[1].read_bytes()


def test_an_epoch_is_every_sample_once_and_then_no_more(tmp_path: Path) -> None:
    method = ToyMethod()
    run_training(recipe_of(tmp_path, first={"epochs": 1.0}), method)
    assert sorted(index for draw, source, index in method.built if source == 0) == list(range(11))
    assert len(method.built) == 24


def test_a_run_goes_on_with_the_ends_that_it_began_with(tmp_path: Path) -> None:
    run_training(recipe_of(tmp_path, first={"epochs": 1.0}, max_steps=3), ToyMethod())
    with pytest.raises(CheckpointError, match="draws after which sources end"):
        run_training(recipe_of(tmp_path, first={"epochs": 2.0}, max_steps=6), ToyMethod())

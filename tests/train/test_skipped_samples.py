"""Laws of samples that cannot be used: left out, counted exactly, the same after a resume; too many end the run."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from diptych.config import Recipe
from diptych.data.mixture import Mixture
from diptych.train.log import read_log
from diptych.train.loop import run_training
from diptych.train.skipped_samples import DRAWS_REMEMBERED, SkippedSample, SkippedSamples, TooManyBadSamples
from train.toy_method import Broken, HookedMethod, ToyMethod, toy_recipe

BROKEN = [(0, 3), (1, 5)]


def recipe_of(folder: Path, **train: Any) -> Recipe:
    recipe = toy_recipe(folder, **{"max_steps": 20, "per_device_train_batch_size": 4} | train)
    return recipe.model_copy(update={"data": recipe.data.model_copy(update={"max_bad_fraction": 0.5})})


def drawn(num: int) -> list[tuple[int, int, int]]:
    mixture = Mixture((11, 7), (2, 1), 3)
    return [mixture.pick(draw) for draw in range(num)]


def state(folder: Path) -> dict[str, Any]:
    newest = max((folder / "checkpoints").iterdir())
    return json.loads((newest / "state.json").read_text())


def test_bad_samples_are_left_out_and_counted_by_kind(tmp_path: Path) -> None:
    method = ToyMethod(broken=BROKEN)
    result = run_training(recipe_of(tmp_path), method)
    bad = [pick for pick in drawn(80) if pick[1:] in BROKEN]
    assert len(bad) >= 5
    assert result.step == 20
    assert result.skipped_samples == {"broken": len(bad)}
    assert read_log(tmp_path / "log.jsonl")[-1]["skipped_samples"] == {"broken": len(bad)}
    assert {pick for pick in drawn(80) if pick[1:] not in BROKEN} <= set(method.built)
    assert not set(bad) & set(method.built)


def test_the_losses_are_those_of_a_run_without_them(tmp_path: Path) -> None:
    """A skipped sample is no sample of another kind: means are over those that are left."""

    class Weightless(ToyMethod):
        """The broken ones are built, and weigh nothing."""

        def build_batch(self, picks: Any, *, seed: int) -> Any:
            batch = super().build_batch(picks, seed=seed)
            for row, pick in enumerate(picks):
                batch.items[row] *= pick[1:] not in BROKEN
            return batch

    run_training(recipe_of(tmp_path / "a"), ToyMethod(broken=BROKEN))
    run_training(recipe_of(tmp_path / "b"), Weightless())
    first, second = ([row["losses"] for row in read_log(tmp_path / name / "log.jsonl")] for name in "ab")
    for one, other in zip(first, second, strict=True):
        assert one == pytest.approx(other, rel=1e-5)


@pytest.mark.parametrize("train", [{}, {"packing_length": 20}], ids=["equal", "packed"])
@pytest.mark.parametrize("stops_at", [3, 7, 12])
def test_a_run_resumes_past_bad_samples_exactly(tmp_path: Path, stops_at: int, train: dict[str, Any]) -> None:
    run_training(recipe_of(tmp_path / "whole", **train), ToyMethod(broken=BROKEN))
    stop = threading.Event()
    method = HookedMethod(lambda done: stop.set() if done == stops_at else None, broken=BROKEN)
    assert run_training(recipe_of(tmp_path / "parts", **train), method, stop=stop).interrupted
    run_training(recipe_of(tmp_path / "parts", resume_from_checkpoint="latest", **train), ToyMethod(broken=BROKEN))
    whole, parts = state(tmp_path / "whole"), state(tmp_path / "parts")
    assert whole["samples"]["by_kind"]
    for key in ("samples", "data_state", "window"):
        assert whole[key] == parts[key], key
    names = [path.name for path in (tmp_path / "whole" / "morph").iterdir()]
    assert all(
        (tmp_path / "whole" / "morph" / name).read_bytes() == (tmp_path / "parts" / "morph" / name).read_bytes()
        for name in names
    )


def test_a_micro_batch_of_nothing_usable_changes_nothing(tmp_path: Path) -> None:
    picks = drawn(40)
    broken = {pick[1:] for pick in picks[8:12]}
    options = {"max_steps": 10, "gradient_accumulation_steps": 1}
    result = run_training(recipe_of(tmp_path, **options), ToyMethod(broken=broken))
    assert result.step == 10
    assert result.skipped_samples == {"broken": sum(pick[1:] in broken for pick in picks)}


@pytest.mark.parametrize("train", [{}, {"packing_length": 3}], ids=["equal", "packed"])
def test_the_first_batches_may_hold_nothing_usable(tmp_path: Path, train: dict[str, Any]) -> None:
    """A sample of later stands in for them; it weighs nothing."""
    picks = drawn(20)
    method = ToyMethod(broken={pick[1:] for pick in picks[:3]})
    if train:  # its length is known, but nothing can be made of it
        method.num_tokens = lambda *_, **__: 3  # type: ignore[method-assign]
    bad = sum(pick[1:] in method.broken for pick in picks)
    result = run_training(recipe_of(tmp_path, per_device_train_batch_size=1, **train), method)
    assert (result.step, result.skipped_samples) == (20, {"broken": bad})


def test_a_run_that_resumes_at_a_bad_sample_goes_on_as_if_never_stopped(tmp_path: Path) -> None:
    """With randomness in the forward pass: what stands in must be the same."""
    bad = drawn(10)[6]
    options: dict[str, Any] = {"broken": [bad[1:]], "noise": 0.1}
    size = {"per_device_train_batch_size": 1}
    whole = run_training(recipe_of(tmp_path / "whole", **size), ToyMethod(**options))
    stop = threading.Event()
    method = HookedMethod(lambda done: stop.set() if done == 5 else None, **options)
    assert run_training(recipe_of(tmp_path / "parts", **size), method, stop=stop).interrupted
    assert state(tmp_path / "parts")["step"] == 6
    recipe = recipe_of(tmp_path / "parts", resume_from_checkpoint="latest", **size)
    parts = run_training(recipe, ToyMethod(**options))
    assert parts.skipped_samples == whole.skipped_samples
    assert parts.losses == whole.losses
    assert state(tmp_path / "whole")["random_states"] == state(tmp_path / "parts")["random_states"]


def test_the_first_batch_must_hold_something(tmp_path: Path) -> None:
    everything = [(source, index) for source, num in enumerate((11, 7)) for index in range(num)]
    with pytest.raises(ValueError, match="is broken"):
        run_training(recipe_of(tmp_path), ToyMethod(broken=everything))


def test_more_than_the_recipe_allows_end_the_run(tmp_path: Path) -> None:
    """11 of 18 samples: among the first thousand draws the share counts as of a thousand, 10 at one in a hundred."""
    recipe = toy_recipe(tmp_path, max_steps=200, per_device_train_batch_size=4)
    assert recipe.data.max_bad_fraction == 0.01
    with pytest.raises(TooManyBadSamples, match=r"1[1-4] of \d+ samples .*broken: 1[1-4].*max_bad_fraction 0\.01"):
        run_training(recipe, ToyMethod(broken=[(0, index) for index in range(10)]))


@pytest.mark.parametrize(
    ("seen", "bad", "fraction", "refused"),
    [(1000, 10, 0.01, False), (1000, 11, 0.01, True), (5000, 50, 0.01, False), (5000, 51, 0.01, True), (9, 1, 0, True)],
)
def test_the_share_that_is_allowed(seen: int, bad: int, fraction: float, refused: bool) -> None:
    tally = SkippedSamples(seen=seen, by_kind={"image": bad})
    if refused:
        with pytest.raises(TooManyBadSamples, match="image"):
            tally.check(max_fraction=fraction)
    else:
        tally.check(max_fraction=fraction)


def skipped_at(draws: Iterable[int]) -> list[SkippedSample]:
    return [SkippedSample((draw, 0, draw), "image", "corrupt") for draw in draws]


def test_a_hundred_draws_in_a_row_end_the_run_whatever_the_share() -> None:
    tally = SkippedSamples(seen=10**6)
    for start in (300, 400):  # 349 to 398 are settled last, as packs do it
        tally.add(skipped_at(range(start, start + 49)), num_seen=60, num_skipped=49)
        tally.check(max_fraction=1)
    tally.add(skipped_at(range(349, 398)), num_seen=60, num_skipped=49)
    assert tally.in_a_row == 98
    tally.check(max_fraction=1)
    tally.add(skipped_at([398, 399]), num_seen=2, num_skipped=2)
    assert tally.in_a_row == 149
    with pytest.raises(TooManyBadSamples, match="149 samples in a row"):
        tally.check(max_fraction=1)


def test_bad_draws_with_good_ones_between_are_no_row() -> None:
    tally = SkippedSamples(seen=10**6)
    tally.add(skipped_at(range(0, 1024, 2)), num_seen=1024, num_skipped=512)
    assert tally.in_a_row == 1
    tally.check(max_fraction=1)
    tally.add(skipped_at(range(1024, 20_000, 2)), num_seen=1024, num_skipped=512)
    assert len(tally.recent) == DRAWS_REMEMBERED


@pytest.mark.parametrize("at", ["length", "batch"])
def test_a_hundred_in_a_row_end_a_packed_run_too(tmp_path: Path, at: str) -> None:
    """Passed over for their length, or found out once they are in a pack."""

    class DamagedPart(ToyMethod):
        def num_tokens(self, pick: Any, *, seed: int) -> int:
            if at == "length" and 30 <= pick[0] < 250:
                raise Broken("damaged")
            return super().num_tokens(pick, seed=seed)

        def build_batch(self, picks: Any, *, seed: int) -> Any:
            if any(30 <= pick[0] < 250 for pick in picks):
                raise Broken("damaged")
            return super().build_batch(picks, seed=seed)

    recipe = recipe_of(tmp_path, packing_length=20, max_steps=200)
    recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update={"max_bad_fraction": 1.0})})
    with pytest.raises(TooManyBadSamples, match=r"\d{3} samples in a row"):
        run_training(recipe, DamagedPart())


def test_each_kind_is_told_once() -> None:
    tally = SkippedSamples()
    one = SkippedSample((0, 0, 0), "image", "a.png is corrupt")
    assert tally.add([one, one], num_seen=4, num_skipped=2) == ["a sample is skipped (image): a.png is corrupt"]
    assert tally.add([one], num_seen=4, num_skipped=1) == []
    assert (tally.seen, tally.by_kind) == (8, {"image": 3})

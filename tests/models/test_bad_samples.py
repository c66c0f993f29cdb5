"""Law: no record that is too long, no image that cannot be read stops a run that may skip it, whatever looks at it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny_pixel_decoder
import tiny_vpit
from diptych.config import Recipe, build_recipe
from diptych.data.samples import RecordError
from diptych.models import training_sources
from diptych.models.autoencoder_training import AutoencoderTraining
from diptych.models.training_sources import some_usable, usable
from diptych.models.vpit_training import VPiTTraining
from diptych.train.log import read_log
from diptych.train.loop import run_training
from tiny_vpit import vpit_recipe, write_emblems
from train.tiny_xfusion_runs import build_xfusion_training, xfusion_recipe

MAX_LENGTH = 70
SKIPPING = {"max_length": MAX_LENGTH, "max_bad_fraction": 0.5}


def write_bad(folder: Path, *, broken: tuple[int, ...] = (1,)) -> Path:
    """Four emblems to draw and to read, of which these are no images; and a request to draw that is too long."""
    write_emblems(folder)
    for number in broken:
        (folder / f"{number}.png").write_bytes(b"\x89PNG, and no more")
    asked = {"role": "user", "content": "Draw " + "very " * MAX_LENGTH}
    turns = [asked, {"role": "assistant", "content": "<image>"}]
    with (folder / "draw.jsonl").open("a") as file:
        file.write(json.dumps({"messages": turns, "images": ["0.png"]}) + "\n")
    return folder


def with_data(recipe: Recipe, **settings: Any) -> Recipe:
    return recipe.model_copy(update={"data": recipe.data.model_copy(update=settings)})


def vpit(folder: Path, data: Path) -> tuple[Recipe, Any]:
    recipe = vpit_recipe(folder / "run", data, train={"sample_every": 1, "max_steps": 3})
    return with_data(recipe, **SKIPPING), tiny_vpit.build_training


def xfusion(folder: Path, data: Path) -> tuple[Recipe, Any]:
    recipe = xfusion_recipe(folder / "run", data, batch_size=4)
    return with_data(recipe, **SKIPPING), build_xfusion_training


def pixel_decoder(folder: Path, data: Path) -> tuple[Recipe, Any]:
    parts = tiny_pixel_decoder.write_parts(folder / "parts")
    sources = [{"path": str(data / "draw.jsonl")}]
    train = {"sample_every": 1, "max_steps": 3}
    recipe = tiny_pixel_decoder.decoder_recipe(parts, folder / "run", data=SKIPPING | {"sources": sources}, train=train)
    return recipe, tiny_pixel_decoder.build_training


METHODS = pytest.mark.parametrize("method", [vpit, xfusion, pixel_decoder], ids=lambda method: method.__name__)
Method = Callable[[Path, Path], tuple[Recipe, Any]]


@METHODS
@pytest.mark.parametrize("size", ["small", "large"])
def test_a_run_skips_them_from_its_beginning_to_its_end(
    method: Method, size: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The start from statistics, the losses, the grid and the measures; of a set that is read before, and of one that
    is not."""
    if size == "large":
        monkeypatch.setattr(training_sources, "survey_images", lambda *_, **__: None)
    recipe, build = method(tmp_path, write_bad(tmp_path / "data"))
    result = run_training(recipe, build(recipe))
    assert not result.interrupted
    assert set(result.skipped_samples) == ({"image"} if method is pixel_decoder else {"image", "too long"})
    assert all(math.isfinite(loss) for loss in result.losses.values())
    rows = read_log(tmp_path / "run" / "log.jsonl")
    measured = [value for row in rows for value in row.get("measures", {}).values()]
    assert len(measured) == (0 if method is xfusion else len(rows))
    assert all(-1 <= value <= 1 for value in measured)


@METHODS
def test_where_nothing_is_left_the_first_of_them_is_named(method: Method, tmp_path: Path) -> None:
    recipe, build = method(tmp_path, write_bad(tmp_path / "data", broken=(0, 1, 2, 3)))
    with pytest.raises(ValueError, match=r"0\.png is none of PNG.* or it is corrupt"):
        build(recipe)


def test_vpit_starts_from_the_images_that_can_be_read(tmp_path: Path) -> None:
    """As it does from a set without the others."""
    started: list[VPiTTraining] = []
    for name in ("bad", "good"):
        data = write_bad(tmp_path / name)
        if name == "good":
            for file in ("draw", "read"):
                lines = (data / f"{file}.jsonl").read_text().splitlines(keepends=True)
                (data / f"{file}.jsonl").write_text("".join(line for line in lines if '"1.png"' not in line))
        started.append(tiny_vpit.build_training(with_data(vpit_recipe(tmp_path / "run", data), **SKIPPING)))
    bad, good = (dict(method.model.named_parameters()) for method in started)
    for name, parameter in good.items():
        torch.testing.assert_close(bad[name], parameter)
    first, second = (method.measure(seed=0)["free_running_cosine"] for method in started)
    assert first == pytest.approx(second, abs=1e-4)


def test_a_pixel_decoder_shows_another_source_where_none_of_the_first_can_be_read(tmp_path: Path) -> None:
    recipe, build = pixel_decoder(tmp_path, write_bad(tmp_path / "data", broken=(0, 1, 2, 3)))
    good = recipe.data.sources[0].model_copy(update={"path": str(tmp_path / "parts" / "data" / "draw.jsonl")})
    method = build(with_data(recipe, sources=(*recipe.data.sources, good)))
    assert method.shown == [str(tmp_path / "parts" / "data" / f"{number}.png") for number in range(4)]
    assert method.sample_grid(seed=0) is not None


def test_a_measure_of_nothing_is_none_and_ends_no_run(tmp_path: Path) -> None:
    """Of a large set only some records are looked at: that all of these are bad is for the draws to judge."""
    method = tiny_vpit.build_training(vpit_recipe(tmp_path / "run", write_emblems(tmp_path / "data")))
    assert method.measure(seed=0)
    method.recipe = with_data(method.recipe, max_length=5)
    method._streams = training_sources.kept_streams()
    assert method.measure(seed=0) == {}


def test_an_image_that_stands_before_all_else_is_not_measured(tmp_path: Path) -> None:
    """Nothing stands before it that it could follow from."""
    data = write_emblems(tmp_path / "data")
    turns = [{"role": "assistant", "content": "<image> There."}]
    (data / "draw.jsonl").write_text(json.dumps({"messages": turns, "images": ["0.png"]}) + "\n")
    method = tiny_vpit.build_training(vpit_recipe(tmp_path / "run", data, template="plain"))
    method.build_batch([(0, 0, 0)], seed=0)
    assert method.measure(seed=0) == {}


@pytest.fixture
def pictures(tmp_path: Path) -> Recipe:
    """Twenty, the third of them no image; some are held out."""
    write_emblems(tmp_path, count=20)
    (tmp_path / "2.png").write_bytes(b"no image")
    return build_recipe(
        {
            "method": "autoencoder",
            "output_dir": str(tmp_path / "run"),
            "image_size": 16,
            "dtype": "float32",
            "autoencoder_training": {"fold": 4, "channels": 16, "latent_channels": 4, "num_decoder_blocks": [0]},
            "data": {"sources": [{"path": str(tmp_path / "draw.jsonl")}], "max_bad_fraction": 0.05},
            "train": {"max_steps": 2, "per_device_train_batch_size": 4},
        }
    )


def test_an_autoencoder_leaves_out_as_many_images_as_it_may_and_says_so(pictures: Recipe) -> None:
    with pytest.warns(UserWarning, match=r"1 of 20 images cannot be read; the first: image .*2\.png .*left out"):
        method = AutoencoderTraining(pictures)
    assert len(method.images) + len(method.held_out) == 19
    assert run_training(pictures, method).step == 2
    with pytest.raises(ValueError, match=r"1 of 20 images .*2\.png.*raise data\.max_bad_fraction \(now 0\.04\)"):
        AutoencoderTraining(with_data(pictures, max_bad_fraction=0.04))


def test_what_is_usable_comes_in_order_and_what_is_wrong_with_the_rest() -> None:
    def half(number: int) -> int:
        if number % 2:
            raise RecordError("odd", f"{number} is odd")
        return number // 2

    made, errors = usable([2, 3, 4, 5, 2], half)
    assert made == [(2, 1), (4, 2), (2, 1)]
    assert [str(error) for error in errors] == ["3 is odd", "5 is odd"]
    assert some_usable([3, 4], half) == [(4, 2)]
    assert some_usable([], half) == []
    with pytest.raises(RecordError, match="3 is odd"):
        some_usable([3, 5], half)

"""Laws of what a source says about its images: read or drawn, by both methods, whosever turn they stand in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from diptych.config import Recipe, build_recipe
from diptych.data.samples import sample_to_record
from diptych.data.sources import open_sources
from diptych.data.validation import validate_sources
from tiny_vpit import build_training, vpit_recipe, write_emblems
from train.tiny_xfusion_runs import build_xfusion_training, write_samples, xfusion_recipe

TURNS = [
    {"role": "user", "content": "<image>Look closer, then change it."},
    {"role": "assistant", "content": "<image>It is red.<image>"},
]
ROLES: list[tuple[tuple[str, ...], list[bool]]] = [
    ((), [False, True, True]),
    (("context", "context", "target"), [False, False, True]),
    (("context",), [False, False, False]),
    (("target", "context"), [True, False, False]),
]


def method_of(name: str, folder: Path, roles: tuple[str, ...]) -> Any:
    write_samples(folder) if name == "xfusion" else write_emblems(folder)
    record = {"messages": TURNS, "images": ["0.png", "1.png", "2.png"]}
    (folder / "draw.jsonl").write_text(json.dumps(record) + "\n")
    recipe = vpit_recipe("nowhere", folder) if name == "vpit" else xfusion_recipe(Path("nowhere"), folder, batch_size=2)
    recipe = with_roles(recipe, roles)
    return build_training(recipe) if name == "vpit" else build_xfusion_training(recipe)


def with_roles(recipe: Recipe, roles: tuple[str, ...], **objective: Any) -> Recipe:
    settings = recipe.model_dump(mode="json")
    settings["data"]["sources"][0]["image_roles"] = list(roles)
    settings["objective"] |= objective
    return build_recipe(settings)


@pytest.mark.parametrize(("roles", "expected"), ROLES)
@pytest.mark.parametrize("name", ["xfusion", "vpit"])
def test_images_are_learnt_as_their_source_says(tmp_path: Path, name: str, roles: Any, expected: list[bool]) -> None:
    method = method_of(name, tmp_path / "data", roles)
    batch = method.build_batch([(0, 0, 0)], seed=1)
    originals = [span.is_target for span in stream_of(method).images if not span.is_copy]
    assert originals == expected
    assert int(batch.batch.image_is_target.sum()) == sum(expected)
    losses = method(batch)
    drawn = losses["flow" if name == "xfusion" else "visual"]
    assert (drawn.count > 0) == any(expected)
    assert losses["ce"].count > 0, "the words of the turn are learnt all the same"


def stream_of(method: Any) -> Any:
    if hasattr(method, "latents"):
        return method._build_stream((0, 0, False, False), method.latents.load)
    return method._stream(0, 0, False)


def test_an_image_that_is_drawn_is_not_dropped_with_those_that_are_read(tmp_path: Path) -> None:
    write_samples(tmp_path / "data")
    turns = [{"role": "user", "content": "<image>and<image>"}, {"role": "assistant", "content": "a pair"}]
    (tmp_path / "data" / "draw.jsonl").write_text(json.dumps({"messages": turns, "images": ["0.png", "1.png"]}) + "\n")
    plain = xfusion_recipe(Path("nowhere"), tmp_path / "data", batch_size=2)
    recipe = with_roles(plain, ("context", "target"), text_cond_dropout_prob=0.0, image_cond_dropout_prob=1.0)
    method = build_xfusion_training(recipe)
    batch = method.build_batch([(0, 0, 0)], seed=1).batch
    assert batch.image_is_target.tolist() == [True, False], "the target, and its clean copy for what follows"
    assert stream_of(method).images[0].source.endswith("0.png")


def test_what_is_counted_is_what_is_learnt(tmp_path: Path) -> None:
    write_samples(tmp_path / "data")
    recipe = with_roles(xfusion_recipe(Path("nowhere"), tmp_path / "data", batch_size=2), ("context",))
    reports = validate_sources(open_sources(recipe.data))
    assert [(one.context_images, one.target_images) for one in reports] == [(8, 0), (8, 0)]


def test_a_record_cannot_hold_the_roles_of_a_source(tmp_path: Path) -> None:
    write_samples(tmp_path / "data")
    recipe = with_roles(xfusion_recipe(Path("nowhere"), tmp_path / "data", batch_size=2), ("context",))
    with pytest.raises(ValueError, match="a setting of its source"):
        sample_to_record(open_sources(recipe.data)[0][0])


def test_a_role_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'context' or 'target'"):
        with_roles(xfusion_recipe(Path("nowhere"), tmp_path / "data", batch_size=2), ("drawn",))

"""Known answers: a model that is always right scores all, one that changes nothing scores what nothing is worth."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from diptych.data.builders.emoji import build_emoji
from diptych.data.builders.emoji_tasks import NAMES_APART, build_emoji_tasks
from diptych.data.images import open_image
from diptych.data.samples import read_samples
from diptych.evaluate.emoji_task_scores import score_tasks
from emoji_packages import NAMES, entry, write_packages

MANY = [f"{name}{suffix}" for name in NAMES for suffix in ("", "ta")]


class Pixels:
    """An encoder that tells every picture from every other."""

    def pooled(self, images: Tensor) -> Tensor:
        return torch.nn.functional.adaptive_avg_pool2d(images, 16).flatten(1)


class Told:
    """Answers by what `known` says of a request and its picture."""

    recipe = SimpleNamespace(image_size=60)

    def __init__(self, known: dict[tuple[str, bytes], Any], *, change: bool) -> None:
        self.known, self.change = known, change

    def generate_batch(self, conversations: list[Any], **options: Any) -> list[list[Any]]:
        answers = []
        for ((message,),) in zip(conversations, strict=True):
            request, picture = message["content"]
            own = self.known[request, picture.tobytes()]
            if self.change:
                answers.append([own])
            else:
                answers.append([picture] if isinstance(own, Image.Image) else ["two"])
        return answers


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tasks")
    entries = [entry(name, i, group=3 + i % 5, subgroup=i % 7) for i, name in enumerate(MANY)]
    build_emoji(folder / "emoji", **write_packages(folder / "packages", entries))
    build_emoji_tasks(
        folder / "set", emoji_folder=folder / "emoji", num_samples=200, held_out_fraction=0.3, image_size=60, seed=1
    )
    return folder / "set"


def known_answers(data: Path) -> dict[tuple[str, bytes], Any]:
    known: dict[tuple[str, bytes], Any] = {}
    for path in data.glob("held_out_*.jsonl"):
        for sample in read_samples(path):
            request, answer = str(sample.messages[0].parts[0]), sample.messages[1].parts[0]
            shown = open_image(data / sample.images[0]).tobytes()
            known[request, shown] = answer if isinstance(answer, str) else open_image(data / sample.images[answer])
    return known


def test_always_right_scores_all(data: Path) -> None:
    found = score_tasks(Told(known_answers(data), change=True), data, Pixels(), num=20)
    assert set(found.shares) >= {
        "edit, colour: made",
        "edit, style: right answer first",
        "ask, count",
        "name, alone",
        "name, scene",
    }
    assert {name for name, score in found.shares.items() if score.value != 1} == set()
    assert found.means["locate: overlap"][0] == pytest.approx(1)
    for name, (value, nothing) in found.means.items():
        assert nothing is not None
        assert value > nothing, name
    assert len(found.pictures) == 40


def test_changing_nothing_is_worth_nothing(data: Path) -> None:
    found = score_tasks(Told(known_answers(data), change=False), data, Pixels(), num=20)
    assert found.shares["edit, style: made"].value == 0
    assert found.shares["locate: overlap above a half"].value == 0
    for name, (value, nothing) in found.means.items():
        if "PSNR" in name:
            assert value == pytest.approx(nothing)
    counted = found.shares["ask, count"]
    assert 0 <= counted.value <= counted.chance
    assert found.shares["ask, exists"].value == 0
    assert {name: found.shares[f"name, {name}"].value for name in ("alone", "scene")} == {"alone": 0, "scene": 0}


def test_a_thing_that_is_told_counts_in_whatever_place(data: Path) -> None:
    known = known_answers(data)
    turned = {
        key: NAMES_APART.join(reversed(answer.split(NAMES_APART))) if key[0].startswith("What is there") else answer
        for key, answer in known.items()
    }
    found = score_tasks(Told(turned, change=True), data, Pixels(), num=20).shares
    assert found["name, scene"].value == 1
    assert found["name, scene: all, in order, no others"].value == 0


def test_to_tell_every_name_finds_nothing(data: Path) -> None:
    known = known_answers(data)
    everything = NAMES_APART.join(["nothing of the kind"] * 4 + MANY)
    told = {key: everything if key[0].startswith("What is there") else answer for key, answer in known.items()}
    found = score_tasks(Told(told, change=True), data, Pixels(), num=20).shares
    assert (found["name, alone"].value, found["name, scene"].value) == (0, 0)

"""Laws of the detector: boxes there and back, files there and back, and a carried one of the size that is promised."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from diptych.backbones.scene_detector import CARRIED, CONFIG, WEIGHTS, SceneDetector, load_scene_detector
from diptych.data.builders.emoji_scenes import HUES
from diptych.data.builders.scene_prompts import THINGS

EDGE = st.floats(0, 0.9)
SIZE = st.floats(0.05, 1)


@given(EDGE, EDGE, SIZE, SIZE)
def test_boxes_come_back_from_every_cell(left: float, top: float, width: float, height: float) -> None:
    detector = SceneDetector(("one",), ("red",), image_size=32, width=4)
    boxes = torch.tensor([left, top, left + width, top + height]).expand(16, 4)
    assert torch.allclose(detector.boxes_at(detector.targets_of(boxes)), boxes, atol=1e-5)


def test_each_cell_speaks_of_its_own_place() -> None:
    detector = SceneDetector(("one", "two"), ("red",), image_size=64, width=4).eval()
    there, box, name, colour = detector(torch.zeros(3, 3, 64, 64))
    assert (there.shape, box.shape, name.shape, colour.shape) == ((3, 64), (3, 64, 4), (3, 64, 3), (3, 64, 1))
    lit = torch.zeros(1, 3, 64, 64)
    lit[..., 16:24, 40:48] = 1  # row 2, column 5
    changed = (detector(lit)[1] - detector(torch.zeros_like(lit))[1]).abs().sum(dim=-1)
    middle = (detector.cell_centres() * changed[0, :, None]).sum(dim=0) / changed.sum()
    assert middle.tolist() == pytest.approx([5.5 / 8, 2.5 / 8], abs=0.15)


def test_a_saved_one_says_the_same(tmp_path: Path) -> None:
    torch.manual_seed(0)
    detector = SceneDetector(("one", "two"), ("red", "blue"), image_size=32, width=8).eval()
    detector.save(tmp_path / "detector", seed=3)
    loaded = load_scene_detector(tmp_path / "detector")
    assert (loaded.names, loaded.colours, loaded.image_size) == (("one", "two"), ("red", "blue"), 32)
    images = torch.rand(2, 3, 32, 32)
    for mine, theirs in zip(detector(images), loaded(images), strict=True):
        assert torch.allclose(mine, theirs, atol=0.02)
    assert loaded.hash
    assert not any(parameter.requires_grad for parameter in loaded.parameters())


def test_what_is_missing_or_damaged_is_told(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="train one: python bench/scene_detector"):
        load_scene_detector(tmp_path)
    SceneDetector(("one",), ("red",), image_size=32, width=8).save(tmp_path)
    (tmp_path / CONFIG).write_text((tmp_path / CONFIG).read_text().replace('"width": 8', '"width": 4'))
    with pytest.raises(ValueError, match="cannot be read"):
        load_scene_detector(tmp_path)
    with pytest.raises(ValueError, match="image_size is 60"):
        SceneDetector(("one",), ("red",), image_size=60)


def test_the_carried_one_is_small_and_knows_what_is_asked_for() -> None:
    detector = load_scene_detector()
    assert detector.names == THINGS
    assert detector.colours == tuple(HUES)
    assert sum(file.stat().st_size for file in CARRIED.iterdir()) < 5_000_000
    assert all(tensor.isfinite().all() for tensor in load_file(CARRIED / WEIGHTS).values())

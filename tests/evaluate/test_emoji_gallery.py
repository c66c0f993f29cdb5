"""Laws of the gallery: ranks are within a style, the style is told among all, and a set with a gap is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from diptych.data.builders.emoji import build_emoji
from diptych.evaluate.emoji_gallery import Combination, place_in_gallery, read_combinations
from emoji_packages import NAMES, entry, write_packages


def combination(concept: str, style: str) -> Combination:
    return Combination(concept, style, f"Draw {concept}.", Path("none.png"), held_out=False)


def test_the_rank_is_among_images_of_the_style_and_the_style_among_all() -> None:
    gallery = [combination(concept, style) for style in ("flat", "3D") for concept in ("cat", "dog")]
    real = torch.nn.functional.normalize(torch.tensor([[1.0, 0, 0], [0, 1, 0], [0.9, 0, 0.4], [0, 0.9, 0.4]]), dim=-1)
    mine = torch.tensor([[1.0, 0, 0], [0, 1.0, 0], [1.0, 0.1, 0]])
    asked = [combination("cat", "flat"), combination("dog", "3D"), combination("dog", "flat")]
    assert place_in_gallery(mine, real, gallery, asked) == ([0, 0, 1], [True, False, True])


def test_a_set_that_lacks_a_concept_in_a_style_is_refused(tmp_path: Path) -> None:
    folders = write_packages(tmp_path, [entry(name, i) for i, name in enumerate(NAMES[:6])])
    data = build_emoji(tmp_path / "emoji", **folders, image_size=32).folder
    combinations = read_combinations(data)
    assert len(combinations) == 12
    assert combinations[0].real.size == (32, 32)
    assert combinations[0].messages[0].parts == (combinations[0].prompt,)
    lines = (data / "train_draw.jsonl").read_text().splitlines()
    (data / "train_draw.jsonl").write_text("\n".join(lines[1:]) + "\n")
    with pytest.raises(ValueError, match="does not hold every concept in every style"):
        read_combinations(data)

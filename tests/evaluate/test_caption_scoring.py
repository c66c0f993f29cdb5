"""Laws of scoring captions: known places give known scores, other encoders are refused, worse pictures score less."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image, ImageFilter
from torch.nn.functional import normalize

from diptych.backbones.caption_judge import CaptionJudge, load_caption_judge
from diptych.evaluate.caption_scoring import CaptionScorer, measure_judge
from diptych.evaluate.suites.captioning import Captioning
from diptych.evaluate.suites.emoji_drawing import EmojiDrawing

ASSETS = ("efficientnet-lite0", "all-minilm-l6-v2")
THINGS = {
    "cat face": "1f431",
    "rocket": "1f680",
    "red apple": "1f34e",
    "guitar": "1f3b8",
    "bus": "1f68c",
    "octopus": "1f419",
    "umbrella": "2602",
    "key": "1f511",
    "pizza": "1f355",
    "frog": "1f438",
    "bell": "1f514",
    "cactus": "1f335",
}


def test_pictures_in_the_places_of_their_captions_are_all_right() -> None:
    places = torch.eye(8)
    found = measure_judge(places, places)
    assert found == pytest.approx(
        {
            "first": 1,
            "among_five": 1,
            "chance": 1 / 8,
            "told_apart": 1,
            "score_of_right": 1,
            "score_of_others": 0,
            "num": 8,
        }
    )
    shuffled = measure_judge(places, places.roll(1, dims=0))
    assert (shuffled["first"], shuffled["score_of_right"]) == (0, 0)
    assert shuffled["score_of_others"] == pytest.approx(1 / 7)


def test_ties_are_wrong_and_chance_is_met_by_chance() -> None:
    same = torch.ones(6, 1)
    found = measure_judge(same, same)
    assert (found["first"], found["among_five"], found["told_apart"]) == (0, 0, 0)
    one, other = (normalize(torch.randn(400, 16), dim=-1) for _ in range(2))
    found = measure_judge(one, other)
    assert found["first"] < 0.02
    assert found["told_apart"] == pytest.approx(0.5, abs=0.05)
    assert found["score_of_right"] == pytest.approx(found["score_of_others"], abs=0.05)


@pytest.mark.assets(*ASSETS)
def test_a_judge_of_other_encoders_is_refused(tmp_path: Path) -> None:
    CaptionJudge(image_encoder="0" * 64, sentence_encoder="0" * 64).save(tmp_path)
    with pytest.raises(ValueError, match="was trained with image encoder 0000000000000000, and the embedded one is"):
        CaptionScorer(tmp_path).find()


@pytest.fixture(scope="module")
def scorer() -> CaptionScorer:
    return CaptionScorer()


@pytest.fixture(scope="module")
def pictures() -> dict[str, Image.Image]:
    from diptych.backbones.assets import asset_path
    from diptych.data.images import open_image

    folder = asset_path("fluent-emoji-3d") / "assets"
    files = {name: next(folder.glob(f"{code}*.webp")) for name, code in THINGS.items()}
    return {name: open_image(file).resize((64, 64), Image.Resampling.LANCZOS) for name, file in files.items()}


def spoil(image: Image.Image, how: str, strength: int) -> Image.Image:
    if how == "blur":
        return image.filter(ImageFilter.GaussianBlur(1.5 * strength))
    noise: Any = torch.randn(64, 64, 3, generator=torch.Generator().manual_seed(7)).numpy()
    pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(64, 64, 3).numpy()
    return Image.fromarray((pixels + 25.0 * strength * noise).clip(0, 255).astype("uint8"))


@pytest.mark.assets(*ASSETS, "fluent-emoji-3d")
@pytest.mark.parametrize("how", ["blur", "noise"])
def test_the_more_a_picture_is_spoilt_the_less_its_caption_fits(
    scorer: CaptionScorer, pictures: dict[str, Image.Image], how: str
) -> None:
    captions = scorer.place_captions([f"{name} in 3D style" for name in pictures])
    means = []
    for strength in range(6):
        placed = scorer.place_pictures([spoil(image, how, strength) for image in pictures.values()])
        means.append(float((placed * captions).sum(dim=1).mean()))
    assert means == sorted(means, reverse=True)
    assert len(set(means)) == 6
    assert means[5] < means[0] - 0.1


@pytest.mark.assets(*ASSETS, "fluent-emoji-3d")
def test_right_captions_fit_best(scorer: CaptionScorer, pictures: dict[str, Image.Image]) -> None:
    placed = scorer.place_pictures(list(pictures.values()))
    found = measure_judge(placed, scorer.place_captions([f"{name} in 3D style" for name in pictures]))
    assert found["first"] >= 0.75
    assert found["told_apart"] >= 0.95
    flat = scorer.place_captions([f"{name} in flat style" for name in pictures])
    assert measure_judge(placed, flat)["score_of_right"] < found["score_of_right"], "the style counts too"
    assert {len(hash) for hash in scorer.find().values()} == {64}


def test_another_judge_raises_the_versions_of_its_suites() -> None:
    versions = (EmojiDrawing.version, Captioning.version)
    assert {versions: load_caption_judge().hash[:16]} == {(3, 2): "0fc0f3b745b637c6"}

"""Laws of the judge of captions: unit places, files there and back, and a carried one of the size that is promised."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from diptych.backbones.caption_judge import CARRIED, CONFIG, WEIGHTS, CaptionJudge, load_caption_judge


def small_judge() -> CaptionJudge:
    torch.manual_seed(0)
    judge = CaptionJudge(image_dim=12, text_dim=6, width=4, image_size=32, image_encoder="a", sentence_encoder="b")
    judge.image_std.fill_(2.0)
    return judge.eval()


def test_scores_are_cosines_of_every_text_with_every_picture() -> None:
    judge = small_judge()
    pictures, texts = torch.randn(3, 12), torch.nn.functional.normalize(torch.randn(5, 6), dim=-1)
    scores = judge(pictures, texts)
    assert scores.shape == (5, 3)
    assert scores.abs().max() <= 1 + 1e-6
    for places in (judge.place_pictures(pictures), judge.place_texts(texts)):
        assert torch.allclose(places.norm(dim=-1), torch.ones(len(places)), atol=1e-6)
    assert torch.allclose(scores[4, 1], judge.place_texts(texts)[4] @ judge.place_pictures(pictures)[1])


def test_a_saved_one_says_the_same(tmp_path: Path) -> None:
    judge = small_judge()
    judge.save(tmp_path / "judge", seed=3)
    loaded = load_caption_judge(tmp_path / "judge")
    assert (loaded.width, loaded.image_size, loaded.image_encoder, loaded.sentence_encoder) == (4, 32, "a", "b")
    pictures, texts = torch.randn(3, 12), torch.randn(5, 6)
    assert torch.allclose(loaded(pictures, texts), judge(pictures, texts), atol=0.03)
    assert len(loaded.hash) == 64
    assert not any(parameter.requires_grad for parameter in loaded.parameters())


def test_what_is_missing_or_damaged_is_told(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"{tmp_path.name} cannot be read .*train one: python bench/caption_judge"):
        load_caption_judge(tmp_path)
    small_judge().save(tmp_path)
    (tmp_path / CONFIG).write_text((tmp_path / CONFIG).read_text().replace('"width": 4', '"width": 8'))
    with pytest.raises(ValueError, match="cannot be read"):
        load_caption_judge(tmp_path)


def test_the_carried_one_is_small_and_names_its_encoders() -> None:
    judge = load_caption_judge()
    assert (judge.image_dim, judge.text_dim, judge.image_size) == (1280, 384, 64)
    assert {len(judge.image_encoder), len(judge.sentence_encoder)} == {64}
    assert sum(file.stat().st_size for file in CARRIED.iterdir()) < 2_000_000
    assert all(tensor.isfinite().all() for tensor in load_file(CARRIED / WEIGHTS).values())

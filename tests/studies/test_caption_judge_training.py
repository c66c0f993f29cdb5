"""Laws of the judge's training: what fits what, nothing held out is read, and a few steps learn."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from diptych.backbones.caption_judge import CaptionJudge
from diptych.data.builders.concept_splits import is_held_out
from diptych.evaluate.caption_scoring import measure_judge
from diptych.studies.caption_judge_training import (
    SPLIT_SEED,
    STYLES,
    CaptionedConcept,
    caption,
    change_pictures,
    collect_texts,
    contrastive_loss,
    fitting_pairs,
    read_captioned,
    train_caption_judge,
)

NAMES = ("cat", "dog", "rose", "tent", "bus", "key", "bell", "pizza", "frog", "crab", "lemon", "star")
HELD = tuple(f"thing{number}" for number in range(200) if is_held_out(f"thing{number}", seed=SPLIT_SEED))


def concept(name: str, *tags: str) -> CaptionedConcept:
    files = {style: Path(style) / name for style in STYLES}
    return CaptionedConcept(name, tags, files, held_out=is_held_out(name, seed=SPLIT_SEED))


SHOWN = [name for name in NAMES if not is_held_out(name, seed=SPLIT_SEED)]
ANIMALS = [concept(SHOWN[0], "animal"), concept(SHOWN[1], "animal", HELD[0]), concept(HELD[1], "animal")]


def test_a_concept_is_held_out_by_its_words(tmp_path: Path) -> None:
    entries = [
        {"name": name, "tags": ["animal", "two words"], "images": {style: f"{style}/{name}.png" for style in STYLES}}
        for name in (SHOWN[0], f"{HELD[0]} face")
    ]
    (tmp_path / "concepts.json").write_text(json.dumps(entries))
    shown, held_out = read_captioned(tmp_path)
    assert not shown.held_out
    assert held_out.held_out
    assert shown.tags == ("animal", "two words")
    assert shown.files[STYLES[0]] == tmp_path / STYLES[0] / f"{SHOWN[0]}.png"
    with pytest.raises(ValueError, match=r"is no emoji set .*diptych data build emoji"):
        read_captioned(tmp_path / "none")


def test_no_text_has_a_held_out_word() -> None:
    texts = collect_texts(ANIMALS)
    assert "animal" in texts.texts
    assert caption(SHOWN[0], STYLES[1]) in texts.texts
    assert not [text for text in texts.texts for word in HELD[:2] if word in text]
    assert not texts.concepts_of[:, 2].any()
    assert (texts.named[2], texts.styled[2], texts.tagged[2]) == ([], [[], []], [])


def test_a_text_fits_all_pictures_that_it_names_and_no_other_style() -> None:
    texts = collect_texts(ANIMALS)
    said = torch.tensor([texts.texts.index(text) for text in (SHOWN[0], caption(SHOWN[0], STYLES[1]), "animal")])
    fits = fitting_pairs(texts, said, concept=torch.tensor([0, 0, 1]), style=torch.tensor([0, 1, 0]))
    assert fits.tolist() == [[True, True, False], [False, True, False], [True, True, True]]


def test_the_loss_is_nothing_where_all_that_is_right_is_chosen() -> None:
    fits = torch.tensor([[True, False, False], [False, True, True], [False, True, True]])
    assert float(contrastive_loss(50.0 * fits, fits)) == pytest.approx(2 / 3 * torch.log(torch.tensor(2.0)).item())
    assert float(contrastive_loss(torch.zeros(3, 3), fits)) == pytest.approx(torch.log(torch.tensor(3.0)).item())
    assert float(contrastive_loss(-50.0 * fits, fits)) > 30


def test_pictures_are_changed_but_not_beyond_knowing() -> None:
    images = torch.ones(16, 3, 64, 64)
    images[:, :, 20:44, 20:44] = -1
    coded: list[int] = []

    def code(some: Tensor, strength: float) -> Tensor:
        assert 0 <= strength <= 0.6
        coded.append(len(some))
        return some

    changed = change_pictures(images, torch.Generator().manual_seed(0), code)
    assert changed.shape == images.shape
    assert 4 < sum(coded) < 16
    assert changed.abs().max() <= 1
    assert 0.01 < float((changed - images).abs().mean()) < 0.5
    assert torch.equal(changed, change_pictures(images, torch.Generator().manual_seed(0), code))


def train(concepts: list[CaptionedConcept], *, num_steps: int) -> tuple[CaptionJudge, Tensor, Tensor]:
    """Features and embeddings that a linear map can bring together: of a concept and a style each its own direction."""
    texts = collect_texts(concepts)
    chance = torch.Generator().manual_seed(1)
    of_concepts, of_styles = torch.randn(len(concepts), 24, generator=chance), torch.randn(2, 24, generator=chance)
    features = of_concepts + of_styles[:, None] + 0.1 * torch.randn(3, 2, len(concepts), 24, generator=chance)
    said = torch.randn(len(concepts), 16, generator=chance), torch.randn(2, 16, generator=chance)
    embeddings = texts.concepts_of.float() @ said[0]
    for style in (0, 1):
        embeddings[texts.style_of == style] += said[1][style]
    torch.manual_seed(0)
    judge = CaptionJudge(image_dim=24, text_dim=16, width=12, dropout=0.1)
    train_caption_judge(
        judge, concepts, features, texts, embeddings, num_steps=num_steps, batch_size=64, learning_rate=1e-2, seed=5
    )
    captions = torch.tensor([texts.texts.index(caption(c.name, STYLES[1])) for c in concepts])
    return judge, features[0, 1], embeddings[captions]


def test_a_few_steps_learn_which_picture_a_caption_means() -> None:
    concepts = [concept(name, "thing") for name in SHOWN]
    judge, features, embeddings = train(concepts, num_steps=80)
    found = measure_judge(judge.place_pictures(features), judge.place_texts(embeddings))
    assert found["first"] >= 0.9
    assert found["told_apart"] >= 0.9
    assert not any(parameter.requires_grad for parameter in judge.parameters())


def test_training_is_repeatable_and_wants_something_to_show() -> None:
    concepts = [concept(name) for name in SHOWN]
    weights = [train(concepts, num_steps=2)[0].state_dict() for _ in range(2)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    with pytest.raises(ValueError, match="every concept is held out"):
        train_caption_judge(
            CaptionJudge(), ANIMALS[2:], torch.zeros(1, 2, 1, 1280), collect_texts(ANIMALS), torch.zeros(0), num_steps=1
        )

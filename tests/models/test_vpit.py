"""Laws of the VPiT model: every state predicts what comes next, every feature lands in its place."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import PretrainedConfig

from diptych.models.vpit import VPiT, build_rows, find_supervision, shown_tokens
from diptych.sequence import Batch, ImageSpan, Sequence, TextSpan, pack
from tiny_vpit import FEATURE_DIM, NUM_TOKENS, build_vpit, random_features
from tiny_xfusion import text

WIDTH, VOCABULARY = 24, 40
START, END = VOCABULARY, VOCABULARY + 1


class PassThrough(nn.Module):
    """A language model whose final states are its inputs: shows where everything lands."""

    def __init__(self) -> None:
        super().__init__()
        self.config = PretrainedConfig()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)

    def get_input_embeddings(self) -> nn.Module:
        return self.embedding

    def get_output_embeddings(self) -> nn.Module:
        return self.head

    def get_decoder(self) -> Any:
        return lambda *, inputs_embeds, use_cache: SimpleNamespace(last_hidden_state=inputs_embeds)


def image(features: Tensor, *, is_target: bool) -> tuple[TextSpan, ImageSpan, TextSpan]:
    return (
        text(START, loss=is_target),
        ImageSpan(features, NUM_TOKENS, is_target),
        text(END, loss=is_target),
    )


def two_samples() -> tuple[Batch, Tensor]:
    """A context image, a question, an answer with two images and text; and a shorter sample without images."""
    features = random_features(3)
    first = Sequence(
        (
            *image(features[0], is_target=False),
            text(3, 4),
            text(5, loss=True),
            *image(features[1], is_target=True),
            text(6, loss=True),
            *image(features[2], is_target=True),
        )
    )
    second = Sequence((text(7), text(8, 9, loss=True)))
    return pack([second, first, second], image_predicts_text=True), features


def build_pass_through() -> VPiT:
    torch.manual_seed(0)
    return VPiT(
        PassThrough(), feature_dim=FEATURE_DIM, num_image_tokens=NUM_TOKENS, token_ids=(START, END), connector="linear"
    )


def test_every_feature_lands_in_its_place_in_order() -> None:
    model = build_pass_through()
    batch, features = two_samples()
    states = model.states(batch, build_rows(batch), features)
    assert torch.equal(states[batch.is_image], model.connector(features).flatten(0, 1))
    expected = model.boundary_tokens.embed(batch.token_ids, model.language_model.embedding)
    assert torch.equal(states[~batch.is_image], expected[~batch.is_image])


def test_the_state_before_a_token_predicts_it() -> None:
    """MetaMorph: at <image_start> the first visual token, at the last but one the last, at the last <image_end>."""
    model = build_pass_through()
    batch, features = two_samples()
    found = find_supervision(batch, START)
    states = model.states(batch, build_rows(batch), features)
    embedded = model.connector(features)
    start = model.boundary_tokens.input[0]
    before = torch.cat([torch.cat((start[None], embedded[i, :-1])) for i in (1, 2)])
    assert torch.equal(states[found.visual], before)
    assert found.target_images.tolist() == [1, 2]

    def word(token: int) -> Tensor:
        return model.language_model.embedding.weight[token]

    def last(i: int) -> Tensor:
        return embedded[i, -1]

    expected = {
        (8, 0): word(7), (9, 0): word(8), (5, 0): word(4), (START, 0): word(5), (END, 0): last(1),
        (6, 0): model.boundary_tokens.input[1], (START, 1): word(6), (END, 1): last(2),
    }  # fmt: skip
    seen: dict[int, int] = {}
    labels = found.labels.tolist()
    assert labels == [8, 9, 5, START, END, 6, START, END, 8, 9]
    for position, label in zip(found.text.tolist(), labels, strict=True):
        turn = seen.get(label, 0)
        seen[label] = turn + 1
        assert torch.equal(states[position], expected.get((label, turn), expected[label, 0]))


def test_padding_changes_nothing() -> None:
    morph = build_vpit()
    batch, features = two_samples()
    start, end = morph.model.boundary_tokens.token_ids
    ids = batch.token_ids.masked_fill(batch.token_ids == START, start).masked_fill(batch.token_ids == END, end)
    for sample in range(batch.num_samples):
        alone = batch.sample_ids == sample
        own = Batch(
            **{
                **vars(batch),
                **{n: getattr(batch, n)[alone] for n in ("labels", "positions", "image_ids")},
                "token_ids": ids[alone],
                "sample_ids": torch.zeros(int(alone.sum()), dtype=torch.long),
                "draws": (0,),
            }
        )
        own_features = features if bool(own.is_image.any()) else None
        together = Batch(**{**vars(batch), "token_ids": ids})
        a = morph.model.states(together, build_rows(batch), features)[alone]
        b = morph.model.states(own, build_rows(own), own_features)
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def test_a_wrong_number_of_visual_tokens_is_refused_with_both_counts() -> None:
    model = build_pass_through()
    batch, features = two_samples()
    with pytest.raises(ValueError, match="8 visual tokens were given for 12 places"):
        model.states(batch, build_rows(batch), features[:2])


def test_a_target_image_without_its_boundary_is_refused() -> None:
    features = random_features(1)[0]
    for spans in (
        (text(3), ImageSpan(features, NUM_TOKENS, is_target=True)),
        (ImageSpan(features, NUM_TOKENS, is_target=True),),
    ):
        with pytest.raises(ValueError, match="does not stand behind its <image_start>"):
            find_supervision(pack([Sequence(spans)]), START)


@pytest.mark.parametrize("family", ["llama", "qwen2", "olmo2"])
def test_teacher_forcing_equals_step_by_step(family: str) -> None:
    """What free running predicts, the whole sequence predicts at once when it is fed those predictions."""
    morph = build_vpit(family)
    request = [{"role": "user", "content": "Draw it."}]
    (generated,) = morph.answer([request], generation_mode="image")[0]
    assert isinstance(generated, Tensor)
    prompt = morph._prompt(*_parsed(request))
    start, _ = morph.model.boundary_tokens.token_ids
    whole = pack([Sequence((*prompt.spans, text(start, loss=True), ImageSpan(generated, NUM_TOKENS, is_target=True)))])
    states = morph.model.states(whole, build_rows(whole), whole.images)
    predicted = morph.model.visual_head(states[find_supervision(whole, start).visual])
    torch.testing.assert_close(predicted, generated, atol=1e-5, rtol=1e-5)


def _parsed(request: list[dict[str, str]]) -> tuple[Any, list[Tensor]]:
    from diptych.models.conversation import parse_conversation

    return parse_conversation(request, image_size=32)


@given(st.integers(1, 256), st.floats(0, 1), st.integers(0, 2**31))
def test_as_many_visual_tokens_are_shown_whoever_draws_the_places(number: int, dropout: float, seed: int) -> None:
    """The share that is not hidden, to rounding; one at least, unless all are to be hidden."""
    shown = shown_tokens(number, dropout)
    other = shown_tokens(number, dropout, torch.Generator().manual_seed(seed))
    assert shown.sum() == other.sum()
    assert abs(int(shown.sum()) - (1 - dropout) * number) <= 1
    assert bool(shown.any()) == (dropout < 1)
    assert torch.equal(shown, shown_tokens(number, dropout))

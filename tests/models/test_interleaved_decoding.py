"""Laws of interleaved generation: cached equals uncached, a batch equals one by one, an image is whole or absent."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from diptych.models.interleaved_decoding import Piece, decode_interleaved
from diptych.models.vpit import VPiT, build_rows
from diptych.models.vpit_morph import VPiTMorph
from diptych.sequence import ImageSpan, Sequence, TextSpan, pack
from tiny_vpit import FEATURE_DIM, NUM_TOKENS, build_vpit, random_features
from tiny_xfusion import text

STOP = 2


@pytest.fixture(scope="module", params=["llama", "qwen3"])
def morph(request: pytest.FixtureRequest) -> VPiTMorph:
    return build_vpit(request.param)


def prompts(model: VPiT) -> list[Sequence]:
    """Of unequal lengths; two of them with context images."""
    start, end = model.boundary_tokens.token_ids
    features = random_features(3)
    seen = [(text(start), ImageSpan(f, NUM_TOKENS, is_target=False), text(end)) for f in features]
    return [
        Sequence((text(50, 60, 70),)),
        Sequence((*seen[0], text(80))),
        Sequence((text(90), *seen[1], text(100, 101, 102), *seen[2], text(103, 104))),
    ]


def reference(model: VPiT, prompt: Sequence, script: list[str], *, without: Sequence | None = None) -> list[Piece]:
    """Without a cache, alone, the whole sequence anew for every token, as plain as can be.

    script: what happens at each turn, "token" or "image"; so the same course is taken as in the engine.
    """
    start, end = model.boundary_tokens.token_ids
    spans: list[TextSpan | ImageSpan] = []
    pieces: list[Piece] = []

    def embed(span: TextSpan | ImageSpan) -> Tensor:
        if isinstance(span, ImageSpan):
            return model.connector(span.image)
        return model.boundary_tokens.embed(torch.tensor(span.token_ids), model.language_model.get_input_embeddings())

    def state(prefix: Sequence, drawn: list[Tensor]) -> Tensor:
        embeddings = [embed(span) for span in (*prefix.spans, *spans)]
        if drawn:
            embeddings.append(model.connector(torch.stack(drawn)))
        return model.decoder(inputs_embeds=torch.cat(embeddings)[None], use_cache=False).last_hidden_state[0, -1]

    for turn in script:
        if turn == "image":
            spans.append(text(start))
            drawn: list[Tensor] = []
            for _ in range(model.num_image_tokens):
                predicted = model.visual_head(state(prompt, drawn))
                if without is not None:
                    other = model.visual_head(state(without, drawn))
                    predicted = normalize(other + 2.0 * (predicted - other), dim=-1)
                drawn.append(predicted)
            spans += [ImageSpan(torch.stack(drawn), len(drawn), is_target=False), text(end)]
            pieces.append(torch.stack(drawn))
        else:
            logits = model.text_logits(state(prompt, [])[None])[0]
            logits[[start, end]] = -torch.inf
            token = int(logits.argmax())
            spans.append(text(token))
            if not pieces or isinstance(pieces[-1], Tensor):
                pieces.append([])
            pieces[-1].append(token)  # type: ignore[union-attr]
    return pieces


def assert_same(a: list[Piece], b: list[Piece], *, tolerance: float = 1e-5) -> None:
    assert [type(piece) for piece in a] == [type(piece) for piece in b]
    for one, other in zip(a, b, strict=True):
        if isinstance(one, Tensor):
            torch.testing.assert_close(one, other, atol=tolerance, rtol=tolerance)
        else:
            assert one == other


@torch.no_grad()
def test_a_batch_of_unequal_prompts_equals_the_uncached_reference_one_by_one(morph: VPiTMorph) -> None:
    model = morph.model
    for mode, script in (("image", ["image"]), ("text", ["token"] * 5)):
        options: Any = {"stops": set(), "max_new_tokens": 5, "generation_mode": mode}
        together = decode_interleaved(model, prompts(model), **options)
        for prompt, pieces in zip(prompts(model), together, strict=True):
            assert_same(pieces, reference(model, prompt, script))
            assert_same(pieces, decode_interleaved(model, [prompt], **options)[0])


@torch.no_grad()
def test_guidance_in_feature_space_equals_the_reference(morph: VPiTMorph) -> None:
    model = morph.model
    plain = prompts(model)
    empty = [Sequence((text(60),)), Sequence((text(61),)), Sequence((text(62, 63),))]
    options: Any = {"stops": set(), "max_new_tokens": 5, "generation_mode": "image"}
    guided = decode_interleaved(model, plain, unconditional=empty, visual_guidance_scale=2.0, **options)
    for prompt, without, pieces in zip(plain, empty, guided, strict=True):
        # Each token fed back is twice one minus the other: rounding grows threefold with every one of the four.
        assert_same(pieces, reference(model, prompt, ["image"], without=without), tolerance=1e-4)
    with pytest.raises(ValueError, match="unconditional prompt for every prompt"):
        decode_interleaved(model, plain, visual_guidance_scale=2.0, **options)


@pytest.fixture
def scripted(morph: VPiTMorph, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Lets a test say what the text head says, row by row and turn by turn."""

    def write(*scripts: list[int]) -> None:
        """scripts[i]: what row i says. One that starts an image is silent for its n tokens and <image_end>."""
        start, _ = morph.model.boundary_tokens.token_ids
        turns = [list(script) for script in scripts]
        silent = [0] * len(turns)

        def speak(self: VPiT, states: Tensor) -> Tensor:
            logits = torch.full((len(states), self.boundary_tokens.token_ids[1] + 1), -1.0)
            anyone = any(turn and not left for turn, left in zip(turns, silent, strict=True))
            silent[:] = [max(left - 1, 0) if anyone else 0 for left in silent]
            speaking = [i for i, turn in enumerate(turns) if turn and not silent[i]]
            assert len(speaking) == len(states)
            for k, i in enumerate(speaking):
                token = turns[i].pop(0)
                logits[k, token] = 1.0
                silent[i] = NUM_TOKENS + 2 if token == start else 0
            return logits

        monkeypatch.setattr(VPiT, "text_logits", speak)

    return write


def test_the_text_head_decides_when_an_image_starts(morph: VPiTMorph, scripted: Any) -> None:
    """Text, an image, text, another image, text: two images in one answer, each of exactly n visual tokens."""
    start, _ = morph.model.boundary_tokens.token_ids
    scripted([11, 12, start, 13, start, 14, STOP])
    (pieces,) = decode_interleaved(morph.model, prompts(morph.model)[:1], stops={STOP}, max_new_tokens=20)
    assert [p if isinstance(p, list) else tuple(p.shape) for p in pieces] == [
        [11, 12],
        (NUM_TOKENS, FEATURE_DIM),
        [13],
        (NUM_TOKENS, FEATURE_DIM),
        [14],
    ]
    at_once = predict_images(morph.model, prompts(morph.model)[0], pieces)
    for got, expected in zip([p for p in pieces if isinstance(p, Tensor)], at_once, strict=True):
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def predict_images(model: VPiT, prompt: Sequence, pieces: list[Piece]) -> list[Tensor]:
    """The images of an answer as the whole sequence predicts them at once."""
    start, end = model.boundary_tokens.token_ids
    spans = list(prompt.spans)
    for piece in pieces:
        if isinstance(piece, Tensor):
            spans += [text(start), ImageSpan(piece, NUM_TOKENS, is_target=True), text(end)]
        else:
            spans.append(text(*piece))
    batch = pack([Sequence(tuple(spans))])
    states = model.states(batch, build_rows(batch), batch.images)
    own = [int((batch.image_ids == i).nonzero()[0]) for i in batch.image_is_target.nonzero()[:, 0].tolist()]
    return [model.visual_head(states[first - 1 : first - 1 + NUM_TOKENS]) for first in own]


@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_conversations_in_different_phases_share_a_batch(
    morph: VPiTMorph, scripted: Any, dropout: float, guidance: float
) -> None:
    """Each answers what it answers alone: one draws while others speak or end."""
    model = morph.model
    start, _ = model.boundary_tokens.token_ids
    scripts = [start, 21, STOP], [11, 12, 13, 14, 15, 16, 17, 18, STOP], [31, STOP]
    empty = [Sequence((text(60 + number),)) for number in range(3)]
    options: Any = {"stops": {STOP}, "max_new_tokens": 20, "visual_input_dropout": dropout}
    scripted(*scripts)
    together = decode_interleaved(model, prompts(model), unconditional=empty, visual_guidance_scale=guidance, **options)
    shapes = [[p if isinstance(p, list) else "image" for p in pieces] for pieces in together]
    assert shapes == [["image", [21]], [[11, 12, 13, 14, 15, 16, 17, 18]], [[31]]]
    for number, (prompt, pieces) in enumerate(zip(prompts(model), together, strict=True)):
        scripted(scripts[number])
        own = [empty[number]]
        alone = decode_interleaved(model, [prompt], unconditional=own, visual_guidance_scale=guidance, **options)
        assert_same(pieces, alone[0], tolerance=1e-5 * 10**guidance)  # which magnifies rounding


def test_an_image_that_was_begun_is_finished(morph: VPiTMorph, scripted: Any) -> None:
    """max_new_tokens counts text; the last of them may start an image, which then is whole."""
    start, _ = morph.model.boundary_tokens.token_ids
    scripted([11, 12, start])
    (pieces,) = decode_interleaved(morph.model, prompts(morph.model)[:1], stops={STOP}, max_new_tokens=3)
    assert [type(p) for p in pieces] == [list, Tensor]
    assert len(pieces[1]) == NUM_TOKENS


def test_a_prompt_without_room_is_refused_and_no_image_starts_that_would_not_fit() -> None:
    morph = build_vpit("llama")
    start, _ = morph.model.boundary_tokens.token_ids
    model = morph.model
    model.language_model.config.max_position_embeddings = 6
    with pytest.raises(ValueError, match="prompt of 3 tokens leaves room for 3 of the 5"):
        decode_interleaved(model, [Sequence((text(5, 6, 7),))], stops=set(), max_new_tokens=9, generation_mode="image")
    with torch.no_grad():
        model.boundary_tokens.input[0] = 100 * model.boundary_tokens.input[0]
    pieces = decode_interleaved(model, [Sequence((text(5, 6, 7),))], stops=set(), max_new_tokens=9)[0]
    assert [len(p) if isinstance(p, list) else "image" for p in pieces] == [3]
    assert start not in pieces[0]


@pytest.mark.parametrize("do_sample", [False, True])
def test_logits_that_are_no_numbers_are_refused_with_the_conversation(
    monkeypatch: pytest.MonkeyPatch, do_sample: bool
) -> None:
    model, original = build_vpit("llama").model, VPiT.text_logits

    def break_the_second(self: VPiT, states: Tensor) -> Tensor:
        logits = original(self, states)
        logits[1] = torch.nan
        return logits

    monkeypatch.setattr(VPiT, "text_logits", break_the_second)
    asked = [Sequence((text(5, 6),)), Sequence((text(5, 9),))]
    with pytest.raises(ValueError, match="logits of text predicted for conversation 1 are not finite"):
        decode_interleaved(model, asked, stops=set(), max_new_tokens=3, do_sample=do_sample)


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_an_image_of_hidden_tokens_alone_is_drawn_in_one_pass(
    morph: VPiTMorph, scripted: Any, monkeypatch: pytest.MonkeyPatch, guidance: float
) -> None:
    """The same as token by token, which an image in the midst of an answer still is."""
    model = morph.model
    start, _ = model.boundary_tokens.token_ids
    empty = [Sequence((text(60 + number),)) for number in range(3)]
    options: Any = {
        "stops": {STOP},
        "max_new_tokens": 5,
        "visual_input_dropout": 1.0,
        "unconditional": empty,
        "visual_guidance_scale": guidance,
    }
    scripted(*([start, STOP] for _ in range(3)))
    stepwise = decode_interleaved(model, prompts(model), **options)
    monkeypatch.setattr("diptych.models.interleaved_decoding.start_engine", None)
    at_once = decode_interleaved(model, prompts(model), generation_mode="image", **options)
    for one, other in zip(at_once, stepwise, strict=True):
        assert_same(one, other, tolerance=1e-5 * 10**guidance)

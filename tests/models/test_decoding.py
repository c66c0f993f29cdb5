"""Laws of decoding text: cached equals uncached, batched equals one by one."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import literal_fused
from diptych.backbones.tiny_language import build_byte_tokenizer
from diptych.models.decoding import decode_text
from diptych.models.fused import FusedXFusion
from diptych.models.token_choice import choose_tokens, stop_ids
from diptych.models.xfusion import XFusion
from diptych.sequence import Sequence, TextSpan, pack
from literal_dual import literal_forward
from tiny_xfusion import FAMILIES, build_language, build_xfusion, image, text

TOKENIZER = build_byte_tokenizer()
NEW = 6


def _prompts(model: XFusion) -> list[Sequence]:
    return [
        Sequence((image(model, is_target=False, seed=1), text(5, 6, 7))),
        Sequence(
            (
                text(9, 10),
                image(model, is_target=False, seed=2),
                text(
                    11,
                ),
            )
        ),
        Sequence(
            (
                text(
                    9,
                ),
                image(model, is_target=False, seed=3),
                text(12, 13),
                image(model, is_target=False, seed=4),
                text(14, 15),
            )
        ),
    ]


def _literal_greedy(model: Any, prompt: Sequence) -> str:
    """The whole prompt anew for every token, through both towers."""
    answer: list[int] = []
    stops = stop_ids(model.text_tower.language_model, TOKENIZER)
    for _ in range(NEW):
        spans = (*prompt.spans, TextSpan(tuple(answer), (False,) * len(answer)))
        with torch.no_grad():
            forward: Any = literal_fused.literal_forward if isinstance(model, FusedXFusion) else literal_forward
            _, logits = forward(model, pack([Sequence(spans)]), torch.zeros(0, 4, 4, 4), torch.zeros(0))
        token = int(logits[-1].argmax())
        if token in stops:
            break
        answer.append(token)
    return str(TOKENIZER.decode(answer, skip_special_tokens=True)).strip()


@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "asymmetric"])
@pytest.mark.parametrize("family", FAMILIES)
def test_cached_greedy_equals_running_everything_anew_for_each_token(family: str, symmetric: bool) -> None:
    model = build_xfusion(family, symmetric=symmetric)
    prompts = _prompts(model)
    decoded = decode_text(model, prompts, tokenizer=TOKENIZER, max_new_tokens=NEW)
    assert decoded == [_literal_greedy(model, prompt) for prompt in prompts]


@pytest.mark.parametrize(
    "design",
    [
        {"x_fuse": "text"},
        {"x_fuse": "image"},
        {"x_fuse": "both", "symmetric": False},
        {"x_fuse": "text", "symmetric": False, "layers": (1,)},
        {"layer_design": "gated"},
        {"layer_design": "gated", "symmetric": False, "layers": (0, 1, 2)},
        {"layer_design": "projection"},
        {"layer_design": "single"},
    ],
    ids=str,
)
def test_cached_greedy_equals_running_everything_anew_in_every_design(design: dict[str, Any]) -> None:
    model = build_xfusion(**design)
    prompts = _prompts(model)
    decoded = decode_text(model, prompts, tokenizer=TOKENIZER, max_new_tokens=NEW)
    assert decoded == [_literal_greedy(model, prompt) for prompt in prompts]


@pytest.mark.parametrize("layers", [(0,), (2,), (1, 2)])
def test_prompts_of_unequal_length_in_one_batch_equal_one_by_one(layers: tuple[int, ...]) -> None:
    model = build_xfusion(symmetric=False, layers=layers)
    prompts = [*_prompts(model), Sequence((text(20, 21, 22),))]
    batched = decode_text(model, prompts, tokenizer=TOKENIZER, max_new_tokens=NEW)
    assert batched == [decode_text(model, [p], tokenizer=TOKENIZER, max_new_tokens=NEW)[0] for p in prompts]


def test_text_alone_is_answered_by_the_language_model_itself() -> None:
    language = build_language("qwen3")
    model = build_xfusion("qwen3", language=language)
    ids = torch.tensor([[20, 21, 22]])
    stops = sorted(stop_ids(model.text_tower.language_model, TOKENIZER))
    theirs = language.model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=NEW,
        do_sample=False,
        eos_token_id=stops,
        pad_token_id=2,
    )
    expected = str(TOKENIZER.decode(theirs[0, 3:], skip_special_tokens=True)).strip()
    assert decode_text(model, [Sequence((text(20, 21, 22),))], tokenizer=TOKENIZER, max_new_tokens=NEW) == [expected]


def test_an_answer_beyond_the_sliding_window_is_refused() -> None:
    language = build_language("mistral", sliding_window=12)
    model = build_xfusion("mistral", language=language)
    prompt = Sequence((image(model, is_target=False), text(5, 6)))
    decode_text(model, [prompt], tokenizer=TOKENIZER, max_new_tokens=5)
    with pytest.raises(ValueError, match=r"sliding window of 12"):
        decode_text(model, [prompt], tokenizer=TOKENIZER, max_new_tokens=6)


def test_a_prompt_must_end_with_text() -> None:
    model = build_xfusion()
    with pytest.raises(ValueError, match="end with text"):
        decode_text(model, [Sequence((text(5), image(model, is_target=False)))], tokenizer=TOKENIZER, max_new_tokens=2)


def test_sampling_draws_from_the_nucleus_alone() -> None:
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log().expand(2000, -1)
    generators = [torch.Generator().manual_seed(seed) for seed in range(2000)]
    assert set(choose_tokens(logits, True, 1.0, 0.6, generators).tolist()) == {0, 1}
    assert set(choose_tokens(logits, True, 1.0, 1e-6, generators).tolist()) == {0}
    assert choose_tokens(logits, False, 1.0, 1.0, generators).tolist() == [0] * 2000
    frequency = choose_tokens(logits, True, 1.0, 1.0, generators).bincount() / 2000
    torch.testing.assert_close(frequency, torch.tensor([0.5, 0.3, 0.15, 0.05]), atol=0.05, rtol=0)

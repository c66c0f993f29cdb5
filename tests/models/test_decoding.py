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


UNEQUAL = [Sequence((text(*range(20, 20 + length)),)) for length in (3, 9, 1, 6)]


@pytest.mark.parametrize("family", [*FAMILIES, "mistral with a window"])
def test_text_alone_of_unequal_length_in_one_batch_equals_one_by_one(family: str) -> None:
    """In float32 to 1e-5 (the worst of these: 5e-6), so that the tokens are the same; one call answers all."""
    options = {"sliding_window": 4} if "window" in family else {}
    language = build_language(family.split()[0], **options)
    model = build_xfusion(family.split()[0], language=language)
    logits: list[torch.Tensor] = []
    language.model.register_forward_hook(lambda module, args, output: logits.append(output.logits[:, -1]))

    def answer(prompts: list[Sequence]) -> tuple[list[str], torch.Tensor]:
        logits.clear()
        answers = decode_text(model, prompts, tokenizer=TOKENIZER, max_new_tokens=NEW)
        return answers, torch.stack(logits, dim=1)

    batched, all_logits = answer(UNEQUAL)
    for index, prompt in enumerate(UNEQUAL):
        (alone,), own_logits = answer([prompt])
        assert batched[index] == alone
        steps = own_logits.shape[1]
        torch.testing.assert_close(all_logits[index : index + 1, :steps], own_logits, atol=1e-5, rtol=0)


def test_sampled_text_does_not_depend_on_its_batch() -> None:
    """Nor on when the others end; what stands behind an end token is the batch's filling."""
    model = build_xfusion()
    options: dict[str, Any] = {"tokenizer": TOKENIZER, "max_new_tokens": 120, "do_sample": True, "temperature": 2.0}
    state = torch.get_rng_state()
    calls: list[int] = []
    model.text_tower.language_model.register_forward_hook(lambda *_: calls.append(1))
    batched = decode_text(model, UNEQUAL, seed=1, **options)
    assert len(calls) <= 120, "all answers share each step"
    assert torch.equal(torch.get_rng_state(), state)
    calls.clear()
    alone, steps = [], []
    for prompt in UNEQUAL:
        alone += decode_text(model, [prompt], seed=1, **options)
        steps.append(len(calls))
        calls.clear()
    assert batched == alone
    assert min(steps) < max(steps), "some end early"
    assert batched != decode_text(model, UNEQUAL, seed=2, **options)


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

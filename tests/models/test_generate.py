"""Laws of a morph at work: batching changes nothing, guidance 1 is no guidance, text alone is the LLM's own."""

from __future__ import annotations

from typing import Any

import numpy
import pytest
import torch
from PIL import Image

from diptych.models.generate import Morph
from tiny_xfusion import FAMILIES, build_language, build_tiny_morph

DESIGNS: list[dict[str, Any]] = [
    {},
    {"layer_design": "gated"},
    {"layer_design": "projection"},
    {"layer_design": "single"},
    {"x_fuse": "both"},
]
MORPH = build_tiny_morph()
PICTURE = Image.fromarray(numpy.random.default_rng(0).integers(0, 255, (8, 8, 3), dtype=numpy.uint8))


def _ask(*content: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": list(content)}]


def _pixels(part: Any) -> numpy.ndarray:
    assert isinstance(part, Image.Image)
    return numpy.asarray(part).astype(int)


def _close(a: Any, b: Any) -> bool:
    return int(numpy.abs(_pixels(a) - _pixels(b)).max()) <= 1


KEEPING = [design for design in DESIGNS if design.get("layer_design") != "single"]


@pytest.mark.parametrize(
    ("family", "design"),
    [
        *((family, {}) for family in FAMILIES),
        *(("llama", one) for one in (*KEEPING, {"x_fuse": "text"}, {"x_fuse": "image"}) if one),
    ],
)
def test_text_logits_are_the_language_models_bit_for_bit(family: str, design: dict[str, Any]) -> None:
    """Those of an instance that never stood in a morph, also after the morph has drawn and read."""
    morph = build_tiny_morph(family, vision_tower={"patch_size": 2, "time_conditioning": "adaln", **design})
    untouched = build_language(family).model
    ids = torch.randint(3, 200, (2, 9))
    with torch.no_grad():
        expected = untouched(input_ids=ids).logits
    assert torch.equal(morph.text_logits(ids), expected)
    morph.generate(_ask("a cat"))
    morph.generate(_ask(PICTURE, "what is it?"), max_new_tokens=2)
    assert torch.equal(morph.text_logits(ids), expected)


def test_batched_drawing_equals_one_by_one() -> None:
    asks = [_ask("a cat"), _ask("a much longer wish for a dog"), _ask("like this", PICTURE)]
    batched = MORPH.generate_batch(asks, generation_mode="image", num_images=2, seed=3)
    chunked = MORPH.generate_batch(asks, generation_mode="image", num_images=2, seed=3, max_batch_size=1)
    for answer, other, ask in zip(batched, chunked, asks, strict=True):
        alone = MORPH.generate(ask, generation_mode="image", num_images=2, seed=3)
        assert len(answer) == len(alone) == len(other) == 2
        assert all(_close(a, b) and _close(a, c) for a, b, c in zip(answer, alone, other, strict=True))
        assert not _close(*answer), "image k has noise of its own"


@pytest.mark.parametrize("design", DESIGNS)
def test_several_pictures_of_one_prompt_read_it_once_and_are_those_drawn_alone(design: dict[str, Any]) -> None:
    morph = build_tiny_morph(vision_tower={"patch_size": 2, **design})
    together = morph.generate(_ask("like this", PICTURE), generation_mode="image", num_images=3)
    computed = morph.model.text_states.num_computed
    for k, picture in enumerate(together):
        alone = morph.generate_batch(
            [_ask("like this", PICTURE)], generation_mode="image", num_images=k + 1, max_batch_size=1
        )[0][k]
        assert _close(picture, alone)
    morph.generate(_ask("like this", PICTURE), generation_mode="image", num_images=1)
    before = morph.model.text_states.num_computed
    morph.generate(_ask("like this", PICTURE), generation_mode="image", num_images=1)
    assert computed == morph.model.text_states.num_computed - before, "as many text tokens for three as for one"


def test_a_seed_is_a_picture() -> None:
    draw = lambda seed: MORPH.generate(_ask("a cat"), seed=seed)[0]  # noqa: E731
    assert _pixels(draw(1)).tolist() == _pixels(draw(1)).tolist()
    assert not _close(draw(1), draw(2))


def test_each_conversation_may_have_a_seed_of_its_own() -> None:
    asks, seeds = [_ask("a cat"), _ask("like this", PICTURE), _ask("a cat")], [4, 5, 6]
    drawn = MORPH.generate_batch(asks, generation_mode="image", num_images=2, seed=seeds)
    for answer, ask, seed in zip(drawn, asks, seeds, strict=True):
        alone = MORPH.generate(ask, generation_mode="image", num_images=2, seed=seed)
        assert all(_close(a, b) for a, b in zip(answer, alone, strict=True))
    assert not _close(drawn[0][0], drawn[2][0])
    options: dict[str, Any] = {"generation_mode": "text", "max_new_tokens": 4, "do_sample": True}
    texts = MORPH.generate_batch(asks, seed=seeds, **options)
    assert texts == [MORPH.generate(ask, seed=seed, **options) for ask, seed in zip(asks, seeds, strict=True)]
    with pytest.raises(ValueError, match="2 seeds for 3 conversations"):
        MORPH.generate_batch(asks, seed=[1, 2])


def test_guidance_of_1_is_the_conditional_field() -> None:
    """And costs one evaluation, not two; other scales move the picture."""
    seen: list[int] = []
    denoise = MORPH.model.denoise

    def counted(x, *rest):  # type: ignore[no-untyped-def]
        seen.append(len(x))
        return denoise(x, *rest)

    MORPH.model.denoise = counted  # type: ignore[method-assign]
    try:
        plain = MORPH.generate(_ask("a cat"), guidance_scale=1.0, seed=5)[0]
        nearly = MORPH.generate(_ask("a cat"), guidance_scale=1.0 + 1e-6, seed=5)[0]
        strong = MORPH.generate(_ask("a cat"), guidance_scale=30.0, seed=5)[0]
    finally:
        del MORPH.model.denoise
    assert seen == [1, 1, 2, 2, 2, 2]
    assert _close(plain, nearly)
    assert not _close(plain, strong)


def test_an_image_among_the_inputs_gives_text_and_words_alone_give_an_image() -> None:
    drawn, told = MORPH.generate_batch([_ask("a cat"), _ask(PICTURE, "what is this?")], max_new_tokens=4)
    assert isinstance(drawn[0], Image.Image)
    assert isinstance(told[0], str)


def test_the_answer_depends_on_the_image() -> None:
    other = Image.new("RGB", (8, 8), "white")
    told = [MORPH.generate(_ask(picture, "what?"), max_new_tokens=8)[0] for picture in (PICTURE, other)]
    assert told[0] != told[1]


def test_text_mode_without_images_is_the_language_models_own_answer() -> None:
    morph: Morph = MORPH
    ids = morph.tokenizer(
        "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n", add_special_tokens=False, return_tensors="pt"
    )
    theirs = morph.language_model.generate(
        **{k: ids[k] for k in ("input_ids", "attention_mask")}, max_new_tokens=5, do_sample=False, pad_token_id=2
    )
    expected = morph.tokenizer.decode(theirs[0, ids["input_ids"].shape[1] :], skip_special_tokens=True).strip()
    assert morph.generate(_ask("hi"), generation_mode="text", max_new_tokens=5) == [expected]


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"generation_mode": "sound"}, "sound"),
        ({"num_images": 0}, "num_images"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"num_inference_steps": 0}, "num_inference_steps"),
        ({"top_p": 0.0}, "top_p"),
        ({"temperature": 0.0}, "temperature"),
        ({"sampler": "magic"}, "magic"),
    ],
)
def test_options_out_of_range_are_refused_by_name(options: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        MORPH.generate(_ask("a cat"), **options)


def test_the_recipes_sampler_and_steps_are_those_of_a_call_that_names_none() -> None:
    tower = {"patch_size": 2, "time_conditioning": "adaln"}
    morph = build_tiny_morph(vision_tower=tower, sample={"sampler": "heun", "num_inference_steps": 3})
    (drawn,) = morph.generate(_ask("a cat"), generation_mode="image", seed=1)
    for options, same in (
        ({"sampler": "heun", "num_inference_steps": 3}, True),
        ({"sampler": "euler"}, False),
        ({"num_inference_steps": 2}, False),
    ):
        (told,) = morph.generate(_ask("a cat"), generation_mode="image", seed=1, **options)
        assert numpy.array_equal(_pixels(told), _pixels(drawn)) == same, options


def test_a_conversation_without_a_user_is_refused() -> None:
    with pytest.raises(ValueError, match="user"):
        MORPH.generate([{"role": "assistant", "content": "hm"}])


def test_reconstruction_is_the_autoencoders_there_and_back() -> None:
    """The fake one is exact for grey images."""
    grey = Image.fromarray(numpy.random.default_rng(1).integers(0, 255, (8, 8), dtype=numpy.uint8)).convert("RGB")
    assert "reconstructs" in MORPH.abilities
    assert _close(MORPH.reconstruct([grey], seed=3)[0], grey)

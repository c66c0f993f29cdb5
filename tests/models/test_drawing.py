"""Laws of guidance: one batch gives what separate passes give, and each scale weighs what it says."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from diptych.data.samples import Message
from diptych.data.tokenize import drop_images, drop_text
from diptych.diffusion.path import PREDICTIONS, SCHEDULES, latest_time, place_on_path, prediction_target
from diptych.models.drawing import draw_latents, guided_forms
from diptych.sequence import pack
from diptych.settings import ObjectiveConfig
from tiny_xfusion import CHANNELS, SIZE, build_streams, build_tiny_morph, build_xfusion

FORMS = [
    [("text", 5), ("context", 1), ("text", 2), ("target", 1)],
    [("context", 1), ("text", 2), ("target", 1)],
    [("text", 2), ("target", 1)],
]
STEPS = 3
EDITING = {"image_cond_dropout_prob": 0.1}


def literal(model: Any, forms: list[Any], noise: Tensor, text: float, image: float) -> Tensor:
    """Every form by itself, everything anew in every step."""
    x = noise
    for step in range(STEPS):
        t = torch.full((len(x),), 1 - step / STEPS)
        each = []
        for prompts in forms:
            batch = pack(prompts)
            plan = model.plan(batch)
            each.append(model.denoise(x, t, batch, plan, model.prefill(batch, plan)))
        full, no_text, nothing = each
        x = x - (nothing + image * (no_text - nothing) + text * (full - no_text)) / STEPS
    return x


DESIGNS: list[dict[str, Any]] = [
    {},
    {"layer_design": "gated"},
    {"layer_design": "projection"},
    {"layer_design": "single"},
    {"x_fuse": "text"},
    {"x_fuse": "image"},
    {"x_fuse": "both", "symmetric": False},
]


@torch.no_grad()
@pytest.mark.parametrize("design", DESIGNS, ids=str)
def test_one_batch_equals_separate_passes(design: dict[str, Any]) -> None:
    model = build_xfusion(**design)
    forms = [build_streams([shape, shape], model, seed=number) for number, shape in enumerate(FORMS)]
    noise = torch.randn(2, CHANNELS, SIZE, SIZE)
    drawn = draw_latents(
        model,
        forms,
        noise,
        objective=ObjectiveConfig(),
        guidance_scale=3.0,
        image_guidance_scale=1.7,
        num_steps=STEPS,
        sampler="euler",
    )
    torch.testing.assert_close(drawn, literal(model, forms, noise, 3.0, 1.7), atol=1e-4, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("design", DESIGNS, ids=str)
def test_no_step_repeats_what_prompts_are(design: dict[str, Any]) -> None:
    """Clean images and text, in both towers, once for all steps; of the steps, one pass each for all guidance."""
    model = build_xfusion(**design)
    forms = [build_streams([shape, shape], model, seed=number) for number, shape in enumerate(FORMS)]
    ran: list[str] = []
    for name in ("prefill", "denoise"):
        own = getattr(model, name)
        setattr(model, name, lambda *given, name=name, own=own, **more: ran.append(name) or own(*given, **more))
    noise = torch.randn(2, CHANNELS, SIZE, SIZE)
    options: dict[str, Any] = {"guidance_scale": 3.0, "image_guidance_scale": 1.7, "sampler": "euler"}
    texts = []
    for num_steps in (2, 5):
        ran.clear()
        before = model.text_states.num_computed
        draw_latents(model, forms, noise, objective=ObjectiveConfig(), num_steps=num_steps, **options)
        texts.append(model.text_states.num_computed - before)
        assert ran == ["prefill", *["denoise"] * num_steps]
    assert texts[0] == texts[1]


@torch.no_grad()
@pytest.mark.parametrize("sampler", ["euler", "heun"])
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_what_is_predicted_rightly_is_drawn(prediction: Any, schedule: Any, sampler: str) -> None:
    """The exact prediction for a single datum leads to it from any noise, by every schedule and at shifted times."""
    model = build_xfusion()
    data, noise = torch.randn(2, 2, CHANNELS, SIZE, SIZE).unbind()
    asked: dict[float, None] = {}

    def exact(x: Tensor, t: Tensor, *_: Any) -> Tensor:
        asked[round(float(t[0]), 5)] = None
        place = place_on_path(t, x, schedule)
        return prediction_target(
            data, (x - place.data * data) / place.noise, t, prediction=prediction, schedule=schedule
        )

    model.denoise = exact
    objective = ObjectiveConfig(prediction=prediction, schedule=schedule, timestep_shift=2.0)
    prompts, num_steps = [build_streams([[("text", 2), ("target", 1)]] * 2, model)], 200
    drawn = draw_latents(
        model, prompts, noise, objective=objective, guidance_scale=1.0, num_steps=num_steps, sampler=sampler
    )
    steps = [1 - step / num_steps for step in range(num_steps)]
    shifted = [latest_time(prediction, schedule) * 2 * u / (1 + u) for u in steps]
    assert list(asked)[:num_steps] == pytest.approx(shifted, abs=1e-4)
    torch.testing.assert_close(drawn, data, atol=0.05, rtol=0)


@torch.no_grad()
def test_scale_1_is_no_guidance() -> None:
    model = build_xfusion()
    forms = [build_streams([shape], model, seed=number) for number, shape in enumerate(FORMS)]
    noise = torch.randn(1, CHANNELS, SIZE, SIZE)
    options: dict[str, Any] = {"objective": ObjectiveConfig(), "num_steps": STEPS, "sampler": "heun"}
    alone = draw_latents(model, forms[:1], noise, guidance_scale=1.0, **options)
    guided = draw_latents(model, forms, noise, guidance_scale=1.0, image_guidance_scale=1.0, **options)
    torch.testing.assert_close(guided, alone, atol=1e-5, rtol=1e-5)


def test_forms_lose_text_then_images() -> None:
    messages = (Message("user", ("Make it red.", 0)), Message("assistant", (1,)), Message("user", ("Now blue.",)))
    forms = guided_forms(messages, negative_prompt="", by_text=True, by_images=True)
    assert forms == [messages, drop_text(messages), drop_images(drop_text(messages))]
    assert [m.parts for m in forms[1]] == [(0,), (1,), ()]
    assert [m.parts for m in forms[2]] == [(), (1,), ()]
    assert guided_forms(messages, negative_prompt="", by_text=False, by_images=False) == [messages]
    assert guided_forms(messages, negative_prompt="ugly", by_text=True, by_images=False)[1][-1].parts == ("ugly",)


def test_image_guidance_changes_an_edit_and_no_guidance_does_not() -> None:
    morph = build_tiny_morph(objective=EDITING)
    picture = Image.new("RGB", (8, 8), "red")
    request = [{"role": "user", "content": ["Make it blue.", picture]}]

    def draw(**options: Any) -> bytes:
        (drawn,) = morph.generate(request, generation_mode="image", seed=1, **options)
        assert isinstance(drawn, Image.Image)
        return drawn.tobytes()

    plain = draw(guidance_scale=1.0)
    assert draw(guidance_scale=1.0, image_guidance_scale=1.0) == plain
    assert draw(guidance_scale=1.0, image_guidance_scale=4.0) != plain
    assert draw(guidance_scale=4.0) != plain


def test_a_request_without_images_has_nothing_to_be_guided_to_by_images() -> None:
    messages = (Message("user", ("Draw red.",)), Message("assistant", (0,)), Message("user", ("Now blue.",)))
    _, away, nothing = guided_forms(messages, negative_prompt="ugly", by_text=True, by_images=True)
    assert nothing == away


def test_image_guidance_leaves_a_request_without_images_as_it_is_and_costs_it_nothing() -> None:
    morph = build_tiny_morph(objective=EDITING)
    ask = [{"role": "user", "content": "a cat"}]
    edit = [{"role": "user", "content": ["Make it blue.", Image.new("RGB", (8, 8), "red")]}]
    options: dict[str, Any] = {"generation_mode": "image", "negative_prompt": "ugly", "guidance_scale": 3.0}
    seen: list[int] = []
    denoise = morph.model.denoise
    morph.model.denoise = lambda x, *rest: seen.append(len(x)) or denoise(x, *rest)  # type: ignore[method-assign]
    plain, scaled = (morph.generate(ask, image_guidance_scale=scale, **options)[0] for scale in (1.0, 5.0))
    assert seen == [2, 2, 2, 2]
    together = morph.generate_batch([ask, edit], image_guidance_scale=5.0, **options)
    alone = morph.generate(edit, image_guidance_scale=5.0, **options)
    for drawn, wanted in ((scaled, plain), (together[0][0], plain), (together[1][0], alone[0])):
        assert isinstance(drawn, Image.Image)
        assert isinstance(wanted, Image.Image)
        assert abs(np.asarray(drawn).astype(int) - np.asarray(wanted).astype(int)).max() <= 1


def test_guidance_that_nothing_was_learnt_for_is_refused() -> None:
    ask = [{"role": "user", "content": "a cat"}]
    untrained = build_tiny_morph(objective={"text_cond_dropout_prob": 0})
    morph = build_tiny_morph()
    textless = build_tiny_morph(objective={"text_cond_dropout_prob": 0, "image_cond_dropout_prob": 0.1})
    for model, name, needs in (
        (untrained, "guidance_scale", "text"),
        (untrained, "image_guidance_scale", "text"),
        (morph, "image_guidance_scale", "image"),
        (textless, "image_guidance_scale", "text"),
    ):
        with pytest.raises(ValueError, match=rf"^{name} 2 needs a model trained with objective.{needs}_cond_dropout_p"):
            model.generate(ask, **{name: 2.0})
    with pytest.raises(ValueError, match="image_guidance_scale must be a number"):
        morph.generate(ask, image_guidance_scale=float("nan"))
    for other in (morph, untrained):
        options: dict[str, Any] = {"guidance_scale": 1.0} if other is morph else {}
        with pytest.raises(ValueError, match="negative_prompt is what guidance leads away from"):
            other.generate(ask, negative_prompt="ugly", **options)

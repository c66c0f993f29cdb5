"""Images drawn after prompts: what no step changes is computed once, and all guidance shares a batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from diptych.data.samples import Message
from diptych.data.tokenize import drop_images, drop_text
from diptych.diffusion.path import latest_time, velocity_of
from diptych.diffusion.sampler import SAMPLERS, guide
from diptych.models.xfusion_building import XFusionModel
from diptych.sequence import Sequence as Stream
from diptych.sequence import pack
from diptych.settings import ObjectiveConfig


def guided_forms(
    messages: tuple[Message, ...], *, negative_prompt: str, by_text: bool, by_images: bool
) -> list[tuple[Message, ...]]:
    """The conversation, and what it is to be guided away from: itself without text (or with `negative_prompt` in the
    last user turn), and without text and images (arXiv 2211.09800).

    Where the requests hold no image the last two are the same, so that image guidance adds nothing."""
    forms = [messages]
    if by_text or by_images:
        emptied = list(drop_text(messages))
        if negative_prompt:
            last = max(index for index, message in enumerate(emptied) if message.role == "user")
            emptied[last] = Message("user", (*emptied[last].parts, negative_prompt))
        forms.append(tuple(emptied))
    if by_images:
        forms.append(drop_images(drop_text(messages)) if holds_images(messages) else forms[1])
    return forms


def holds_images(messages: tuple[Message, ...]) -> bool:
    """Whether a request holds an image: one that image guidance leads to."""
    return drop_images(messages) != messages


@torch.no_grad()
def draw_latents(
    model: XFusionModel,
    forms: Sequence[Sequence[Stream]],
    noise: Tensor,
    *,
    objective: ObjectiveConfig,
    guidance_scale: float,
    image_guidance_scale: float = 1.0,
    num_steps: int,
    sampler: str,
    context_features: Tensor | None = None,
) -> Tensor:
    """Samples latents [I, C, h, w] from noise, one image at the end of each prompt.

    forms: one list of I prompts for each of `guided_forms`, in their order. context_features [Ic, n, F]: of the images
    that the prompts hold, form after form, where the tower reads features. Raises ValueError for an unknown sampler.
    """
    if sampler not in SAMPLERS:
        raise ValueError(f"unknown sampler {sampler!r}; choose one of: {', '.join(SAMPLERS)}")
    device, copies = model.vision_tower.embedder.position.device, len(forms)
    packed = pack([prompt for prompts in forms for prompt in prompts])
    plan = model.plan(packed).to(device)
    batch = packed.to(device)
    features = None if context_features is None else context_features.to(device)
    prefilled: Any = model.prefill(batch, plan, context_features=features)

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        predicted = model.denoise(x.repeat(copies, 1, 1, 1), t.repeat(copies), batch, plan, prefilled)
        full, *without = predicted.chunk(copies)
        if without:
            full = guide(full, without[0], guidance_scale)
        if len(without) == 2:
            full = full + guide(without[0], without[1], image_guidance_scale) - without[0]
        return velocity_of(full, x, t, prediction=objective.prediction, schedule=objective.schedule)

    start = latest_time(objective.prediction, objective.schedule)
    return SAMPLERS[sampler](
        velocity, noise.to(device), num_steps=num_steps, shift=objective.timestep_shift, start=start
    )

"""P7, and guidance: what sampling saves by computing each prompt once, and by one batch for all guidance.

P7: 20 denoising steps with classifier-free guidance, 256 text tokens (and the same number for the prompt that is guided
away from) and 64 image tokens; width 512, 6 layers, fp32, two threads. Recomputing runs text and image anew in every
step; reuse runs the text once. Both give the same image. Guidance: one image, both prompts in one batch or in two.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from torch import Tensor

from diptych.models.drawing import draw_latents
from diptych.models.xfusion import XFusion
from diptych.sequence import ImageSpan, Sequence, TextSpan, pack
from diptych.settings import ObjectiveConfig
from paired import count_flops, measure_ratio, print_table
from routing import CHANNELS, build_model

SIZE = 16  # 64 image tokens
NUM_STEPS, SCALE = 20, 3.0


def build_prompts(num_text: int) -> list[list[Sequence]]:
    """One image's prompt, and the one that it is guided away from."""
    target = ImageSpan(torch.zeros(CHANNELS, SIZE, SIZE), (SIZE // 2) ** 2, is_target=True)
    forms = []
    for _ in range(2):
        ids = tuple(torch.randint(3, 250, (num_text,)).tolist())
        forms.append([Sequence((TextSpan(ids, (False,) * num_text), target))])
    return forms


@torch.no_grad()
def recompute(model: XFusion, forms: list[list[Sequence]], noise: Tensor, num_steps: int) -> Tensor:
    """The literal loop: every step runs everything."""
    batch = pack([prompt for prompts in forms for prompt in prompts])
    plan = model.plan(batch)
    x = noise
    for step in range(num_steps):
        now, then = 1 - step / num_steps, 1 - (step + 1) / num_steps
        t = torch.full((2 * len(x),), now)
        velocity = model.denoise(x.repeat(2, 1, 1, 1), t, batch, plan, model.prefill(batch, plan))
        with_text, without = velocity.chunk(2)
        x = x + (then - now) * (without + SCALE * (with_text - without))
    return x


@torch.no_grad()
def in_two_passes(model: XFusion, forms: list[list[Sequence]], noise: Tensor, num_steps: int) -> Tensor:
    """The prompts one after the other in every step; text computed once."""
    kept = []
    for prompts in forms:
        batch = pack(prompts)
        plan = model.plan(batch)
        kept.append((batch, plan, model.prefill(batch, plan)))
    x = noise
    for step in range(num_steps):
        now, then = 1 - step / num_steps, 1 - (step + 1) / num_steps
        with_text, without = (model.denoise(x, torch.full((len(x),), now), *rest) for rest in kept)
        x = x + (then - now) * (without + SCALE * (with_text - without))
    return x


def reuse(model: XFusion, forms: list[list[Sequence]], noise: Tensor, num_steps: int) -> Tensor:
    return draw_latents(
        model,
        forms,
        noise,
        objective=ObjectiveConfig(),
        guidance_scale=SCALE,
        num_steps=num_steps,
        sampler="euler",
    )


def check_equal(one: Callable[[], Tensor], other: Callable[[], Tensor]) -> None:
    difference = (one() - other()).abs().max().item()
    if difference > 1e-4:
        raise ValueError(f"both sides must draw the same image; they differ by {difference}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=9)
    options = parser.parse_args()
    torch.set_num_threads(2)
    rows = []
    model = build_model(latent_size=SIZE)
    noise = torch.randn(1, CHANNELS, SIZE, SIZE)
    forms = build_prompts(256)
    slow, fast = (lambda: recompute(model, forms, noise, NUM_STEPS)), (lambda: reuse(model, forms, noise, NUM_STEPS))
    check_equal(slow, fast)
    ratio = measure_ratio(slow, fast, pairs=options.pairs, warm=1)
    text, image = 2 * 256, 2 * 64
    formula = NUM_STEPS * (text + image) / (text + NUM_STEPS * image)
    rows.append(
        [
            "P7 recompute / reuse of text, 20 steps",
            f"{formula:.2f}",
            f"{count_flops(slow) / count_flops(fast):.2f}",
            f">= {0.95 * formula:.2f}",
            f"{ratio.median:.2f} ({ratio.low:.2f}-{ratio.high:.2f})",
        ]
    )
    for num_text in (16, 256):
        forms_of = build_prompts(num_text)
        slow = lambda forms=forms_of: in_two_passes(model, forms, noise, NUM_STEPS)  # noqa: E731
        fast = lambda forms=forms_of: reuse(model, forms, noise, NUM_STEPS)  # noqa: E731
        check_equal(slow, fast)
        ratio = measure_ratio(slow, fast, pairs=options.pairs, warm=1)
        rows.append(
            [
                f"guidance in two passes / one batch, one image, {num_text} text tokens",
                "-",
                f"{count_flops(slow) / count_flops(fast):.2f}",
                ">= 1.4",
                f"{ratio.median:.2f} ({ratio.low:.2f}-{ratio.high:.2f})",
            ]
        )
    print_table("Sampling, two threads", ["ratio", "formula", "FLOPs", "goal, time", "time, median (quartiles)"], rows)


if __name__ == "__main__":
    main()

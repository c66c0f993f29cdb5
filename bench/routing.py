"""P1, P2, P2c: what exact routing saves in a training step (forward, backward), against computing both towers.

A symmetric tower of 6 layers, width 512, in the proportions of Llama-3.2-1B (4 query heads to a key head, an MLP
4 times the width); 256 text and 256 image tokens a sample; fp32, two threads. --designs: the other layer designs, too;
what they can save is less where both towers are part of the design, and their limits are their FLOPs.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from both_towers import BothTowers
from diptych.backbones.tiny_language import build_tiny_language_model
from diptych.models.fused import FusedXFusion
from diptych.models.text_states import FrozenText, TextStates
from diptych.models.xfusion import XFusion
from diptych.nn.towers.text import TextTower
from diptych.nn.towers.vision_tower import VisionTower
from diptych.sequence import IGNORE_INDEX, ImageSpan, Sequence, TextSpan, pack
from paired import count_flops, measure_ratio, print_table

TOKENS, CHANNELS, SIZE, PATCH = 256, 4, 32, 2
LIMITS = {"P1": 2.0, "P2": 2.5, "P2c": 10 / 3}
GOALS = {"P1": 1.75, "P2": 2.4, "P2c": 3.0}
DESIGNS: tuple[dict[str, Any], ...] = (
    {"layer_design": "projection"},
    {"layer_design": "gated"},
    {"x_fuse": "text"},
    {"x_fuse": "image"},
    {"x_fuse": "both"},
)
FLOP_GOALS = {"P1": 1.98, "P2": 2.4, "P2c": 3.0}


def build_model(latent_size: int = SIZE, **design: Any) -> Any:
    torch.manual_seed(0)
    language = build_tiny_language_model(
        "llama",
        hidden_size=512,
        intermediate_size=2048,
        num_hidden_layers=6,
        num_attention_heads=8,
        num_key_value_heads=2,
        initializer_range=0.02,
    )
    config = language.model.config
    tower = VisionTower(
        language.model,
        layers=tuple(range(6)),
        latent_channels=CHANNELS,
        latent_size=latent_size,
        patch_size=PATCH,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_attention_heads=config.num_attention_heads,
        num_key_value_heads=config.num_key_value_heads,
        adaln=False,
        boundary_tokens=False,
        copy_layers=True,
        head_dim=config.head_dim if design.get("layer_design") == "projection" else None,
        **design,
    )
    torch.nn.init.normal_(tower.head.linear.weight, std=0.02)
    text = TextTower(language.model)
    with torch.no_grad():
        for name, parameter in tower.named_parameters():
            if "gamma" in name or "mix" in name:
                parameter.add_(0.3)  # what starts at zero would have no gradient to compute
    kind = FusedXFusion if tower.is_fused else XFusion
    return kind(text, tower, TextStates(text, range(6)))


def build_sequences(*, reading: bool, num_samples: int) -> list[Sequence]:
    sequences = []
    for draw in range(num_samples):
        ids = tuple(torch.randint(3, 250, (TOKENS,)).tolist())
        span = TextSpan(ids, (reading,) * TOKENS)
        image = ImageSpan(torch.randn(CHANNELS, SIZE, SIZE), TOKENS, is_target=not reading)
        sequences.append(Sequence((image, span) if reading else (span, image), draw=draw))
    return sequences


def build_steps(
    model: Any, *, reading: bool, cached: bool, num_samples: int
) -> tuple[Callable[[], float], Callable[[], float]]:
    """(compute both, routed): each runs one step and returns its loss; the two losses are the same number."""
    batch = pack(build_sequences(reading=reading, num_samples=num_samples))
    plan = model.plan(batch)
    both = BothTowers(model, batch)
    num_targets = int(batch.image_is_target.sum())
    noised, t = torch.randn(num_targets, CHANNELS, SIZE, SIZE), torch.rand(num_targets)
    labels = batch.labels[batch.labels != IGNORE_INDEX]
    frozen: FrozenText | None = model.text_states.gather(batch, plan) if cached else None

    def finish(outputs: tuple[torch.Tensor | None, torch.Tensor | None]) -> float:
        velocity, logits = outputs
        loss = cross_entropy(logits, labels) if logits is not None else velocity.square().mean()  # type: ignore[union-attr]
        for parameter in model.parameters():
            parameter.grad = None
        loss.backward()
        return loss.item()

    return (
        lambda: finish(both.forward(noised, t)),
        lambda: finish(model(batch, plan, noised, t, frozen)),
    )


def measure(
    *,
    num_samples: int = 2,
    pairs: int = 9,
    clock: Callable[[], float] = time.perf_counter,
    design: dict[str, Any] | None = None,
) -> list[list[str]]:
    model = build_model(**(design or {}))
    spoken = "".join(
        f", {value}" if key == "layer_design" else f", X-Fuse {value}" for key, value in (design or {}).items()
    )
    rows = []
    for name, what, reading, cached in (
        ("P1", "both / routed, image to text", True, False),
        ("P2", "both / no-grad text prefix, text to image", False, False),
        ("P2c", "both / cached text, text to image", False, True),
    ):
        slow, fast = build_steps(model, reading=reading, cached=cached, num_samples=num_samples)
        losses = slow(), fast()
        if abs(losses[0] - losses[1]) > 1e-4 * abs(losses[0]):
            raise ValueError(f"{name}: both towers give loss {losses[0]}, routing {losses[1]}; they must be equal")
        flops = count_flops(slow) / count_flops(fast)
        if not design and flops < FLOP_GOALS[name]:
            raise ValueError(f"{name}: routing saves {flops:.3f} of FLOPs, below its goal of {FLOP_GOALS[name]}")
        ratio = measure_ratio(slow, fast, pairs=pairs, warm=1, clock=clock)
        print(f"{name}: FLOPs {flops:.3f}, time {ratio.median:.2f}", file=sys.stderr, flush=True)
        rows.append(
            [
                f"{name} {what}{spoken}",
                "-" if design else f"{LIMITS[name]:.2f}",
                f"{flops:.3f}",
                "-" if design else f">= {GOALS[name]}",
                f"{ratio.median:.2f} ({ratio.low:.2f}-{ratio.high:.2f})",
                f"{ratio.slow_seconds * 1000:.0f} / {ratio.fast_seconds * 1000:.0f} ms",
            ]
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument(
        "--cpu-time", action="store_true", help="one thread, CPU seconds: for a machine that others load"
    )
    parser.add_argument("--designs", action="store_true", help="the other layer designs as well")
    options = parser.parse_args()
    torch.set_num_threads(1 if options.cpu_time else 2)
    clock = time.process_time if options.cpu_time else time.perf_counter
    rows = measure(pairs=options.pairs, clock=clock)
    for design in DESIGNS if options.designs else ():
        rows += measure(pairs=options.pairs, clock=clock, design=design)
    columns = ["ratio", "limit", "FLOPs", "goal, time", "time, median (quartiles)", "fastest steps"]
    print_table("Routing, CPU seconds of one thread" if options.cpu_time else "Routing, two threads", columns, rows)


if __name__ == "__main__":
    main()

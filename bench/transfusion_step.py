"""P11: a step of the PyPI package transfusion-pytorch against our single tower, at equal parameters and tokens.

Both are one transformer, all of it trained, on text (cross-entropy on every token) and then an image (denoising): width
512, 6 layers, 256 text and 256 image tokens of 16 dimensions a sample, 4 samples, fp32, two threads. Our MLP is widened
until both have as many parameters. The package is no dependency of Diptych; to measure:
pip install --no-deps --target DIR transfusion-pytorch and what it imports, then PYTHONPATH=DIR.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from diptych.backbones.tiny_language import build_tiny_language_model
from diptych.models.fused import FusedXFusion
from diptych.models.text_states import TextStates
from diptych.nn.towers.text import TextTower
from diptych.nn.towers.vision_tower import VisionTower
from diptych.sequence import ImageSpan, Sequence, TextSpan, pack
from paired import count_flops, measure_ratio, print_table

WIDTH, LAYERS, HEADS, TOKENS, SAMPLES = 512, 6, 8, 256, 4
CHANNELS, SIZE, PATCH = 4, 32, 2
VOCABULARY = 256


def build_theirs() -> Any:
    try:
        from transfusion_pytorch import Transfusion  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise SystemExit(f"{error}: install transfusion-pytorch to measure against it (see above)") from None
    torch.manual_seed(0)
    return Transfusion(
        num_text_tokens=VOCABULARY,
        dim_latent=CHANNELS * PATCH**2,
        modality_default_shape=(TOKENS,),
        transformer={"dim": WIDTH, "depth": LAYERS, "dim_head": WIDTH // HEADS, "heads": HEADS},
        prob_uncond=0.0,
        velocity_consistency_loss_weight=0.0,
    )


def build_ours(intermediate_size: int) -> FusedXFusion:
    torch.manual_seed(0)
    language = build_tiny_language_model(
        "llama",
        hidden_size=WIDTH,
        intermediate_size=intermediate_size,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        initializer_range=0.02,
    )
    tower = VisionTower(
        language.model,
        layers=tuple(range(LAYERS)),
        latent_channels=CHANNELS,
        latent_size=SIZE,
        patch_size=PATCH,
        hidden_size=WIDTH,
        intermediate_size=intermediate_size,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        adaln=True,
        boundary_tokens=False,
        copy_layers=True,
        layer_design="single",
    )
    text = TextTower(language.model)
    return FusedXFusion(text, tower, TextStates(text, range(LAYERS)))


def num_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def match_parameters(wanted: int) -> FusedXFusion:
    """Our tower whose MLP is wide enough for `wanted` trained parameters, to the nearest 8."""
    one, two = (num_parameters(build_ours(size)) for size in (512, 1024))
    width = 512 + (wanted - one) * 512 / (two - one)
    return build_ours(max(8, round(width / 8) * 8))


def build_step_of_theirs(model: Any) -> Callable[[], float]:
    samples = [
        [torch.randint(0, VOCABULARY, (TOKENS,)), torch.randn(TOKENS, CHANNELS * PATCH**2)] for _ in range(SAMPLES)
    ]

    def step() -> float:
        model.zero_grad(set_to_none=True)
        loss = model(samples)
        loss.backward()
        return float(loss)

    return step


def build_step_of_ours(model: FusedXFusion) -> Callable[[], float]:
    sequences = []
    for draw in range(SAMPLES):
        ids = tuple(torch.randint(3, 250, (TOKENS,)).tolist())
        image = ImageSpan(torch.randn(CHANNELS, SIZE, SIZE), TOKENS, is_target=True)
        sequences.append(Sequence((TextSpan(ids, (True,) * TOKENS), image), draw=draw))
    batch = pack(sequences)
    plan = model.plan(batch)
    target = torch.randn(SAMPLES, CHANNELS, SIZE, SIZE)

    def step() -> float:
        model.zero_grad(set_to_none=True)
        velocity, logits = model(batch, plan, torch.randn_like(target), torch.rand(SAMPLES))
        assert isinstance(velocity, Tensor)
        assert isinstance(logits, Tensor)
        loss = cross_entropy(logits, plan.labels) + (velocity - target).square().mean()
        loss.backward()
        return float(loss)

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=9)
    options = parser.parse_args()
    torch.set_num_threads(2)
    theirs = build_theirs()
    ours = match_parameters(num_parameters(theirs))
    slow, fast = build_step_of_theirs(theirs), build_step_of_ours(ours)
    ratio = measure_ratio(slow, fast, pairs=options.pairs, warm=1)
    row = [
        "P11 transfusion-pytorch / single tower",
        f"{num_parameters(theirs) / 1e6:.1f} / {num_parameters(ours) / 1e6:.1f} M",
        f"{count_flops(slow) / count_flops(fast):.2f}",
        ">= 1.5",
        f"{ratio.median:.2f} ({ratio.low:.2f}-{ratio.high:.2f})",
        f"{ratio.slow_seconds * 1000:.0f} / {ratio.fast_seconds * 1000:.0f} ms",
    ]
    columns = ["ratio", "parameters", "FLOPs", "goal, time", "time, median (quartiles)", "fastest steps"]
    print_table("Single tower, two threads", columns, [row])


if __name__ == "__main__":
    main()

"""What a recipe costs before it starts: parameters and who trains, FLOPs by part, memory, expected time."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from diptych.backbones.assets import find_asset
from diptych.backbones.autoencoder import load_autoencoder
from diptych.backbones.language import EMBEDDED_LANGUAGE_MODELS, load_language_model
from diptych.backbones.language_skeleton import build_language_skeleton
from diptych.config import Recipe
from diptych.data.formats import Sample, read_samples
from diptych.data.mixture import build_mixture
from diptych.data.tokenize import build_sequence
from diptych.distributed import compute_device, resolve_dtype
from diptych.models.flop_formulas import Flops, frozen_text_flops, step_flops
from diptych.models.xfusion_building import build_xfusion
from diptych.nn.visibility import build_plan
from diptych.sequence import Batch, ImageSpan, Sequence, TextSpan, pack

SHARE_OF_MATMUL_RATE = 0.4
"""What a training step on a CPU reaches of the rate of one large matrix product: norms, attention's copies, the
optimiser and the loader take the rest. Measured for the demo's recipe; see docs/benchmarks.md."""
NOMINAL_TEXT_TOKENS = 24
STREAMS_LOOKED_AT = 256


@dataclass(frozen=True)
class PartCost:
    """FLOPs of one optimisation step in one part of the model, and what they are spent on: `tokens` of a `kind`."""

    name: str
    flops: Flops
    tokens: float
    kind: str

    @property
    def each(self) -> str:
        if not self.tokens or not self.flops.total:
            return "-"
        forward, backward = (_si(flops / self.tokens) for flops in (self.flops.forward, self.flops.backward))
        return f"{forward} + {backward}, {self.kind}"


@dataclass(frozen=True)
class RunAccount:
    """The account of a recipe. Bytes and FLOPs are plain numbers; `assumed`: what was not there to be looked at.

    trained, frozen: parameters by part. cached_bytes_per_token: of frozen text states on disk and in memory.
    once: FLOPs of the frozen text of one step's samples, computed when it is first met.
    """

    recipe: Recipe
    dtype: torch.dtype
    trained: dict[str, int]
    frozen: dict[str, int]
    parts: tuple[PartCost, ...]
    once: Flops
    samples_per_step: int
    cached_bytes_per_token: int
    assumed: str | None

    @property
    def step(self) -> Flops:
        return sum((part.flops for part in self.parts), Flops())

    @property
    def trained_bytes(self) -> int:
        """fp32 weight, gradient and Adam's two moments; and the average, where the recipe keeps one."""
        return sum(self.trained.values()) * (20 if self.recipe.train.ema else 16)

    @property
    def frozen_bytes(self) -> int:
        return sum(self.frozen.values()) * 4

    def describe(self, rate: float, *, measured: bool) -> str:
        """The account as text for a terminal."""
        train, step = self.recipe.train, self.step
        lines = ["parameters"]
        lines += [_row(name, _si(count), "trained") for name, count in self.trained.items()]
        lines += [_row(name, _si(count), "frozen") for name, count in self.frozen.items()]
        assumed = f" (assumed: {self.assumed})" if self.assumed else ""
        lines.append(f"FLOPs of one step of {self.samples_per_step} samples{assumed}")
        lines.append(_row("", "forward", "backward", "forward + backward, of each token"))
        for part in self.parts:
            lines.append(_row(part.name, _si(part.flops.forward), _si(part.flops.backward), part.each))
        lines.append(_row("all", _si(step.forward), _si(step.backward)))
        if self.once.total:
            lines.append(_row("frozen text, once and then cached", _si(self.once.forward), "0"))
        lines.append("memory, without activations")
        average = ", 4 B for the average" if train.ema else ""
        lines.append(_row("trained", _si(self.trained_bytes) + "B", f"16 B per parameter{average}"))
        lines.append(_row("frozen", _si(self.frozen_bytes) + "B", "4 B per parameter"))
        if self.cached_bytes_per_token:
            lines.append(_row("cached text states", _si(self.cached_bytes_per_token) + "B", "per text token"))
        seconds = step.total / (rate * SHARE_OF_MATMUL_RATE)
        whole, limit = train.max_steps * seconds, 60 * (train.max_train_minutes or math.inf)
        ends = f"; the recipe ends after {_duration(limit)}" if whole > limit else ""
        kind = f"{str(self.dtype).removeprefix('torch.')} matrix products, {'measured here' if measured else 'given'}"
        lines.append("time")
        lines.append(_row(kind, _si(rate) + "F/s", f"of which a step reaches about {SHARE_OF_MATMUL_RATE:.0%}"))
        lines.append(_row("one step", f"{seconds:.3g} s", f"{self.samples_per_step / seconds:.3g} samples per second"))
        lines.append(_row(f"{train.max_steps} steps", _duration(whole), ends.removeprefix("; ")))
        return "\n".join(lines)


def account_recipe(recipe: Recipe) -> RunAccount:
    """Reckons what `diptych train` of this recipe costs. The language model's weights are not loaded.

    Where the recipe's data is there its first samples are looked at; otherwise lengths are assumed, and said to be.
    Raises ValueError as building the model would: a family that cannot be routed, layers that do not exist ...
    """
    return _account_autoencoder(recipe) if recipe.method == "autoencoder" else _account_xfusion(recipe)


def measure_matmul_rate(dtype: torch.dtype, *, seconds: float = 1.0) -> float:
    """FLOP/s of a large matrix product on this process's device with torch's present threads: the best of many."""
    device = compute_device()
    size = 4096 if device.type == "cuda" else 1024
    a = torch.randn(size, size, device=device).to(dtype)
    b = torch.randn(size, size, device=device).to(dtype)
    best, end = math.inf, time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        torch.matmul(a, b)
        if device.type == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


def _account_xfusion(recipe: Recipe) -> RunAccount:
    language = build_language_skeleton(recipe.language_model, trust_remote_code=recipe.trust_remote_code)
    autoencoder = load_autoencoder(recipe.autoencoder)
    channels, downsampling = autoencoder.latent_channels, autoencoder.downsampling
    with torch.device("meta"):
        model = build_xfusion(recipe, language, latent_channels=channels, downsampling=downsampling)
    vision = model.vision_tower
    latent = torch.zeros(channels, recipe.image_size // downsampling, recipe.image_size // downsampling)
    streams, assumed = _streams(recipe, vision.num_image_tokens, latent)
    samples_per_step = recipe.train.per_device_train_batch_size * recipe.train.gradient_accumulation_steps
    share = samples_per_step / len(streams)
    micro = recipe.train.per_device_train_batch_size
    flops: dict[str, tuple[Flops, float]] = {}
    once = Flops()
    for start in range(0, len(streams), micro):
        batch = pack(streams[start : start + micro])
        plan = build_plan(batch, window=model.text_tower.window)
        tokens = _tokens(batch, plan)
        for name, cost in step_flops(model, batch, plan).items():
            was, count = flops.get(name, (Flops(), 0.0))
            flops[name] = (was + cost, count + tokens[name][0])
        once += frozen_text_flops(model, batch, plan)
    kinds = {name: kind for name, (_, kind) in tokens.items()}
    return RunAccount(
        recipe=recipe,
        dtype=resolve_dtype(recipe.dtype, compute_device()),
        trained={
            f"vision tower, {len(vision.blocks)} blocks of width {vision.width}": _count(vision.blocks),
            "image embedder, time and head": _count(vision) - _count(vision.blocks),
        },
        frozen={
            f"language model {recipe.language_model}": _count(language),
            "autoencoder": _count(autoencoder.network),
        },
        parts=tuple(
            PartCost(name, Flops(cost.forward * share, cost.backward * share), count * share, kinds[name])
            for name, (cost, count) in flops.items()
        ),
        once=Flops(once.forward * share, 0),
        samples_per_step=samples_per_step,
        cached_bytes_per_token=4 * len(vision.layers) * model.text_tower.width,
        assumed=assumed,
    )


def _tokens(batch: Batch, plan: Any) -> dict[str, tuple[float, str]]:
    """What each part of `step_flops` is spent on: how many tokens, and of which kind."""
    image_tokens = float(plan.context.numel() + plan.target.numel())
    read = float(plan.prefix.numel() + plan.live_read.numel())
    return {
        "vision tower, image tokens": (image_tokens, "image token"),
        "vision tower, text it reads": (read, "text token"),
        "image embedder, time and head": (image_tokens, "image token"),
        "text tower, text after an image": (float(plan.live.numel()), "text token"),
        "text tower, images and text it reads": (float(plan.context_read.numel()), "image token"),
        "language model head": (float(plan.supervised.numel()), "supervised token"),
    }


def _streams(recipe: Recipe, num_image_tokens: int, latent: torch.Tensor) -> tuple[list[Sequence], str | None]:
    """Streams as the first steps of the run will see them, and what had to be assumed."""
    tokenizer, lacking = _tokenizer(recipe), [s.path for s in recipe.data.sources if not Path(s.path).is_file()]
    if tokenizer is None or lacking:
        text = TextSpan((0,) * NOMINAL_TEXT_TOKENS, (False,) * NOMINAL_TEXT_TOKENS)
        drawing = Sequence((text, ImageSpan(latent, num_image_tokens, is_target=True)))
        reason = f"{lacking[0]} is not there" if lacking else f"{recipe.language_model} is not fetched"
        count = recipe.train.per_device_train_batch_size
        streams = [replace(drawing, draw=draw) for draw in range(count)]
        return streams, f"{NOMINAL_TEXT_TOKENS} text tokens, then an image to draw, since {reason}"
    sources = [read_samples(s.path, max_bad_fraction=recipe.data.max_bad_fraction) for s in recipe.data.sources]
    mixture = build_mixture(recipe, tuple(map(len, sources)))
    micro = recipe.train.per_device_train_batch_size
    build = _stream_builder(recipe, tokenizer, num_image_tokens, latent)
    num_draws = mixture.round_length if mixture.run_length > 1 else micro * max(1, STREAMS_LOOKED_AT // micro)
    picks = [mixture.pick(draw) for draw in range(num_draws)]
    return [build(sources[source][index], draw) for draw, source, index in picks], None


def _stream_builder(
    recipe: Recipe, tokenizer: Any, num_image_tokens: int, latent: torch.Tensor
) -> Callable[[Sample, int], Sequence]:
    def build(sample: Sample, draw: int) -> Sequence:
        return build_sequence(
            sample,
            tokenizer=tokenizer,
            template=recipe.template,
            load_image=lambda _: latent,
            num_image_tokens=num_image_tokens,
            draw=draw,
            max_length=recipe.data.max_length,
        )

    return build


def _tokenizer(recipe: Recipe) -> Any:
    """The recipe's tokenizer if that needs no download; None otherwise."""
    name = recipe.language_model
    here = find_asset(name).is_fetched if name in EMBEDDED_LANGUAGE_MODELS else Path(name).is_dir()
    return load_language_model(name, trust_remote_code=recipe.trust_remote_code).tokenizer if here else None


def _account_autoencoder(recipe: Recipe) -> RunAccount:
    from diptych.models.autoencoder_training import build_autoencoder

    settings = recipe.autoencoder_training
    count = recipe.train.per_device_train_batch_size
    side = recipe.image_size // settings.fold
    with torch.device("meta"):
        network = build_autoencoder(
            fold=settings.fold,
            channels=settings.channels,
            latent_channels=settings.latent_channels,
            num_decoder_blocks=settings.num_decoder_blocks,
        )
        pixels = torch.zeros(count, 3 * settings.fold**2, side, side)
    steps = recipe.train.gradient_accumulation_steps
    parts, x = [], pixels
    for name, module in (("encoder", network.encoder), ("decoder", network.decoder)):
        with FlopCounterMode(display=False) as forward:
            x = module(x)
        backward = 2 * forward.get_total_flops()
        cost = Flops(steps * forward.get_total_flops(), steps * backward)
        parts.append(PartCost(name, cost, steps * count, "image"))
    return RunAccount(
        recipe=recipe,
        dtype=resolve_dtype(recipe.dtype, compute_device()),
        trained={"encoder": _count(network.encoder), "decoder": _count(network.decoder)},
        frozen={},
        parts=tuple(parts),
        once=Flops(),
        samples_per_step=steps * count,
        cached_bytes_per_token=0,
        assumed=None,
    )


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _row(name: str, first: str, second: str = "", third: str = "") -> str:
    return f"  {name:<46}{first:>9}  {second:>9}  {third}".rstrip()


def _si(number: float) -> str:
    for unit in ("", "k", "M", "G", "T", "P"):
        if abs(number) < 999.5:
            return f"{number:.3g}{unit and ' ' + unit}"
        number /= 1000
    return f"{number:.3g} E"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} minutes" if seconds < 7200 else f"{seconds / 3600:.1f} hours"

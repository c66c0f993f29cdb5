"""Small X-Fusion models, streams and fakes for the tests of the core: built in milliseconds, nothing downloaded."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor
from transformers import Olmo2Config, Olmo2ForCausalLM, SmolLM3Config, SmolLM3ForCausalLM

from diptych.backbones.language import LanguageModel, build_language_model
from diptych.backbones.tiny_language import build_byte_tokenizer, build_tiny_language_model
from diptych.config import Recipe, build_recipe
from diptych.models.fused import FusedXFusion
from diptych.models.generate import Morph
from diptych.models.text_states import TextStates
from diptych.models.xfusion import XFusion
from diptych.models.xfusion_building import XFusionModel
from diptych.nn.towers.text import TextTower
from diptych.nn.towers.vision_tower import VisionTower
from diptych.nn.visibility import RoutingPlan, build_plan
from diptych.sequence import Batch, ImageSpan, Sequence, TextSpan, pack

FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "olmo2", "smollm3")
CHANNELS, SIZE, PATCH = 4, 4, 2
NUM_PATCHES = (SIZE // PATCH) ** 2


def build_language(family: str = "llama", *, seed: int = 0, **settings: Any) -> LanguageModel:
    """A tiny random frozen LLM: those of `build_tiny_language_model`, OLMo2 (post-norm), SmolLM3 (some no RoPE)."""
    if family not in ("olmo2", "smollm3"):
        return build_tiny_language_model(family, seed=seed, **settings)
    tokenizer = build_byte_tokenizer()
    config_class: Any = Olmo2Config if family == "olmo2" else SmolLM3Config
    model_class: Any = Olmo2ForCausalLM if family == "olmo2" else SmolLM3ForCausalLM
    options = {"no_rope_layers": [1, 0, 1]} if family == "smollm3" else {}
    config = config_class(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        initializer_range=0.2,
        **(options | settings),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = model_class(config)
    return build_language_model(model, tokenizer, name=f"tiny-{family}-{seed}")


def build_xfusion(
    family: str = "llama",
    *,
    symmetric: bool = True,
    adaln: bool = True,
    boundary_tokens: bool = True,
    text_pooling: bool = False,
    text_matching: bool = False,
    layers: tuple[int, ...] | None = None,
    seed: int = 0,
    stirred: bool = True,
    cache: Any = None,
    language: LanguageModel | None = None,
    layer_design: Any = "dual",
    x_fuse: Any = "none",
) -> Any:
    """`stirred`: every trained weight is moved off its start, so that zero gates and zero heads hide nothing."""
    language = language or build_language(family)
    config = language.model.config
    text_tower = TextTower(language.model)
    if layers is None:
        layers = tuple(range(0 if symmetric else 1, text_tower.num_layers))
    names = ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads")
    narrow = dict(zip(names, (16, 32, 2, 1), strict=True))
    head_dim = None
    if layer_design == "projection":  # heads as the language model's
        narrow |= {name: getattr(config, name) for name in names[2:]}
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    widths: Any = {name: getattr(config, name) for name in names} if symmetric else narrow
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        vision_tower = VisionTower(
            language.model,
            layers=layers,
            latent_channels=CHANNELS,
            latent_size=SIZE,
            patch_size=PATCH,
            adaln=adaln,
            boundary_tokens=boundary_tokens,
            copy_layers=symmetric,
            text_pooling=text_pooling,
            text_matching=text_matching,
            layer_design=layer_design,
            x_fuse=x_fuse,
            head_dim=head_dim,
            **widths,
        )
        if stirred:
            with torch.no_grad():
                for parameter in vision_tower.parameters():
                    parameter.add_(torch.randn_like(parameter) * 0.05)
    kind = FusedXFusion if vision_tower.is_fused else XFusion
    return kind(text_tower, vision_tower, TextStates(text_tower, layers, cache))


def text(*token_ids: int, loss: bool = False) -> TextSpan:
    return TextSpan(token_ids, (loss,) * len(token_ids))


def image(model: XFusionModel, *, is_target: bool, seed: int = 0) -> ImageSpan:
    latent = torch.randn(CHANNELS, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))
    return ImageSpan(latent, model.vision_tower.num_image_tokens, is_target)


KINDS = ("text", "answer", "context", "target")


ALONE: dict[str, list[tuple[str, int]]] = {
    "text only": [("text", 2), ("answer", 3)],
    "a read image only": [("context", 1)],
    "a drawn image only": [("target", 1)],
    "a read image first": [("context", 1), ("text", 2), ("answer", 2)],
    "a drawn image first": [("target", 1), ("answer", 2)],
    "a drawn image last": [("text", 3), ("target", 1)],
    "a read image last": [("text", 3), ("context", 1)],
    "an image twice": [("text", 1), ("context", 1), ("text", 2), ("context", 1), ("answer", 2)],
    "adjacent images": [("context", 1), ("context", 1), ("target", 1), ("target", 1), ("answer", 2)],
}
"""Samples that are to be right with nothing else in their batch."""


def sequences(max_samples: int = 3, max_spans: int = 5) -> st.SearchStrategy[list[list[tuple[str, int]]]]:
    """Random interleavings: samples of (kind, size) spans; `build_streams` makes them real."""
    span = st.tuples(st.sampled_from(KINDS), st.integers(1, 4))
    return st.lists(st.lists(span, min_size=1, max_size=max_spans), min_size=1, max_size=max_samples)


def build_streams(shapes: list[list[tuple[str, int]]], model: XFusionModel, *, seed: int = 0) -> list[Sequence]:
    generator = torch.Generator().manual_seed(seed)
    streams = []
    for draw, shape in enumerate(shapes):
        spans: list[TextSpan | ImageSpan] = []
        for kind, size in shape:
            if kind in ("text", "answer"):
                ids = torch.randint(3, 200, (size,), generator=generator).tolist()
                spans.append(text(*ids, loss=kind == "answer"))
            else:
                number = int(torch.randint(2**31, (), generator=generator))
                spans.append(image(model, is_target=kind == "target", seed=number))
        streams.append(Sequence(tuple(spans), draw=draw))
    return streams


def noise_of(batch: Batch, *, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Noised images and times of a batch's targets, each from its sample's draw and its place in that sample."""
    noised, times, seen = [], [], {}
    for is_target, sample in zip(batch.image_is_target.tolist(), batch.image_samples.tolist(), strict=True):
        if is_target:
            draw = batch.draws[sample]
            seen[draw] = seen.get(draw, 0) + 1
            generator = torch.Generator().manual_seed(seed * 1009 + draw * 101 + seen[draw])
            noised.append(torch.randn(CHANNELS, SIZE, SIZE, generator=generator))
            times.append(torch.rand((), generator=generator))
    if not noised:
        return torch.zeros(0, CHANNELS, SIZE, SIZE), torch.zeros(0)
    return torch.stack(noised), torch.stack(times)


def prepare(streams: list[Sequence], *, seed: int = 0) -> tuple[Batch, RoutingPlan, Tensor, Tensor]:
    batch = pack(streams)
    return batch, build_plan(batch), *noise_of(batch, seed=seed)


class FakeAutoencoder:
    """Folds 2 x 2 grey pixels into 4 channels; exact for grey images."""

    latent_channels, downsampling, hash = CHANNELS, 2, "f" * 64
    network = torch.nn.Identity()

    def to(self, device: object) -> FakeAutoencoder:
        return self

    def encode(self, images: Tensor) -> Tensor:
        grey = images.mean(dim=1, keepdim=True)
        return torch.nn.functional.pixel_unshuffle(grey, 2)

    def decode(self, latents: Tensor) -> Tensor:
        return torch.nn.functional.pixel_shuffle(latents, 2).expand(-1, 3, -1, -1).clamp(-1, 1)


def tiny_recipe(**settings: Any) -> Recipe:
    base: dict[str, Any] = {
        "output_dir": "nowhere",
        "language_model": "tiny",
        "autoencoder": "fake",
        "image_size": SIZE * 2,
        "template": "chatml",
        "vision_tower": {"patch_size": PATCH, "time_conditioning": "adaln"},
        "data": {"sources": [{"path": "none.jsonl"}]},
        "sample": {"num_inference_steps": 2, "guidance_scale": 3.0},
    }
    return build_recipe(base | settings)


def build_tiny_morph(family: str = "llama", **recipe: Any) -> Morph:
    """A whole morph with stirred weights around a tiny LLM and the fake autoencoder."""
    from diptych.models.checkpoint import build_morph

    morph = build_morph(
        tiny_recipe(**recipe), language=build_language(family), autoencoder=FakeAutoencoder(), cached=False
    )
    with torch.no_grad():
        for parameter in morph.model.vision_tower.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    morph.model.eval()
    return morph


def save_tiny_morph(folder: Path, family: str = "llama", **recipe: Any) -> Path:
    """A morph over plain pixels that another process can load: its own folder, its language model's beside it."""
    from diptych.models.checkpoint import build_morph, save_morph

    build_language(family).save_pretrained(folder / "llm")
    settings = tiny_recipe(language_model=str(folder / "llm"), autoencoder="pixels", **recipe)
    save_morph(folder / "morph", build_morph(settings, cached=False))
    return folder / "morph"


def with_draw(stream: Sequence, draw: int) -> Sequence:
    return dataclasses.replace(stream, draw=draw)

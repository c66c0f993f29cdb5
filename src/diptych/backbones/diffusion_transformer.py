"""Pretrained diffusion transformers (diffusers' DiT, Stable Diffusion 3), taken apart for a vision tower.

What they were conditioned on is left out: DiT keeps its "no class", SD3 its empty pooled text, and of SD3's two streams
the image's is taken. With nothing before it, an image then goes through the tower as through the original.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from diptych.backbones.hub_loading import find_folder, quiet_diffusers
from diptych.nn.towers.diffusion_layers import DiffusionLayer, DiffusionTime, PretrainedTower

CLASSES = ("DiTTransformer2DModel", "SD3Transformer2DModel")
_FILES = ("config.json", "*.safetensors", "*.safetensors.index.json")


def read_transformer_config(name: str) -> dict[str, Any]:
    """The config of a diffusion transformer: a folder or a Hugging Face id, of it or of a pipeline that has one.

    Raises ValueError that names it for another kind of model.
    """
    return _read_config(_find(name, (*_FILES[:1], f"transformer/{_FILES[0]}")), name)


def load_diffusion_transformer(name: str, *, latent_size: int) -> PretrainedTower:
    """Loads and takes apart, for latents of that size. Errors: see `read_transformer_config` and `take_apart`."""
    import diffusers

    folder = _find(name, (*_FILES, *(f"transformer/{file}" for file in _FILES)))
    config = _read_config(folder, name)
    try:
        with quiet_diffusers():
            network = getattr(diffusers, config["_class_name"]).from_pretrained(
                folder, local_files_only=True, use_safetensors=True
            )
    except (OSError, ValueError, RuntimeError) as error:
        raise ValueError(f"diffusion transformer {name!r} could not be loaded from {folder}: {error}") from error
    if config["_class_name"] == "DiTTransformer2DModel":
        _check_one_time_embedding(network)
    return take_apart(network.float(), latent_size=latent_size)


def build_transformer_skeleton(config: Mapping[str, Any], *, latent_size: int, on_meta: bool = True) -> PretrainedTower:
    """Of a config alone: weights on the meta device, or random ones that a morph's own will replace."""
    import diffusers

    kind = config.get("_class_name")
    if kind not in CLASSES:
        raise ValueError(f"{kind} is no diffusion transformer known here; choose one of: {', '.join(CLASSES)}")
    with quiet_diffusers(), torch.device("meta") if on_meta else nullcontext():
        return take_apart(getattr(diffusers, kind).from_config(dict(config)), latent_size=latent_size)


def take_apart(network: Any, *, latent_size: int) -> PretrainedTower:
    """Raises ValueError for a variant that has more in a layer than a vision tower's layer can hold, and for latents of
    a size that it has no positions for."""
    config = network.config
    is_dit = type(network).__name__ == "DiTTransformer2DModel"
    if not is_dit and getattr(config, "dual_attention_layers", ()):
        raise ValueError("a diffusion transformer with dual_attention_layers has a second attention; give another one")
    if not is_dit and config.qk_norm not in (None, "rms_norm"):
        raise ValueError(f"a diffusion transformer with qk_norm {config.qk_norm!r} is not known here")
    if is_dit and config.norm_elementwise_affine:
        raise ValueError("a DiT with norm_elementwise_affine is not known here")
    width = config.num_attention_heads * config.attention_head_dim
    layers, modulations = [], []
    for block in network.transformer_blocks:
        attention, (first, _, second) = block.attn if not is_dit else block.attn1, block.ff.net
        layer = DiffusionLayer(
            width,
            config.num_attention_heads,
            second.in_features,
            bias=attention.to_q.bias is not None,
            qk_norm=not is_dit and config.qk_norm is not None,
            eps=config.norm_eps if is_dit else 1e-6,
        )
        pairs = [
            (layer.self_attn.q_proj, attention.to_q),
            (layer.self_attn.k_proj, attention.to_k),
            (layer.self_attn.v_proj, attention.to_v),
            (layer.self_attn.o_proj, attention.to_out[0]),
            (layer.mlp[0], first.proj),
            (layer.mlp[2], second),
        ]
        if not is_dit and config.qk_norm is not None:
            pairs += [(layer.self_attn.q_norm, attention.norm_q), (layer.self_attn.k_norm, attention.norm_k)]
        for own, theirs in pairs:
            _take(own, theirs)
        layers.append(layer)
        modulations.append(block.norm1.linear)
    head_modulation = network.proj_out_1 if is_dit else _swapped(network.norm_out.linear)
    head = network.proj_out_2 if is_dit else network.proj_out
    return PretrainedTower(
        width=width,
        num_heads=config.num_attention_heads,
        mlp_width=layers[0].mlp[0].out_features,  # pyright: ignore[reportArgumentType]
        patch_size=config.patch_size,
        latent_channels=config.in_channels,
        latent_size=latent_size,
        layers=layers,
        modulations=modulations,
        patch=_linear(network.pos_embed.proj.weight.flatten(1), network.pos_embed.proj.bias),
        position=_positions(network, latent_size),
        time=_time(network, width, is_dit=is_dit),
        head_modulation=head_modulation,
        head=_patch_order(head, channels=config.in_channels, patch_size=config.patch_size),
        prediction="epsilon" if is_dit else "velocity",
        schedule="ddpm_linear" if is_dit else "flow",
    )


def _time(network: Any, width: int, *, is_dit: bool) -> DiffusionTime:
    source = network.transformer_blocks[0].norm1.emb if is_dit else network.time_text_embed
    time = DiffusionTime(width, frequency_shift=1 if is_dit else 0)
    _take(time.mlp[0], source.timestep_embedder.linear_1)
    _take(time.mlp[2], source.timestep_embedder.linear_2)
    with torch.no_grad():
        if is_dit:
            condition = source.class_embedder.embedding_table.weight[-1]
        else:
            pooled = source.text_embedder
            condition = pooled(torch.zeros(1, pooled.linear_1.in_features, device=pooled.linear_1.weight.device))[0]
    time.condition = nn.Parameter(condition.detach().clone())
    return time


def _check_one_time_embedding(network: Any) -> None:
    """diffusers keeps one in every layer of a DiT; only equal ones can become the tower's single one."""
    first, *others = (block.norm1.emb.state_dict() for block in network.transformer_blocks)
    if not all(torch.equal(first[name], other[name]) for other in others for name in first):
        raise ValueError("a DiT whose layers embed the time differently is not known here")


def _positions(network: Any, size: int) -> Tensor:
    embed = network.pos_embed
    if embed.pos_embed is None:
        raise ValueError("a diffusion transformer without position embeddings is not known here")
    most = (embed.pos_embed_max_size or 0) * network.config.patch_size
    if size > most if most else size != network.config.sample_size:
        wanted = f"up to {most}" if most else f"of {network.config.sample_size}"
        raise ValueError(f"this diffusion transformer has positions for latents {wanted} to a side, not for {size}")
    table = embed.cropped_pos_embed(size, size) if most else embed.pos_embed
    return table[0].detach().clone()


def _swapped(modulation: nn.Linear) -> nn.Linear:
    """Scale and shift to shift and scale."""
    weight, bias = (torch.cat(tuple(reversed(tensor.chunk(2)))) for tensor in (modulation.weight, modulation.bias))
    return _linear(weight, bias)


def _patch_order(head: nn.Linear, *, channels: int, patch_size: int) -> nn.Linear:
    """Rows in the order (row, column, channel) to (channel, row, column); of a learned variance nothing is kept."""
    cells = patch_size**2
    weight = head.weight.unflatten(0, (cells, -1))[:, :channels].transpose(0, 1).flatten(0, 1)
    bias = head.bias.unflatten(0, (cells, -1))[:, :channels].transpose(0, 1).flatten()
    return _linear(weight, bias)


def _linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0], device="meta")
    linear.weight, linear.bias = nn.Parameter(weight.detach().clone()), nn.Parameter(bias.detach().clone())
    return linear


def _take(own: Any, theirs: Any) -> None:
    own.load_state_dict(theirs.state_dict(), assign=True)


def _find(name: str, patterns: tuple[str, ...]) -> Path:
    folder = find_folder(name, what="diffusion transformer", embedded=(), patterns=patterns)
    return folder / "transformer" if (folder / "transformer" / "config.json").is_file() else folder


def _read_config(folder: Path, name: str) -> dict[str, Any]:
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"diffusion transformer {name!r}: {path} is missing or damaged: {error}") from error
    if config.get("_class_name") not in CLASSES:
        raise ValueError(f"{name!r} is a {config.get('_class_name')}; give one of: {', '.join(CLASSES)}")
    return config

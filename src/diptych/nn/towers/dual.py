"""The dual tower's trained half (X-Fusion section 3, "Dual Tower"): complete layers for image tokens.

Each block makes its own keys and values for all tokens, text included, and queries for image tokens alone. The
exact routing: a block never computes what would be thrown away. Blocks may be copies of the language model's layers
(symmetric) or fewer and narrower ones of the same class (asymmetric), with a norm and a linear map where widths meet.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from diptych.nn.attention import Groups, attend
from diptych.nn.heads import ImageEmbedder, TimeEmbedding, VelocityHead, modulate
from diptych.nn.layer_parts import (
    Rope,
    attention_input,
    attention_output,
    mlp_input,
    mlp_output,
    project_key_value,
    project_query,
    rotary,
)

KeyValue = tuple[Tensor, Tensor]


class WidthMap(nn.Module):
    """States of one tower for the other where widths differ: RMS norm, scale and shift, then linear.

    Most of what a language model's states hold is the same for every token. `standardise` starts scale and shift such
    that this part is gone: what tells one text from another then stands out from the first step on.
    """

    def __init__(self, width_in: int, width_out: int) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(width_in, eps=1e-6)
        self.shift = nn.Parameter(torch.zeros(width_in))
        self.linear = nn.Linear(width_in, width_out, bias=False)
        nn.init.normal_(self.linear.weight, std=width_in**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.norm(x) + self.shift)

    @torch.no_grad()
    def standardise(self, x: Tensor) -> None:
        """Starts from the statistics of states x [N, width_in]: each dimension then has mean 0 and variance 1."""
        normed = nn.functional.rms_norm(x.float(), x.shape[-1:], eps=1e-6)
        spread = normed.std(dim=0).clamp_min(1e-3)
        self.norm.weight.copy_(1 / spread)
        self.shift.copy_(-normed.mean(dim=0) / spread)


class Modulation(nn.Module):
    """AdaLN-zero: shift, scale and gate of attention and MLP from the time embedding; gates start at zero."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, 6 * width)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, time: Tensor) -> tuple[Tensor, ...]:
        """Time embeddings [I, d] -> six of [I, d]: attention shift, scale, gate, then the MLP's."""
        return self.linear(time).chunk(6, dim=-1)


class VisionBlock(nn.Module):
    """One layer of the vision tower, standing beside one layer of the language model.

    `layer`: a Hugging Face decoder layer of width d; `text_width`: the language model's D.
    """

    def __init__(self, layer: nn.Module, *, width: int, text_width: int, adaln: bool) -> None:
        super().__init__()
        self.layer = layer
        self.text_in = WidthMap(text_width, width) if width != text_width else None
        self.image_out = WidthMap(width, text_width) if width != text_width else None
        self.modulation = Modulation(width) if adaln else None

    def text_key_value(self, text: Tensor, rope: Rope) -> KeyValue:
        """Text states [N, D] -> this tower's own keys and values of them."""
        x = text if self.text_in is None else self.text_in(text)
        return project_key_value(self.layer, attention_input(self.layer, x), rope)

    def for_text(self, image: Tensor) -> Tensor:
        """Image states [N, d] as the text tower's layer reads them: [N, D]."""
        return image if self.image_out is None else self.image_out(image)

    def forward(
        self,
        image: Tensor | None,
        *,
        image_rope: Rope | None = None,
        time: Tensor | None = None,
        groups: Groups | None = None,
        text: Tensor | None = None,
        text_rope: Rope | None = None,
        before: KeyValue | None = None,
        read: Tensor | None = None,
    ) -> tuple[Tensor | None, KeyValue | None, Tensor | None]:
        """Returns (new image states [N, d], keys and values of all that was given, image states for the text tower).

        image [N, d]: states of image tokens, `time` [I, d] the time embedding of each image. text [Nt, D]: text that
        the image reads; `before`: keys and values computed earlier, in front of both. groups: who meets whom; None:
        no image queries (the states are then read, and this block's own output is not needed). read: rows of
        `image` that live text reads; None: none.
        """
        layer: Any = self.layer
        parts = [] if before is None else [before]
        if text is not None and text.shape[0]:
            assert text_rope is not None
            parts.append(self.text_key_value(text, text_rope))
        for_text = None
        x = gates = None
        if image is not None and image.shape[0]:
            assert image_rope is not None
            for_text = None if read is None else self.for_text(image[read])
            gates = self.modulation(time) if self.modulation is not None else None
            x = attention_input(layer, image)
            if gates is not None:
                x = modulate(x, shift=gates[0], scale=gates[1])
            parts.append(project_key_value(layer, x, image_rope))
        key_value = (torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts])) if parts else None
        if image is None or x is None or groups is None:
            return image, key_value, for_text
        assert key_value is not None
        assert image_rope is not None
        attended = attend(project_query(layer, x, image_rope), *key_value, groups, scaling=layer.self_attn.scaling)
        out = attention_output(layer, attended)
        image = image + (out if gates is None else modulate(out, gate=gates[2]))
        x = mlp_input(layer, image)
        if gates is None:
            return image + mlp_output(layer, x), key_value, for_text
        x = modulate(x, shift=gates[3], scale=gates[4])
        return image + modulate(mlp_output(layer, x), gate=gates[5]), key_value, for_text


class VisionTower(nn.Module):
    """Image embedder, blocks beside `layers` of the language model, velocity head."""

    def __init__(
        self,
        language_model: Any,
        *,
        layers: tuple[int, ...],
        latent_channels: int,
        latent_size: int,
        patch_size: int,
        hidden_size: int,
        intermediate_size: int,
        num_attention_heads: int,
        num_key_value_heads: int,
        adaln: bool,
        boundary_tokens: bool,
        copy_layers: bool,
        text_pooling: bool = False,
    ) -> None:
        super().__init__()
        source = language_model.model.layers
        text_width = int(language_model.config.hidden_size)
        self.layers = layers
        self.width = hidden_size
        config = narrow_config(
            language_model.config,
            num_layers=len(layers),
            hidden_size=hidden_size,
            intermediate_size=intermediate_size,
            num_attention_heads=num_attention_heads,
            num_key_value_heads=num_key_value_heads,
        )
        if copy_layers:
            modules = [copy.deepcopy(source[index]) for index in layers]
            for module in modules:
                module.requires_grad_(True)
            rotary_class, rotary_config = type(language_model.model.rotary_emb), language_model.config
        else:
            modules = [type(source[0])(config, layer_idx=index) for index in range(len(layers))]
            for module in modules:
                _initialise(module)
            rotary_class, rotary_config = type(language_model.model.rotary_emb), config
        self.rotary = rotary_class(rotary_config)
        self.embedder = ImageEmbedder(
            latent_channels=latent_channels,
            latent_size=latent_size,
            patch_size=patch_size,
            width=hidden_size,
            boundary_tokens=boundary_tokens,
        )
        self.time = TimeEmbedding(hidden_size)
        self.text_pool = WidthMap(text_width, hidden_size) if text_pooling else None
        self.adaln = adaln
        self.blocks = nn.ModuleList(
            VisionBlock(module, width=hidden_size, text_width=text_width, adaln=adaln) for module in modules
        )
        self.head = VelocityHead(self.embedder, width=hidden_size, adaln=adaln)

    @property
    def num_image_tokens(self) -> int:
        return self.embedder.num_tokens

    def embed(self, latents: Tensor, t: Tensor, pooled: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Latents [I, C, h, w] at times t [I] -> image states [I * n, d] and time embeddings [I, d].

        pooled [I, d]: what `pool_text` made of the text before each image; added to its time embedding.
        """
        time = self.time(t) if pooled is None else self.time(t) + pooled
        tokens = self.embedder(latents)
        if not self.adaln:
            tokens = tokens + time[:, None]
        return tokens.flatten(0, 1), time

    def standardise_text(self, states: Tensor) -> None:
        """Starts every map of text from the statistics of typical states [K, N, D], one set for each block."""
        for block, own in zip(self.blocks, states, strict=True):
            if isinstance(block.text_in, WidthMap):
                block.text_in.standardise(own)
        if self.text_pool is not None:
            self.text_pool.standardise(states[0])

    def pool_text(self, states: Tensor, images: Tensor, num_images: int) -> Tensor | None:
        """Text states [N, D], each of the image `images` [N] that it stands before -> [num_images, d].

        The sum over the square root of the count, so that its size does not depend on the length; None without pooling.
        """
        if self.text_pool is None:
            return None
        mapped = self.text_pool(states)
        total = mapped.new_zeros(num_images, self.width).index_add(0, images, mapped)
        counts = torch.bincount(images, minlength=num_images).clamp_min(1)
        return total / counts.to(mapped.dtype).sqrt()[:, None]

    def rope(self, positions: Tensor, dtype: torch.dtype) -> Rope:
        return rotary(self.rotary, positions, dtype)

    def velocity(self, states: Tensor, time: Tensor) -> Tensor:
        """Image states [I * n, d] and time embeddings [I, d] -> velocity in latent space [I, C, h, w]."""
        return self.head(states, time)


def narrow_config(config: Any, *, num_layers: int, **widths: int) -> Any:
    """The language model's config with other widths, for layers of the same class."""
    narrow = copy.deepcopy(config)
    for name, value in widths.items():
        setattr(narrow, name, value)
    narrow.head_dim = widths["hidden_size"] // widths["num_attention_heads"]
    narrow.num_hidden_layers = num_layers
    if getattr(narrow, "layer_types", None) is not None:
        narrow.layer_types = ["full_attention"] * num_layers
    if getattr(narrow, "no_rope_layers", None) is not None:
        narrow.no_rope_layers = [1] * num_layers
    return narrow


def _initialise(layer: nn.Module) -> None:
    for module in layer.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)

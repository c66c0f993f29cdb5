"""The vision tower of every layer design: image embedder, blocks beside layers of the language model, velocity head."""

from __future__ import annotations

import copy
from typing import Any, Literal

import torch
from torch import Tensor, nn

from diptych.nn.alignment import AlignmentHead
from diptych.nn.heads import FeatureAdder, FeatureEmbedder, ImageEmbedder, TextMatcher, TimeEmbedding, VelocityHead
from diptych.nn.layer_parts import Rope, rotary
from diptych.nn.towers.diffusion_layers import PretrainedTower
from diptych.nn.towers.dual import VisionBlock
from diptych.nn.towers.fused_blocks import FuseBlock, GatedBlock, ProjectionBlock, SingleBlock
from diptych.nn.towers.tower_parts import WidthMap

LayerDesign = Literal["dual", "single", "gated", "projection"]
Fusing = Literal["none", "text", "image", "both"]
FUSED_BLOCKS: dict[str, Any] = {"single": SingleBlock, "gated": GatedBlock, "projection": ProjectionBlock}


class VisionTower(nn.Module):
    """Image embedder, blocks beside `layers` of the language model, velocity head.

    `width`: of image states between the layers. `is_fused`: whether its blocks are those of fused_blocks.py.
    """

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
        text_matching: bool = False,
        layer_design: LayerDesign = "dual",
        x_fuse: Fusing = "none",
        head_dim: int | None = None,
        pretrained: PretrainedTower | None = None,
    ) -> None:
        """`pretrained`: a diffusion transformer whose layers, embedder, time and head these are to be."""
        super().__init__()
        source = language_model.model.layers
        text_width = int(language_model.config.hidden_size)
        self.layers = layers
        self.layer_design: LayerDesign = layer_design
        self.x_fuse: Fusing = x_fuse
        self.is_fused = layer_design != "dual" or x_fuse != "none"
        # What the language model's own layers compute on images is of its width.
        self.width = text_width if layer_design in ("gated", "single") else hidden_size
        config = narrow_config(
            language_model.config,
            num_layers=len(layers),
            hidden_size=hidden_size,
            intermediate_size=intermediate_size,
            num_attention_heads=num_attention_heads,
            num_key_value_heads=num_key_value_heads,
            head_dim=head_dim or hidden_size // num_attention_heads,
        )
        if pretrained is not None:
            modules = list(pretrained.layers)
            rotary_class, rotary_config = type(language_model.model.rotary_emb), config
        elif layer_design == "single":
            modules = [source[index] for index in layers]
            for module in modules:
                module.requires_grad_(True)
            rotary_class, rotary_config = type(language_model.model.rotary_emb), language_model.config
        elif copy_layers:
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
            width=self.width,
            boundary_tokens=boundary_tokens,
        )
        self.time = TimeEmbedding(self.width)
        self.text_pool = WidthMap(text_width, self.width) if text_pooling else None
        self.text_matcher = TextMatcher(self.width, seen=self.width) if text_matching else None
        self.adaln = adaln
        sizes = {"width": hidden_size, "text_width": text_width, "adaln": adaln}
        self.blocks = nn.ModuleList(self._build_block(module, **sizes) for module in modules)
        self.head = VelocityHead(self.embedder, width=self.width, adaln=adaln)
        if pretrained is not None:
            self._take_over(pretrained)
        self.feature_embedder: FeatureEmbedder | FeatureAdder | None = None
        self.alignment: AlignmentHead | None = None
        self.aligned_block: int | None = None

    @torch.no_grad()
    def _take_over(self, pretrained: PretrainedTower) -> None:
        self.time = pretrained.time
        self.head.norm = nn.LayerNorm(self.width, eps=1e-6, elementwise_affine=False)
        blocks: Any = self.blocks
        pairs: list[tuple[Any, Any]] = [
            (self.embedder.linear, pretrained.patch),
            (self.head.linear, pretrained.head),
            (self.head.modulation, pretrained.head_modulation),
        ]
        pairs += [(block.modulation.linear, own) for block, own in zip(blocks, pretrained.modulations, strict=True)]
        for linear, own in pairs:
            linear.weight.copy_(own.weight)
            linear.bias.copy_(own.bias)
        self.embedder.position.copy_(pretrained.position)

    def read_features(self, feature_dim: int, *, with_latents: bool = False) -> None:
        """From now on images that are read come as features, or as latents and features (`embed_context`)."""
        has_boundary = self.embedder.boundary is not None
        if with_latents:
            self.feature_embedder = FeatureAdder(feature_dim, width=self.width, boundary_tokens=has_boundary)
        else:
            self.feature_embedder = FeatureEmbedder(
                feature_dim, num_patches=self.embedder.num_patches, width=self.width, boundary_tokens=has_boundary
            )
        if self.text_matcher is not None:
            self.text_matcher = TextMatcher(self.width, seen=feature_dim)

    @property
    def reads_latents(self) -> bool:
        """Whether it looks at the latents of images that are read: not if features stand in their place."""
        return self.feature_embedder is None or self.feature_embedder.with_latents

    def align(self, layer: int, feature_dim: int, *, projector: str) -> None:
        """Adds a head that reads the block beside a layer of the language model.

        Raises ValueError if no block stands there, or the last one, whose image states nobody computes where the image
        is only read.
        """
        if layer not in self.layers[:-1]:
            raise ValueError(
                f"alignment.layer {layer} has no block of the vision tower beside it, or the last one; choose one of: "
                f"{', '.join(map(str, self.layers[:-1])) or 'none, since there is a single block'}"
            )
        self.aligned_block = self.layers.index(layer)
        self.alignment = AlignmentHead(self.width, feature_dim, projector=projector)

    def predict_features(self, states: Tensor) -> Tensor:
        """Image states [I * n, w] behind the aligned block -> features of the image's patches [I, patches, F]."""
        assert self.alignment is not None
        tokens = states.unflatten(0, (-1, self.num_image_tokens))
        if self.embedder.num_tokens != self.embedder.num_patches:
            tokens = tokens[:, 1:-1]
        return self.alignment(tokens)

    def _build_block(self, layer: nn.Module, **sizes: Any) -> nn.Module:
        if not self.is_fused:
            return VisionBlock(layer, **sizes)
        sizes["image_width"] = self.width
        if self.layer_design == "dual":
            return FuseBlock(layer, x_fuse=self.x_fuse, **sizes)  # pyright: ignore[reportArgumentType]
        return FUSED_BLOCKS[self.layer_design](layer, **sizes)

    @property
    def blocks_run_text(self) -> bool:
        """Whether text behind an image goes through the blocks beside the language model's layers, too."""
        return self.layer_design == "gated" or self.x_fuse in ("text", "both")

    @property
    def num_image_tokens(self) -> int:
        return self.embedder.num_tokens

    def embed(self, latents: Tensor, t: Tensor, pooled: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Latents [I, C, h, w] at times t [I] -> image states [I * n, d] and time embeddings [I, d].

        pooled [I, d]: what `pool_text` made of the text before each image; added to its time embedding.
        """
        time = self.time(t) if pooled is None else self.time(t) + pooled
        return self._with_time(self.embedder(latents), time)

    def _with_time(self, tokens: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
        if not self.adaln:
            tokens = tokens + time[:, None]
        return tokens.flatten(0, 1), time

    def embed_context(
        self,
        latents: Tensor,
        times: Tensor | None = None,
        features: Tensor | None = None,
        words: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Images that are read: like `embed`, at times [I] or clean; `features` [I, patches, F] are those of a tower
        that reads them, in place of the latents or with them; `words` [I, d]: what `match_text` made of the text before
        each. Raises ValueError where features are missing, or not wanted.
        """
        if (features is None) != (self.feature_embedder is None):
            raise ValueError(
                "this vision tower reads images as " + ("latents" if features is not None else "an encoder's features")
            )
        times = torch.zeros(len(latents), device=latents.device) if times is None else times
        if features is None or self.feature_embedder is None:
            tokens = self.embedder(latents)
        elif self.feature_embedder.with_latents:
            tokens = self.feature_embedder(features) + self.embedder(latents)
        else:
            tokens = self.feature_embedder(features)
        if self.text_matcher is not None and words is not None:
            added = self.text_matcher(tokens if features is None else features, words)
            beside = (tokens.shape[1] - added.shape[1]) // 2  # boundary tokens have no features
            tokens = tokens + nn.functional.pad(added, (0, 0, beside, beside))
        return self._with_time(tokens, self.time(times))

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

    def match_text(self, states: Tensor, images: Tensor, num_images: int) -> Tensor | None:
        """As `pool_text`, for the patches of images that are read to be multiplied by; None without matching."""
        return None if self.text_matcher is None else self.pool_text(states, images, num_images)

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

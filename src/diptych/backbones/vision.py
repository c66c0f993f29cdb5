"""Image encoders: embedded or Hugging Face vision models, frozen, behind one interface: images to features."""

from __future__ import annotations

import hashlib
import json
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import AutoModel

from diptych.backbones.efficientnet_lite import EfficientNetLite0, load_efficientnet_lite0
from diptych.backbones.focus_vit import convert_focus_vit
from diptych.backbones.hub_loading import load_pretrained, resolve_folder
from diptych.backbones.weight_hash import hash_folder

EMBEDDED_IMAGE_ENCODERS = ("efficientnet-lite0", "vit-s14-focus")
FOCUS_VIT_LAYER = 11
"""The last layers of the embedded ViT were fine-tuned for saliency; this one tells images apart best."""


@dataclass(frozen=True)
class ImagePreprocessing:
    """What an encoder wants: square pixels of one size, (pixel - mean) / std with pixels in 0..1.

    `fit`: how an image that is no square becomes one; crop: its centre square, squash: all of it, as SigLIP was
    trained. Files are brought to `image_size` by `data.images.image_to_tensor`, which takes fit and interpolation.
    """

    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    fit: Literal["crop", "squash"] = "crop"

    def __call__(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] in -1..1 -> [B, 3, S, S], normalised: fitted, antialiased resize."""
        if self.fit == "crop":
            height, width = images.shape[-2:]
            side = min(height, width)
            top, left = (height - side) // 2, (width - side) // 2
            images = images[..., top : top + side, left : left + side]
        pixels = (images.float() + 1) / 2
        size = (self.image_size, self.image_size)
        if pixels.shape[-2:] != size:
            pixels = nn.functional.interpolate(pixels, size, mode=self.interpolation, antialias=True)
        mean, std = (pixels.new_tensor(values)[:, None, None] for values in (self.mean, self.std))
        return (pixels.clamp(0, 1) - mean) / std


class EfficientNetFeatures(nn.Module):
    """The last feature map as n = (S / 32)^2 features of 1,280, and their mean."""

    def __init__(self, network: EfficientNetLite0) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        features = self.network.feature_map(pixels.contiguous(memory_format=torch.channels_last))
        features = features.flatten(2).transpose(1, 2)
        return features, features.mean(1)


MOST_EXTRA_TOKENS = 16
"""Class and register tokens before the patches, at most."""


class TransformerFeatures(nn.Module):
    """The patch features of a Hugging Face vision transformer; class and register tokens are left out.

    `layer` None: the model's own output (after its last norm), pooled as the model itself pools. `layer` k:
    the state after k layers (0: the patch embeddings), before the last norm; pooled is its class token, or
    where the model has none, the mean.
    """

    def __init__(self, network: Any, *, num_patches: int, layer: int | None, interpolate: bool) -> None:
        super().__init__()
        self.network = network
        self.num_patches = num_patches
        self.layer = layer
        self.options = {"interpolate_pos_encoding": True} if interpolate else {}

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        wants_states = self.layer is not None
        output = self.network(pixel_values=pixels, output_hidden_states=wants_states, **self.options)
        states = output.hidden_states[self.layer] if wants_states else output.last_hidden_state
        num_extra = states.shape[1] - self.num_patches
        if not 0 <= num_extra <= MOST_EXTRA_TOKENS:
            raise ValueError(
                f"{type(self.network).__name__} gives {states.shape[1]} states for {self.num_patches} patches; take a "
                "vision transformer with one state a patch, such as SigLIP, CLIP, DINOv2 or ViT"
            )
        features = states[:, num_extra:]
        pooled = None if wants_states else getattr(output, "pooler_output", None)
        if pooled is None:
            pooled = states[:, 0] if num_extra else features.mean(1)
        return features, pooled


class ImageEncoder(nn.Module):
    """A frozen image encoder. `hash`: SHA-256 of its stored weights (weight_hash.py). `cache_key`: SHA-256 of all
    that its features depend on: weights, layer, preprocessing, dtype.

    `feature_dim` D and `num_features` n of one image are known without running it.
    """

    def __init__(
        self,
        network: nn.Module,
        preprocessing: ImagePreprocessing,
        *,
        name: str,
        weight_hash: str,
        layer: int | None,
        feature_dim: int,
        num_features: int,
        dtype: torch.dtype,
        batch_size: int,
    ) -> None:
        super().__init__()
        self.network = network.eval().requires_grad_(False)
        self.preprocessing = preprocessing
        self.name = name
        self.hash = weight_hash
        self.layer = layer
        self.feature_dim = feature_dim
        self.num_features = num_features
        self.dtype = dtype
        self.batch_size = batch_size
        *normalising, fit = astuple(preprocessing)
        described = [weight_hash, layer, normalising, str(dtype)]
        if (preprocessing.interpolation, fit) != ("bicubic", "crop"):  # these are in caches without a word for it
            described.append(fit)
        self.cache_key = hashlib.sha256(json.dumps(described).encode()).hexdigest()

    def features(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] in -1..1 -> float32 features [B, n, D] on the encoder's device. No gradients."""
        return self.encode(images)[0]

    def pooled(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] in -1..1 -> float32 pooled features [B, D] on the encoder's device. No gradients."""
        return self.encode(images)[1]

    @torch.no_grad()
    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Features and pooled features in one pass, `batch_size` images at a time.

        Raises ValueError for another shape, for integers, and for values far outside -1..1.
        """
        if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point():
            raise ValueError(
                f"{self.name} takes float images [B, 3, H, W] in -1..1, got {images.dtype} {tuple(images.shape)}"
            )
        if images.numel() and not images.abs().amax() <= 2:
            raise ValueError(f"{self.name} takes images in -1..1, got values up to {images.abs().amax().item():g}")
        device = next(self.network.parameters()).device
        if not len(images):
            empty = torch.zeros(0, self.feature_dim, device=device)
            return empty.new_zeros(0, self.num_features, self.feature_dim), empty
        parts = [
            self.network(self.preprocessing(part.to(device)).to(self.dtype)) for part in images.split(self.batch_size)
        ]
        features, pooled = (torch.cat(column).float() for column in zip(*parts, strict=True))
        return features, pooled

    def train(self, mode: bool = True) -> ImageEncoder:
        """Stays in eval mode whatever contains it: batch norms and dropout of a frozen encoder never train."""
        del mode
        return super().train(False)


def load_image_encoder(
    name: str,
    *,
    layer: int | None = None,
    image_size: int | None = None,
    dtype: torch.dtype = torch.float32,
    batch_size: int = 32,
    trust_remote_code: bool = False,
) -> ImageEncoder:
    """Loads a frozen image encoder: efficientnet-lite0, vit-s14-focus (embedded), else a folder or Hugging Face id of
    a vision transformer (SigLIP, CLIP, DINOv2, ViT ...; of a two-tower model the vision tower).

    `layer`: which hidden state to take, see `TransformerFeatures`; the embedded ViT's default is 11.
    `image_size`: side in pixels, default the model's own (224 for the embedded two).
    Raises ValueError that names the model and the remedy.
    """
    if name == "efficientnet-lite0":
        loaded_network, folder = load_efficientnet_lite0()
        return build_efficientnet_encoder(
            loaded_network,
            weight_hash=hash_folder(folder),
            layer=layer,
            image_size=image_size,
            dtype=dtype,
            batch_size=batch_size,
        )
    what = "image encoder"
    if name == "vit-s14-focus":
        folder = convert_focus_vit()
        layer = FOCUS_VIT_LAYER if layer is None else layer
    else:
        folder = resolve_folder(name, what=what, embedded=EMBEDDED_IMAGE_ENCODERS, trust_remote_code=trust_remote_code)
    options = {"dtype": dtype, "trust_remote_code": trust_remote_code}
    loaded = load_pretrained(AutoModel, folder, name=name, what=what, **options)
    network = getattr(loaded, "vision_model", loaded)
    preprocessing = read_preprocessing(folder, network.config, image_size)
    if name == "vit-s14-focus":  # its converted folder names a height and a width
        preprocessing = replace(preprocessing, fit="crop")
    return build_image_encoder(
        network,
        preprocessing,
        name=name,
        weight_hash=hash_folder(folder),
        layer=layer,
        batch_size=batch_size,
    )


def build_image_encoder(
    network: Any,
    preprocessing: ImagePreprocessing,
    *,
    name: str,
    weight_hash: str,
    layer: int | None = None,
    batch_size: int = 32,
) -> ImageEncoder:
    """An encoder from a Hugging Face vision transformer that is already in memory. Errors: see `load_image_encoder`."""
    config = network.config
    needed = ("image_size", "patch_size", "hidden_size", "num_hidden_layers")
    native, patch, width, num_layers = found = [getattr(config, key, 0) for key in needed]
    if not all(isinstance(value, int) and value for value in found):
        raise ValueError(
            f"image encoder {name!r}: a model of type {config.model_type!r} has no square patch grid; "
            "take a vision transformer such as SigLIP, CLIP, DINOv2 or ViT"
        )
    size = preprocessing.image_size
    if layer is not None and not -num_layers - 1 <= layer <= num_layers:
        raise ValueError(f"image encoder {name!r} has layers 0..{num_layers}, got layer {layer}")
    if size % patch and size != native:  # SigLIP at 384 leaves a rim of 6 pixels unseen, and was trained so
        raise ValueError(f"image encoder {name!r}: image_size {size} is no multiple of its patch size {patch}")
    if layer is not None and layer < 0:
        layer += num_layers + 1
    num_patches = (size // patch) ** 2
    # DINOv2 always interpolates its positions and takes no such option.
    interpolate = size != native and not config.model_type.startswith("dinov2")
    return ImageEncoder(
        TransformerFeatures(network, num_patches=num_patches, layer=layer, interpolate=interpolate),
        preprocessing,
        name=name,
        weight_hash=weight_hash,
        layer=layer,
        feature_dim=width,
        num_features=num_patches,
        dtype=network.dtype,
        batch_size=batch_size,
    )


def build_efficientnet_encoder(
    network: EfficientNetLite0,
    *,
    weight_hash: str,
    layer: int | None = None,
    image_size: int | None = None,
    dtype: torch.dtype = torch.float32,
    batch_size: int = 32,
) -> ImageEncoder:
    """An encoder from an EfficientNet-Lite0 that is already in memory. Errors: see `load_image_encoder`."""
    size = image_size or 224
    if layer is not None:
        raise ValueError(f"image encoder 'efficientnet-lite0' has one feature map; leave out layer (got {layer})")
    if size % 32:
        raise ValueError(f"image encoder 'efficientnet-lite0': image_size {size} is no multiple of 32")
    network.eval().fold_norms()
    mean, std = (127 / 255,) * 3, (128 / 255,) * 3
    return ImageEncoder(
        EfficientNetFeatures(network.to(dtype)),
        ImagePreprocessing(size, mean, std),
        name="efficientnet-lite0",
        weight_hash=weight_hash,
        layer=None,
        feature_dim=1280,
        num_features=(size // 32) ** 2,
        dtype=dtype,
        batch_size=batch_size,
    )


IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
"""Mean and std by model type, for folders that were saved without their image processor."""
FAMILY_NORMALISATION: tuple[tuple[str, Any], ...] = (("clip", CLIP), ("siglip", HALF), ("vit", HALF))
SQUASHED_FAMILIES = ("siglip", "vit")


def read_preprocessing(folder: Path, config: Any, image_size: int | None) -> ImagePreprocessing:
    """From preprocessor_config.json (or processor_config.json), else the model type's own and config.image_size.

    A size of a height and a width is what an image is squashed to; one of its shorter side is followed by a crop.
    """
    settings: dict[str, Any] = {}
    for file, find in (
        ("processor_config.json", lambda content: content.get("image_processor", {})),
        ("preprocessor_config.json", lambda content: content),
    ):
        if (folder / file).is_file():
            settings |= find(json.loads((folder / file).read_text(encoding="utf-8")))
    family = next((n for prefix, n in FAMILY_NORMALISATION if config.model_type.startswith(prefix)), IMAGENET)
    mean = tuple(settings.get("image_mean") or family[0])
    std = tuple(settings.get("image_std") or family[1])
    declared = settings.get("crop_size") if settings.get("do_center_crop", True) else None
    declared = declared or settings.get("size") or {}
    if isinstance(declared, int):
        declared = {"height": declared}
    size = image_size or declared.get("height") or declared.get("shortest_edge") or config.image_size
    # PIL's code 2 is bilinear; whatever else models use is bicubic or close to it.
    interpolation = "bilinear" if settings.get("resample") == 2 else "bicubic"
    return ImagePreprocessing(size, mean, std, interpolation, _read_fit(settings, config.model_type))


def _read_fit(settings: dict[str, Any], model_type: str) -> Literal["crop", "squash"]:
    size = settings.get("size")
    if isinstance(size, dict):
        squashed = {"height", "width"} <= size.keys()
    elif size is not None or "do_center_crop" in settings:  # a bare number is the shorter side where a crop follows
        squashed = not settings.get("do_center_crop")
    else:
        squashed = model_type.startswith(SQUASHED_FAMILIES)
    return "squash" if squashed else "crop"

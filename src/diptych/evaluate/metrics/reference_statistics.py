"""Of a set of real images, what drawings are compared with: features in a safetensors file of ours, or mean and
covariance in an .npz of pytorch-fid or clean-fid."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from diptych.data.images import open_image
from diptych.evaluate.metrics.feature_networks import INCEPTION, INCEPTION_DIM, FeatureNetwork
from diptych.evaluate.suite import Progress
from diptych.models.morph_files import replace_whole

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
_AT_ONCE = 64


@dataclass(frozen=True)
class Reference:
    """`features` [N, D]: None where only `mean` [D] and `covariance` [D, D] are known: no KID without them. `network`:
    whose features, by name; `network_hash`: "" where the file does not say it."""

    network: str
    network_hash: str
    features: Tensor | None
    mean: Tensor
    covariance: Tensor


def find_images(folder: Path) -> list[Path]:
    """All images in a folder and those below, by name. Raises ValueError for none."""
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not found:
        raise ValueError(f"{folder} holds no images ({', '.join(SUFFIXES)}); give another folder")
    return found


def write_reference(folder: Path, out: Path, *, network: FeatureNetwork, progress: Progress) -> int:
    """The features of all images of a folder, as `out`; how many they are. Raises ValueError for images that cannot
    be read, naming them."""
    files = find_images(folder)
    parts = []
    for start in range(0, len(files), _AT_ONCE):
        parts.append(network.features([open_image(path) for path in files[start : start + _AT_ONCE]]))
        progress("embedding real images", min(start + _AT_ONCE, len(files)), len(files))
    tensors = {"features": torch.cat(parts)}
    told = {"network": network.name, "network_hash": network.hash}
    replace_whole(out, lambda partial: save_file(tensors, partial, metadata=told))
    return len(files)


def read_reference(path: Path) -> Reference:
    """Raises ValueError for a file that is damaged, or holds something else."""
    remedy = "make one by: diptych eval-reference FOLDER --out reference.safetensors"
    try:
        return _read_npz(path) if path.suffix == ".npz" else _read_safetensors(path)
    except (SafetensorError, zipfile.BadZipFile, OSError, KeyError, ValueError) as error:
        raise ValueError(f"{path} holds no statistics of real images ({error}); {remedy}") from error


def _read_safetensors(path: Path) -> Reference:
    with safe_open(path, framework="pt") as file:
        told, features = file.metadata() or {}, file.get_tensor("features")
    if features.ndim != 2 or len(features) < 2 or not bool(features.isfinite().all()):
        raise ValueError(f"features of shape {list(features.shape)} that are not finite, or no table")
    double = features.double()
    return Reference(told["network"], told["network_hash"], features, double.mean(dim=0), double.T.cov())


def _read_npz(path: Path) -> Reference:
    """Only arrays of numbers are read: an .npz may hold pickles, which are refused."""
    with np.load(path, allow_pickle=False) as file:
        mean, covariance = (torch.from_numpy(file[name]).double() for name in ("mu", "sigma"))
    if mean.shape != (INCEPTION_DIM,) or covariance.shape != (INCEPTION_DIM, INCEPTION_DIM):
        raise ValueError(f"mu {list(mean.shape)} and sigma {list(covariance.shape)} are not Inception's")
    return Reference(INCEPTION, "", None, mean, covariance)

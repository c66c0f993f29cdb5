"""Laws of references: written, they are read as they were; another's mean and covariance serve too; no pickle does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from diptych.evaluate.metrics.feature_networks import FeatureNetwork
from diptych.evaluate.metrics.reference_statistics import find_images, read_reference, write_reference

NETWORK = FeatureNetwork("colours", "1" * 64, 4, lambda images: images.flatten(1))


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    (folder / "more").mkdir(parents=True)
    for number in range(70):
        cells = np.random.default_rng(number).integers(0, 255, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(cells).save(folder / ("more" if number % 2 else "") / f"{number:02}.png")
    return folder


def features_of(folder: Path) -> Tensor:
    return torch.cat([NETWORK.features([Image.open(path)]) for path in find_images(folder)])


def test_what_is_written_is_read(pictures: Path, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    out = tmp_path / "reference.safetensors"
    num = write_reference(pictures, out, network=NETWORK, progress=lambda what, done, total: told.append((done, total)))
    assert num == 70
    assert told == [(64, 70), (70, 70)]
    reference = read_reference(out)
    features = features_of(pictures)
    assert (reference.network, reference.network_hash) == ("colours", "1" * 64)
    assert reference.features is not None
    assert torch.equal(reference.features, features)
    assert reference.mean.tolist() == pytest.approx(np.mean(features.numpy(), axis=0, dtype=np.float64).tolist())
    theirs = np.cov(features.double().numpy(), rowvar=False)
    torch.testing.assert_close(reference.covariance, torch.from_numpy(theirs))


def test_mean_and_covariance_of_inception_are_read_from_npz(tmp_path: Path) -> None:
    mean, covariance = np.random.default_rng(0).random(2048), np.eye(2048)
    np.savez(tmp_path / "reference.npz", mu=mean, sigma=covariance)
    reference = read_reference(tmp_path / "reference.npz")
    assert (reference.network, reference.network_hash, reference.features) == ("inception", "", None)
    assert reference.mean.tolist() == mean.tolist()
    assert torch.equal(reference.covariance, torch.eye(2048, dtype=torch.double))


def test_pickles_and_other_files_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "pickled.npz", mu=np.array([object()], dtype=object), sigma=np.eye(2))
    np.savez(tmp_path / "small.npz", mu=np.zeros(8), sigma=np.eye(8))
    np.savez(tmp_path / "other.npz", weights=np.zeros(8))
    save_file({"features": torch.zeros(4, 2)}, tmp_path / "untold.safetensors")
    save_file({"weight": torch.zeros(4, 2)}, tmp_path / "model.safetensors")
    told = {"network": "colours", "network_hash": ""}
    save_file({"features": torch.full((4, 2), torch.nan)}, tmp_path / "nan.safetensors", metadata=told)
    for name in ("cut.safetensors", "cut.npz"):
        (tmp_path / name).write_bytes(b"\x10")
    for file in sorted(tmp_path.iterdir()):
        with pytest.raises(ValueError, match=rf"{file.name} holds no statistics of real images .*eval-reference"):
            read_reference(file)


def test_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no images"):
        write_reference(tmp_path, tmp_path / "a.safetensors", network=NETWORK, progress=lambda *told: None)

"""Laws of feature networks: Inception sees pixels as its keepers gave them, and what is no Inception is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from diptych.backbones.cache_folder import hash_file
from diptych.evaluate.metrics.feature_networks import INCEPTION_SIZE, load_feature_network, load_inception
from tiny_judges import write_inception

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")


def picture(seed: int, size: tuple[int, int] = (40, 30)) -> Image.Image:
    cells = np.random.default_rng(seed).integers(0, 255, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(cells).resize(size)


def test_inception_sees_resized_pixels_about_128(tmp_path: Path) -> None:
    file = write_inception(tmp_path / "inception.pt")
    network = load_inception(file)
    assert (network.name, network.image_size, network.hash) == ("inception", INCEPTION_SIZE, hash_file(file))
    image = picture(0)
    side = image.crop((5, 0, 35, 30)).resize((299, 299), Image.Resampling.BICUBIC)
    pixels = torch.from_numpy(np.array(side, dtype=np.float32)).permute(2, 0, 1)[None]
    theirs = torch.jit.load(str(file)).layers((pixels - 128) / 128).flatten(1)
    torch.testing.assert_close(network.features([image]), theirs.detach(), rtol=1e-5, atol=1e-6)


def test_features_do_not_depend_on_the_batch(tmp_path: Path) -> None:
    network = load_feature_network(write_inception(tmp_path / "inception.pt"))
    images = [picture(k) for k in range(5)]
    together = network.features(images)
    assert together.shape == (5, 2048)
    assert torch.equal(together, torch.cat([network.features([image]) for image in images]))


def test_what_is_no_inception_is_refused_with_where_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"is no file; give inception-2015-12-05\.pt"):
        load_inception(tmp_path / "nothing.pt")
    (tmp_path / "weights.pt").write_bytes(b"no zip")
    with pytest.raises(ValueError, match="is none of TorchScript"):
        load_inception(tmp_path / "weights.pt")
    torch.save({"weight": torch.zeros(3)}, tmp_path / "state.pth")
    with pytest.raises(ValueError, match="is none of TorchScript"):
        load_inception(tmp_path / "state.pth")
    other = load_inception(write_inception(tmp_path / "other.pt", num_features=8))
    with pytest.raises(ValueError, match="gives 8 features"):
        other.features([picture(0)])


@pytest.mark.assets("efficientnet-lite0")
def test_without_inception_it_is_the_embedded_network() -> None:
    network = load_feature_network(None)
    assert (network.name, network.image_size) == ("efficientnet-lite0", 224)
    assert network.features([picture(0)]).shape == (1, 1280)

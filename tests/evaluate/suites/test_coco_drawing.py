"""Laws of COCO-30K: FID and KID are Inception's alone, another network's bear its name, and no reference is guessed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from diptych.backbones.cache_folder import hash_file
from diptych.evaluate.harness import evaluate_suites
from diptych.evaluate.metrics.feature_networks import EMBEDDED, FeatureNetwork, load_inception
from diptych.evaluate.metrics.reference_statistics import write_reference
from diptych.evaluate.suites import coco_drawing
from diptych.evaluate.suites.coco_drawing import CocoDrawing
from diptych.evaluate.suites.prompt_judges import Judges
from tiny_judges import write_inception
from toy_suite import STAMP, FakeMorph

pytest.importorskip("torchmetrics")
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
NUM = 40


def picture(seed: int) -> Image.Image:
    cells = np.random.default_rng(seed).integers(0, 255, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(cells).resize((16, 16))


class Drawer(FakeMorph):
    def __init__(self, first: int = 1000, **options: Any) -> None:
        super().__init__(lambda prompt, images: picture(first + int(prompt.split()[1])), **options)


class Means:
    """Stands for the embedded network: 3 features, the mean colour."""

    def __init__(self) -> None:
        self.network = FeatureNetwork(EMBEDDED, "2" * 64, 4, lambda images: images.mean(dim=(2, 3)))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "coco"
    (folder / "real").mkdir(parents=True)
    for number in range(NUM):
        picture(number).save(folder / "real" / f"{number:02}.png")
    lines = [json.dumps({"prompt": f"picture {number}"}) for number in range(NUM)]
    (folder / "prompts.jsonl").write_text("\n".join(lines))
    return folder


@pytest.fixture
def embedded(monkeypatch: pytest.MonkeyPatch) -> FeatureNetwork:
    network = Means().network
    monkeypatch.setattr(coco_drawing, "load_feature_network", lambda inception, **_: network)
    return network


def make_reference(data: Path, network: FeatureNetwork) -> None:
    write_reference(data / "real", data / "reference.safetensors", network=network, progress=lambda *told: None)


def evaluate(morph: Any, data: Path, out: Path, judges: Judges = Judges()) -> dict[str, Any]:  # noqa: B008
    suite = CocoDrawing(data, judges)
    suite.needs = type(suite.needs)(("draws",))  # of no assets: the network stands in
    evaluate_suites(morph, [suite], out, stamp=STAMP, batch_size=9)
    return json.loads((out / "scores.json").read_text())["suites"]["coco-30k"]["scores"]


def test_the_embedded_networks_distances_bear_its_name(data: Path, tmp_path: Path, embedded: FeatureNetwork) -> None:
    make_reference(data, embedded)
    same = evaluate(Drawer(0), data, tmp_path / "same")
    assert set(same) == {"fd_efflite0", "kid_efflite0"}
    assert same["fd_efflite0"]["mean"] == pytest.approx(0, abs=1e-6)
    assert same["fd_efflite0"]["interval_95"] is None
    assert same["kid_efflite0"]["n"] == NUM
    dark = Drawer()
    dark.rule = lambda prompt, images: Image.new("RGB", (16, 16), (int(prompt.split()[1]), 0, 0))
    far = evaluate(dark, data, tmp_path / "far")
    assert far["fd_efflite0"]["mean"] > 0.1
    assert far["kid_efflite0"]["interval_95"][0] > 0


def test_a_run_that_goes_on_has_the_same_scores(data: Path, tmp_path: Path, embedded: FeatureNetwork) -> None:
    make_reference(data, embedded)
    whole = evaluate(Drawer(), data, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        evaluate(Drawer(fails_at=20), data, tmp_path / "out")
    assert evaluate(Drawer(), data, tmp_path / "out") == whole
    assert evaluate(Drawer(), data, tmp_path / "out") == whole


def test_fid_and_kid_are_inceptions(data: Path, tmp_path: Path) -> None:
    file = write_inception(tmp_path / "inception.pt")
    make_reference(data, load_inception(file))
    scores = evaluate(Drawer(), data, tmp_path / "out", Judges(inception=file))
    assert set(scores) == {"kid"}, "a Fréchet distance of 2,048 features needs more drawings than these"
    stamp = json.loads((tmp_path / "out" / "stamp.json").read_text())
    assert stamp["suites"]["coco-30k"]["judges"] == {
        "inception": hash_file(file),
        "reference": hash_file(data / "reference.safetensors"),
    }
    assert CocoDrawing(data, Judges(inception=file)).needs.assets == ()


def test_fid_is_told_of_more_drawings_than_features(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = FeatureNetwork("inception", "3" * 64, 4, Means().network.pooled)
    monkeypatch.setattr(coco_drawing, "load_feature_network", lambda inception, **_: network)
    make_reference(data, network)
    assert set(evaluate(Drawer(), data, tmp_path / "out")) == {"fid", "kid"}


def test_a_reference_of_mean_and_covariance_gives_no_kid(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_inception(tmp_path / "inception.pt")
    np.savez(data / "reference.npz", mu=np.zeros(2048), sigma=np.eye(2048))
    assert evaluate(Drawer(), data, tmp_path / "out", Judges(inception=file)) == {}


def test_what_does_not_fit_is_refused_before_anything_is_drawn(
    data: Path, tmp_path: Path, embedded: FeatureNetwork
) -> None:
    morph = Drawer()
    with pytest.raises(ValueError, match=r"give --data coco-30k=DIR .* diptych eval-reference FOLDER"):
        CocoDrawing(None).load_examples(lambda *told: None)
    with pytest.raises(ValueError, match=r"must hold either reference\.safetensors or reference\.npz"):
        evaluate(morph, data, tmp_path / "out")
    np.savez(data / "reference.npz", mu=np.zeros(2048), sigma=np.eye(2048))
    with pytest.raises(ValueError, match=r"is of inception, .* give its weights by --inception"):
        evaluate(morph, data, tmp_path / "out")
    make_reference(data, embedded)
    with pytest.raises(ValueError, match=r"must hold either reference\.safetensors or reference\.npz"):
        evaluate(morph, data, tmp_path / "out")
    (data / "reference.npz").unlink()
    make_reference(data, FeatureNetwork(EMBEDDED, "4" * 64, 4, embedded.pooled))
    with pytest.raises(ValueError, match="is of other weights of efficientnet-lite0; make it again"):
        evaluate(morph, data, tmp_path / "out")
    assert morph.num_answered == 0


@pytest.mark.assets("efficientnet-lite0")
def test_the_embedded_network_itself_judges(data: Path, tmp_path: Path) -> None:
    from diptych.evaluate.metrics.feature_networks import load_feature_network

    make_reference(data, load_feature_network(None))
    suite = CocoDrawing(data)
    (result,) = evaluate_suites(Drawer(), [suite], tmp_path / "out", stamp=STAMP, limit=12)
    assert set(result.scores) == {"kid_efflite0"}
    assert torch.isfinite(torch.tensor(result.scores["kid_efflite0"].mean))

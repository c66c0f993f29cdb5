"""Laws of recipes/mixtures: each file is the `data:` of a recipe, tells where the set comes from, and MetaMorph's and
X-Fusion's reproduce the papers' shares."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from diptych.config import build_recipe
from diptych.data.mixture import Mixture
from diptych.data_settings import DataConfig

ROOT = Path(__file__).parents[2]
MIXTURES = sorted((ROOT / "recipes" / "mixtures").glob("*.yaml"))
SETS = {
    "cambrian": "ImageQA",
    "video-star": "VideoQA",
    "sharegptvideo": "VideoQA",
    "metaclip": "generation",
    "howto100m": "pure video",
    "something-something-v2": "pure video",
    "visual-cot": "visual thinking",
    "vstar": "visual thinking",
    "instructpix2pix": "image to image",
    "aurora": "image to image",
}
SHARES = {
    "ImageQA": 44.0,
    "VideoQA": 9.9,
    "generation": 31.1,
    "pure video": 8.8,
    "visual thinking": 3.2,
    "image to image": 3.0,
}


def load(path: Path) -> DataConfig:
    settings: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert list(settings) == ["data"]
    return build_recipe({"output_dir": "runs/x", **settings}, origin=str(path)).data


@pytest.mark.parametrize("path", MIXTURES, ids=lambda path: path.stem)
def test_a_mixture_is_the_data_of_a_recipe_and_says_where_it_comes_from(path: Path) -> None:
    assert load(path).sources
    told = [line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("# ")]
    for label in ("# Download: ", "# Licence: ", "# Folder: "):
        assert any(line.startswith(label) and len(line) > len(label) + 10 for line in told), label


def test_there_is_one_for_each_set_and_the_page_names_it() -> None:
    assert {path.stem for path in MIXTURES} >= {
        "cambrian", "llava-instruct", "video-star", "sharegptvideo", "sharegpt4video", "generation-pairs", "howto100m",
        "something-something", "visual-cot", "vstar", "instructpix2pix", "aurora", "cc12m", "coco", "metamorph",
        "xfusion",
    }  # fmt: skip
    page = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
    assert [path.name for path in MIXTURES if f"{path.name}" not in page] == []


def drawn(data: DataConfig) -> list[int]:
    """How often each source is drawn from in a round."""
    weights = tuple(source.weight for source in data.sources)
    mixture = Mixture((10**6,) * len(weights), weights)
    counts = Counter(mixture.pick(draw)[1] for draw in range(mixture.round_length))
    return [counts[source] for source in range(len(weights))]


def test_metamorphs_mixture_has_the_papers_shares() -> None:
    data = load(ROOT / "recipes" / "mixtures" / "metamorph.yaml")
    shares = dict.fromkeys(SHARES, 0.0)
    counts = drawn(data)
    for source, count in zip(data.sources, counts, strict=True):
        shares[SETS[source.path.split("/")[1]]] += 100 * count / sum(counts)
    assert shares == {name: pytest.approx(share, abs=0.5) for name, share in SHARES.items()}


def test_xfusions_mixture_draws_two_to_one() -> None:
    data = load(ROOT / "recipes" / "mixtures" / "xfusion.yaml")
    assert [(source.task, count) for source, count in zip(data.sources, drawn(data), strict=True)] == [
        ("draw", 2),
        ("read", 1),
    ]


def test_metamorphs_sources_are_those_of_each_sets_own_file() -> None:
    """But for their weights: a change of a set's file is not forgotten there."""
    whole = [source.model_copy(update={"weight": 1}) for source in load(_file("metamorph")).sources]
    parts = [
        source.model_copy(update={"weight": 1})
        for name in ("cambrian", "video-star", "sharegptvideo", "generation-pairs", "howto100m", "something-something",
                     "visual-cot", "vstar", "instructpix2pix", "aurora")
        for source in load(_file(name)).sources
    ]  # fmt: skip
    assert whole == parts


def _file(name: str) -> Path:
    return ROOT / "recipes" / "mixtures" / f"{name}.yaml"

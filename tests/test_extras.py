"""Law of extras: what needs a package that is not there says which extra of ours brings it, before anything else."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from diptych.data.sources import open_sources
from diptych.data.video import read_clip_info
from diptych.data_settings import DataConfig, SourceConfig
from diptych.evaluate.suite import check_needs
from diptych.evaluate.suites.image_reconstruction import ImageReconstruction
from diptych.models.vpit_building import add_lora
from diptych.settings import LoraConfig
from tiny_xfusion import build_language


def open_source(path: Path | str, split: str | None = None) -> object:
    return open_sources(DataConfig(sources=(SourceConfig(path=str(path), split=split, limit=3),)))


def read_parquet(folder: Path) -> object:
    (folder / "a.parquet").write_bytes(b"PAR1" * 8)
    return open_source(folder / "a.parquet")


def read_saved_dataset(folder: Path) -> object:
    (folder / "dataset_info.json").write_text("{}")
    (folder / "state.json").write_text("{}")
    return open_source(folder)


def read_mp4(folder: Path) -> object:
    (folder / "a.mp4").write_bytes(b"\0\0\0\x18ftypisom" + bytes(64))
    return read_clip_info(folder / "a.mp4")


def reconstruct(folder: Path) -> object:
    return check_needs(ImageReconstruction(folder), SimpleNamespace(abilities={"reconstructs"}))


NEEDS: dict[str, tuple[str, str, Callable[[Path], object]]] = {
    "parquet": ("pyarrow", "data", read_parquet),
    "saved dataset": ("datasets", "data", read_saved_dataset),
    "hub": ("datasets", "data", lambda folder: open_source("hub:owner/name", "train")),
    "mp4": ("av", "video", read_mp4),
    "reconstruction": ("torchmetrics", "eval", reconstruct),
    "lora": ("peft", "train", lambda folder: add_lora(build_language().model, LoraConfig())),
}


@pytest.mark.parametrize("feature", NEEDS)
def test_a_missing_package_is_named_with_its_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, feature: str
) -> None:
    package, extra, use = NEEDS[feature]
    for name in [name for name in sys.modules if name.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ValueError, match=rf"pip install 'diptych\[{extra}\]'"):
        use(tmp_path)

"""Laws of the survey: a small set is read once, and while its file stays as it is, not even that."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from diptych.data import bad_records
from diptych.data.bad_records import survey_images
from diptych.data.sources import Source
from small_sources import source_of, write_pictures, write_records


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_pictures(tmp_path / "root")


@pytest.fixture
def index_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where surveys of however few records are kept."""
    monkeypatch.setattr(bad_records, "FEWEST_KEPT_RECORDS", 2)
    return tmp_path / "indices"


def showing(*names: str) -> list[dict[str, Any]]:
    return [{"messages": [{"role": "user", "content": "<image>"}], "images": [name]} for name in names]


def unread(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a record is read")

    monkeypatch.setattr(Source, "_read", refuse)


def test_a_small_set_is_surveyed_and_a_large_one_is_not(folder: Path) -> None:
    records = showing("b.png", "a.png", "b.png")
    sources = [source_of(write_records(folder / "x.jsonl", *records))]
    assert survey_images(sources, max_bad_fraction=0) == [[str(folder / name) for name in ("b.png", "a.png", "b.png")]]
    assert survey_images(sources, max_bad_fraction=0, max_records=2) is None
    bad = [source_of(write_records(folder / "y.jsonl", *records, {}))]
    with pytest.raises(ValueError, match=r"y\.jsonl: 1 of 4 records are bad \(structure: 1\)"):
        survey_images(bad, max_bad_fraction=0.1)
    with pytest.warns(UserWarning, match="they are skipped"):
        assert len((survey_images(bad, max_bad_fraction=0.25) or [[]])[0]) == 3


@pytest.mark.parametrize("name", ["x.jsonl", "x.json"])
def test_a_file_that_stays_as_it_is_is_surveyed_once(
    folder: Path, index_dir: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    path = write_records(folder / name, *showing("b.png", "a.png", "b.png"))
    options: dict[str, Any] = {"max_bad_fraction": 0, "index_dir": index_dir}
    first = survey_images([source_of(path)], **options)
    again = source_of(path, weight=5)
    unread(monkeypatch)
    assert survey_images([again], **options) == first
    with pytest.raises(AssertionError):
        survey_images([again], max_bad_fraction=0)


def test_a_file_that_has_changed_is_surveyed_anew(folder: Path, index_dir: Path) -> None:
    path = write_records(folder / "x.jsonl", *showing("b.png", "a.png"))
    survey_images([source_of(path)], max_bad_fraction=0, index_dir=index_dir)
    write_records(path, *showing("a.png", "b.png"))
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))
    (images,) = survey_images([source_of(path)], max_bad_fraction=0, index_dir=index_dir) or [[]]
    assert images == [str(folder / "a.png"), str(folder / "b.png")]


@pytest.mark.parametrize("key", ["limit", "image_root"])
def test_another_way_of_reading_is_another_survey(folder: Path, index_dir: Path, key: str) -> None:
    (folder / "c" / "a.png").write_bytes((folder / "a.png").read_bytes())
    path = write_records(folder / "x.jsonl", *showing("a.png", "a.png", "a.png"))
    plain = survey_images([source_of(path)], max_bad_fraction=0, index_dir=index_dir)
    other = source_of(path, **{key: 2 if key == "limit" else str(folder / "c")})
    expected = survey_images([other], max_bad_fraction=0)
    assert survey_images([other], max_bad_fraction=0, index_dir=index_dir) == expected != plain


def test_a_set_with_bad_records_is_told_every_time(folder: Path, index_dir: Path) -> None:
    """What is missing now may be there at the next start."""
    path = write_records(folder / "x.jsonl", *showing("a.png", "b.png", "late.png"))
    for _ in range(2):
        with pytest.warns(UserWarning, match="missing image: 1"):
            survey_images([source_of(path)], max_bad_fraction=0.5, index_dir=index_dir)
    (folder / "late.png").write_bytes((folder / "a.png").read_bytes())
    (images,) = survey_images([source_of(path)], max_bad_fraction=0, index_dir=index_dir) or [[]]
    assert len(images) == 3


def test_images_on_the_web_are_not_kept(folder: Path, index_dir: Path) -> None:
    """Their names alone would not say that the recipe allows them."""
    url = "https://images.example.com/a.png"
    path = write_records(folder / "x.jsonl", *showing(url, url))
    for _ in range(2):
        source = source_of(path, allow_urls=("images.example.com",))
        ((image, _),) = survey_images([source], max_bad_fraction=0, index_dir=index_dir) or [[]]
        assert type(image).__name__ == "WebImage"
    assert not index_dir.exists()


def test_a_damaged_survey_is_made_again(folder: Path, index_dir: Path) -> None:
    path = write_records(folder / "x.jsonl", *showing("a.png", "b.png"))
    expected = survey_images([source_of(path)], max_bad_fraction=0, index_dir=index_dir)
    (kept,) = index_dir.iterdir()
    np.save(kept, np.frombuffer(b'["half', np.uint8))
    with pytest.warns(UserWarning, match="is damaged"):
        assert survey_images([source_of(path)], max_bad_fraction=0, index_dir=index_dir) == expected
    assert survey_images([source_of(path)], max_bad_fraction=0, index_dir=index_dir) == expected

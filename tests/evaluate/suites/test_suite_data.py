"""Law of the sets in the cache: built once, and again where another version of diptych would build them otherwise."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from diptych.evaluate.suites import suite_data
from diptych.evaluate.suites.suite_data import find_emoji_set
from emoji_packages import NAMES, entry, write_packages


def silent(what: str, done: int, total: int) -> None:
    pass


def test_a_set_of_an_older_builder_is_built_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entries = [entry(name, i, group=3 + i % 5, subgroup=i % 7) for i, name in enumerate(NAMES)]
    packages = write_packages(tmp_path / "packages", entries)
    monkeypatch.setattr(suite_data, "_emoji_folders", lambda: packages)
    monkeypatch.setattr(suite_data, "cache_root", lambda: tmp_path / "cache")
    folder = find_emoji_set(None, silent)
    card = folder / "card.json"
    first = card.read_bytes()
    (folder / "mark").touch()
    assert find_emoji_set(None, silent) == folder
    assert (folder / "mark").exists(), "built once"
    older = json.loads(first)
    older["settings"]["builder_version"] = 0
    card.write_text(json.dumps(older))
    assert find_emoji_set(None, silent) == folder
    assert card.read_bytes() == first
    assert not (folder / "mark").exists()
    assert find_emoji_set(folder, silent) == folder, "one's own is taken as it is"

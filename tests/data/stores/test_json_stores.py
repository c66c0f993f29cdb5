"""Laws of JSON Lines and JSON arrays: what is read by number is what the file holds, whatever its white space."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from diptych.data.samples import RecordError
from diptych.data.stores import offset_index
from diptych.data.stores.json_array import JsonArray
from diptych.data.stores.json_lines import JsonLines

values = st.recursive(
    st.none() | st.integers() | st.text('ab"\\{}[],\n é🐶', max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text('a"\\]', max_size=3), inner, max_size=3),
    max_leaves=8,
)
spaces = st.text(" \t\r\n", max_size=3)
same_folder = settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])


@same_folder
@given(st.lists(values, max_size=6), spaces, st.integers(1, 40), st.booleans())
def test_an_array_is_split_where_its_elements_end(
    tmp_path: Path, elements: list[Any], space: str, chunk: int, indent: bool
) -> None:
    offset_index.CHUNK_BYTES, kept = chunk, offset_index.CHUNK_BYTES
    try:
        path = tmp_path / "a.json"
        text = json.dumps(elements, indent=2 if indent else None, ensure_ascii=chunk % 2 == 0)
        path.write_bytes((space + text + space).encode())
        store = JsonArray(path)
        assert [store.read(number) for number in range(len(store))] == elements
    finally:
        offset_index.CHUNK_BYTES = kept


@same_folder
@given(st.lists(values | st.just(None), max_size=6), st.lists(spaces, max_size=6), st.integers(1, 40))
def test_lines_are_found_and_blank_ones_are_none(
    tmp_path: Path, elements: list[Any], blanks: list[str], chunk: int
) -> None:
    offset_index.CHUNK_BYTES, kept = chunk, offset_index.CHUNK_BYTES
    try:
        path = tmp_path / "a.jsonl"
        lines = [json.dumps(element, ensure_ascii=False) for element in elements]
        for place, blank in enumerate(blanks):
            lines.insert(2 * place, blank)
        path.write_bytes("\n".join(lines).encode())
        store = JsonLines(path)
        assert [store.read(number) for number in range(len(store))] == elements
    finally:
        offset_index.CHUNK_BYTES = kept


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "does not end"),
        ("[1, 2", "does not end"),
        ('["a]', "does not end"),
        ('{"data": []}', "does not begin with"),
        ("[1] 2", "behind its JSON array"),
        ("[1]]", "behind its JSON array"),
    ],
)
def test_what_is_no_array_is_refused_with_its_name(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(ValueError, match=rf"a\.json: .*{words}"):
        JsonArray(tmp_path / "a.json")


def test_a_record_that_is_too_long_is_named_and_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("diptych.data.samples.MAX_RECORD_BYTES", 100)
    (tmp_path / "a.jsonl").write_text("1\n" + '"' + "x" * 500 + '"\n2\n')
    (tmp_path / "a.json").write_text('[1, "' + "x" * 500 + '", 2]')
    for store in (JsonLines(tmp_path / "a.jsonl"), JsonArray(tmp_path / "a.json")):
        assert (store.read(0), store.read(2)) == (1, 2)
        with pytest.raises(RecordError, match="longer than 100") as caught:
            store.read(1)
        assert caught.value.kind == "too long"


@pytest.mark.parametrize(("name", "opener"), [("a.jsonl", JsonLines), ("a.json", JsonArray)])
def test_an_index_is_kept_while_the_file_stays_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, opener: Any
) -> None:
    monkeypatch.setattr(offset_index, "SMALLEST_KEPT_BYTES", 0)
    path, indices = tmp_path / name, tmp_path / "indices"
    between = "\n" if opener is JsonLines else ","

    def write(*elements: int) -> None:
        body = between.join(map(str, elements))
        path.write_text(body if opener is JsonLines else f"[{body}]")

    def read() -> list[int]:
        store = opener(path, index_dir=indices)
        return [store.read(number) for number in range(len(store))]

    write(1, 2, 3)
    assert read() == [1, 2, 3]
    (index,) = indices.iterdir()
    before = index.stat().st_mtime_ns
    assert read() == [1, 2, 3]
    assert index.stat().st_mtime_ns == before
    write(4, 5)
    os.utime(path, ns=(1, 1))
    assert read() == [4, 5]
    for index in indices.iterdir():
        index.write_bytes(index.read_bytes()[:20])
    with pytest.warns(UserWarning, match="is damaged"):
        assert read() == [4, 5]
    assert {index.suffix for index in indices.iterdir()} == {".npy"}
    assert read() == [4, 5]


def test_opening_a_large_file_reads_no_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.jsonl").write_text("not JSON\n" * 1000)
    store = JsonLines(tmp_path / "a.jsonl")
    assert len(store) == 1000
    with pytest.raises(RecordError, match="not valid JSON"):
        store.read(999)

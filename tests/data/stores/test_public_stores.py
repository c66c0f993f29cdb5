"""Laws of the stores of public sets: tables without a header, COCO's captions, InstructPix2Pix's folders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from diptych.data.samples import RecordError
from diptych.data.stores.coco_captions import CocoCaptions
from diptych.data.stores.headless_table import HeadlessTable
from diptych.data.stores.pix2pix_folder import Pix2PixFolder

cells = st.text('ab",;é ', min_size=1, max_size=6)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(cells, cells), max_size=5))
def test_a_table_without_a_header_is_split_at_tabs_alone(tmp_path: Path, rows: list[tuple[str, str]]) -> None:
    rows = [row for row in rows if "".join(row).strip()]
    (tmp_path / "a.tsv").write_text("".join(f"{one}\t{two}\r\n" for one, two in rows), newline="")
    store = HeadlessTable(tmp_path / "a.tsv")
    assert [store.read(number) for number in range(len(store))] == [{"0": one, "1": two} for one, two in rows]


def test_a_line_that_is_none_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_bytes(b"http://x/a.jpg\ta dog\nno tab\n\nhttp://x/b.jpg\t\xff\nu\t\n")
    store = HeadlessTable(tmp_path / "a.tsv")
    assert len(store) == 4
    assert store.read(0) == {"0": "http://x/a.jpg", "1": "a dog"}
    assert store.read(3) == {"0": "u"}
    for number, kind in ((1, "structure"), (2, "encoding")):
        with pytest.raises(RecordError) as caught:
            store.read(number)
        assert caught.value.kind == kind
    assert store.where(1) == f"{tmp_path / 'a.tsv'}, line 2"


COCO: dict[str, Any] = {
    "info": {"year": 2017},
    "licenses": [],
    "images": [
        {"id": 9, "file_name": "000000000009.jpg", "height": 480, "width": 640},
        {"id": 25, "file_name": "000000000025.jpg"},
    ],
    "annotations": [
        {"image_id": 25, "id": 1, "caption": "A giraffe eats.\n"},
        {"image_id": 9, "id": 2, "caption": "Food in boxes."},
        {"image_id": 25, "id": 3, "caption": "Two giraffes."},
        {"image_id": 77, "id": 4, "caption": "Nowhere."},
        {"image_id": 9, "id": 5, "caption": 3},
        "none",
    ],
}


def test_coco_is_a_record_per_caption(tmp_path: Path) -> None:
    path = tmp_path / "captions.json"
    path.write_text(json.dumps(COCO))
    store = CocoCaptions(path)
    assert len(store) == 6
    assert [store.read(number) for number in range(3)] == [
        {"image": "000000000025.jpg", "caption": "A giraffe eats.\n", "id": 1},
        {"image": "000000000009.jpg", "caption": "Food in boxes.", "id": 2},
        {"image": "000000000025.jpg", "caption": "Two giraffes.", "id": 3},
    ]
    for number, kind in ((3, "missing image"), (4, "empty"), (5, "missing image")):
        with pytest.raises(RecordError) as caught:
            store.read(number)
        assert caught.value.kind == kind
    assert store.where(2) == f"{path}, annotation 3"


@pytest.mark.parametrize("text", ["[]", '{"images": []}', '{"images": {}, "annotations": []}', "{", "3"])
def test_what_is_not_cocos_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(ValueError, match=r"a\.json"):
        CocoCaptions(tmp_path / "a.json")


def pix2pix(root: Path, seeds: Any) -> Path:
    for name, edit in (("shard-00/0000001", "make it snow"), ("shard-01/0000002", "add a hat")):
        (root / name).mkdir(parents=True)
        (root / name / "prompt.json").write_text(json.dumps({"input": "a", "edit": edit, "output": "b"}))
    (root / "seeds.json").write_text(json.dumps(seeds))
    return root


def test_pairs_are_listed_by_their_seeds(tmp_path: Path) -> None:
    store = Pix2PixFolder(pix2pix(tmp_path, [["shard-00/0000001", ["11", "12"]], ["shard-01/0000002", [7]]]))
    assert [store.read(number) for number in range(len(store))] == [
        {
            "instruction": "make it snow",
            "input_image": "shard-00/0000001/11_0.jpg",
            "output_image": "shard-00/0000001/11_1.jpg",
        },
        {
            "instruction": "make it snow",
            "input_image": "shard-00/0000001/12_0.jpg",
            "output_image": "shard-00/0000001/12_1.jpg",
        },
        {
            "instruction": "add a hat",
            "input_image": "shard-01/0000002/7_0.jpg",
            "output_image": "shard-01/0000002/7_1.jpg",
        },
    ]
    assert store.where(2) == f"{tmp_path / 'shard-01/0000002'}, seed 7"


def test_a_folder_that_is_gone_or_leads_out_is_named(tmp_path: Path) -> None:
    root = pix2pix(tmp_path / "root", [["shard-09/1", [1]], ["../out", [1]], ["shard-00/0000001", [1]]])
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "prompt.json").write_text('{"edit": "secret"}')
    (root / "shard-00/0000001/prompt.json").write_text("[]")
    store = Pix2PixFolder(root)
    for number, kind in ((0, "missing prompt"), (1, "image path"), (2, "structure")):
        with pytest.raises(RecordError) as caught:
            store.read(number)
        assert caught.value.kind == kind
        assert "secret" not in str(caught.value)


@pytest.mark.parametrize("seeds", [[["a"]], [["a", "b"]], [[3, []]], [["a", [1.5]]], [None]])
def test_seeds_of_another_form_are_refused(tmp_path: Path, seeds: Any) -> None:
    with pytest.raises(ValueError, match=r"seeds\.json, record 1 must be \[folder, \[seed"):
        Pix2PixFolder(pix2pix(tmp_path, seeds))


def test_a_folder_without_seeds_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"seeds\.json does not exist"):
        Pix2PixFolder(tmp_path)

"""Laws of public sets of images to draw, with their words: in its true layout, in the folders that its file in
recipes/mixtures names, opened by that file's own settings, a small set becomes the samples written here by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from diptych.data.record_formats.generation_pairs import LEAD_INS
from diptych.data.sources import open_sources
from diptych.data_settings import DataConfig
from public_set_layouts import (
    BLUE,
    LIME,
    RED,
    colours,
    encoded,
    kind_of_error,
    near,
    opened,
    pair,
    picture,
    said,
    settings_of,
    write,
    write_shard,
    write_table,
)


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder `data` that the mixtures name their sets in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path / "data"


def test_generation_pairs(data: Path) -> None:
    write_shard(data / "metaclip/00000.tar", [pair("000000000", "a red kite", RED), pair("000000001", "grass.", LIME)])
    write_shard(data / "metaclip/00001.tar", [pair("000010000", "sea", BLUE), ("000010001", {"txt": b"gone"})])
    (source,) = opened("generation-pairs")
    assert [said(source[number]) for number in range(2)] == [
        [("user", ("Generate an image of a red kite.",)), ("assistant", (f"{LEAD_INS[2]}\n", 0))],
        [("user", ("Generate an image of grass.",)), ("assistant", (f"{LEAD_INS[0]}\n", 0))],
    ]
    assert near([colours(source[number])[0] for number in range(3)], [RED, LIME, BLUE])
    assert kind_of_error(source, 3) == "image count"


def test_instructpix2pix(data: Path) -> None:
    for shard, edit in enumerate(("make it blue", "add snow")):
        fields = {
            "original_prompt": ["a field"],
            "original_image": [encoded(RED)],
            "edit_prompt": [edit],
            "edited_prompt": ["a blue field"],
            "edited_image": [encoded(BLUE)],
        }
        write_table(data / f"instructpix2pix/data/train-0000{shard}-of-00262-f83a.parquet", fields)
    (source,) = opened("instructpix2pix")
    assert [said(source[number]) for number in range(len(source))] == [
        [("user", (0, f"\n{edit}")), ("assistant", (1,))] for edit in ("make it blue", "add snow")
    ]
    assert colours(source[0]) == [RED, BLUE]


def test_instructpix2pix_in_folders(data: Path) -> None:
    root = data / "clip-filtered-dataset"
    for seed, colour in (("11", BLUE), ("12", LIME)):
        picture(root / f"shard-00/0000001/{seed}_0.jpg", RED)
        picture(root / f"shard-00/0000001/{seed}_1.jpg", colour)
    write(root / "shard-00/0000001/prompt.json", [])
    (root / "shard-00/0000001/prompt.json").write_text('{"input": "a", "edit": "make it blue", "output": "b"}')
    write(root / "seeds.json", [["shard-00/0000001", ["11", "12", "13"]]])
    (source,) = opened("instructpix2pix-folders")
    assert said(source[0]) == said(source[1]) == [("user", (0, "\nmake it blue")), ("assistant", (1,))]
    assert near(colours(source[1]), [RED, LIME])
    assert kind_of_error(source, 2) == "missing image"


def test_aurora(data: Path) -> None:
    fields = {
        "input": [encoded(RED), encoded(RED)],
        "output": [encoded(BLUE), encoded(LIME)],
        "instruction": ["Leave the door.", ""],
        "source": ["ag", "ag"],
    }
    write_table(data / "aurora/data/train-00000-of-00093.parquet", fields)
    (source,) = opened("aurora")
    assert said(source[0]) == [("user", (0, "\nLeave the door.")), ("assistant", (1,))]
    assert colours(source[0]) == [RED, BLUE]
    assert kind_of_error(source, 1) == "empty"


def test_aurora_as_the_repository_has_it(data: Path) -> None:
    for side, colour in (("left", RED), ("right", BLUE)):
        picture(data / f"aurora/data/ag/images/1K0SU.mp4_4_{side}.png", colour)
    pair_of = {side: f"data/ag/images/1K0SU.mp4_4_{side}.png" for side in ("left", "right")}
    record = {"instruction": "Leave the door.", "input": pair_of["left"], "output": pair_of["right"]}
    write(data / "aurora/data/ag/train.json", [record])
    (config,) = settings_of("aurora").sources
    changes = {"path": "data/aurora/data/ag/train.json", "store": None, "image_root": "data/aurora"}
    (source,) = open_sources(DataConfig(sources=(config.model_copy(update=changes),)))
    assert said(source[0]) == [("user", (0, "\nLeave the door.")), ("assistant", (1,))]
    assert colours(source[0]) == [RED, BLUE]


@pytest.mark.parametrize(("name", "folder"), [("cc12m", "cc12m"), ("xfusion", "captioned")])
def test_captions_in_both_directions(data: Path, name: str, folder: str) -> None:
    write_shard(data / f"{folder}/00000.tar", [pair("000000000", "A red kite.", RED)])
    # img2dataset's own records stand beside the shards.
    write_table(data / f"{folder}/00000.parquet", {"url": ["http://x"], "caption": ["A red kite."]})
    (data / f"{folder}/00000_stats.json").write_text("{}")
    draw, read = opened(name)
    assert said(draw[0]) == [("user", ("Generate an image of A red kite.",)), ("assistant", (0,))]
    assert said(read[0]) == [("user", (0, "\nDescribe the image.")), ("assistant", ("A red kite.",))]
    assert near(colours(draw[0]), [RED])


def test_cc12m_as_urls(data: Path) -> None:
    data.mkdir()
    lines = ["https://farm5.staticflickr.com/1.jpg\tA red kite", "https://elsewhere.com/2.jpg\tA cup", "no tab"]
    (data / "cc12m.tsv").write_text("".join(f"{line}\n" for line in lines))
    (source,) = opened("cc12m-urls")
    assert said(source[0]) == [("user", ("Generate an image of A red kite.",)), ("assistant", (0,))]
    assert source[0].images == ("https://farm5.staticflickr.com/1.jpg",)
    assert kind_of_error(source, 1) == "image path"
    assert kind_of_error(source, 2) == "structure"


def test_coco(data: Path) -> None:
    picture(data / "coco/train2017/000000000009.jpg", LIME)
    content = {
        "info": {},
        "licenses": [],
        "images": [{"id": 9, "file_name": "000000000009.jpg"}, {"id": 25, "file_name": "000000000025.jpg"}],
        "annotations": [
            {"id": 1, "image_id": 9, "caption": "Food in boxes."},
            {"id": 2, "image_id": 25, "caption": "A giraffe."},
        ],
    }
    path = data / "coco/annotations/captions_train2017.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(content))
    draw, read = opened("coco")
    assert said(draw[0]) == [("user", ("Generate an image of Food in boxes.",)), ("assistant", (0,))]
    assert said(read[0]) == [("user", (0, "\nDescribe the image.")), ("assistant", ("Food in boxes.",))]
    assert near(colours(draw[0]), [LIME])
    assert kind_of_error(draw, 1) == "missing image"

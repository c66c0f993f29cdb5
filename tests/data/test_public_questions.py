"""Laws of public sets of questions about images: in its true layout, in the folders that its file in
recipes/mixtures names, opened by that file's own settings, a small set becomes the samples written here by hand."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from diptych.data.bad_records import good_samples
from diptych.data.image_regions import RED as PEN
from diptych.data.references import content_hash, open_reference
from diptych.data.samples import RecordError
from diptych.data.sources import open_sources
from diptych.data_settings import DataConfig
from public_set_layouts import BLUE, GREY, LIME, RED, colours, kind_of_error, near, opened, picture, said, turns, write


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder `data` that the mixtures name their sets in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path / "data"


REQUEST = "Please provide the bounding box coordinate of the region that can help you answer the question better."


def test_cambrian(data: Path) -> None:
    picture(data / "cambrian/ocr_vqa/images/1.jpg", RED)
    records: list[Any] = [
        {
            "id": "1",
            "source": "ocr_vqa",
            "image": "ocr_vqa/images/1.jpg",
            "conversations": turns("<image>\nWho?", "Ada."),
        },
        {"id": "2", "source": "code", "conversations": turns("Sort a list.", "sorted(x)", "Why?", "It is short.")},
        {"id": "3", "image": "ocr_vqa/images/1.jpg", "conversations": turns("Who?", "Ada.")},
        {"id": "4", "image": "ocr_vqa/images/9.jpg", "conversations": turns("<image>\nWho?", "Ada.")},
    ]
    records[1]["conversations"].insert(0, {"from": "system", "value": "Be brief."})
    write(data / "cambrian/jsons/Cambrian7M_withsystemprompt.jsonl", records)
    (source,) = opened("cambrian")
    assert said(source[0]) == [("user", (0, "\nWho?")), ("assistant", ("Ada.",))]
    assert near(colours(source[0]), [RED])
    assert [role for role, _ in said(source[1])] == ["system", "user", "assistant", "user", "assistant"]
    assert source[1].images == ()
    assert kind_of_error(source, 2) == "image count"
    assert kind_of_error(source, 3) == "missing image"


def test_llava_instruct(data: Path) -> None:
    picture(data / "coco/train2017/000000033471.jpg", LIME)
    conversation = turns("<image>\nWhat colour is the bus?", "Red.", "How many?\n", "One.")
    record = {"id": "000000033471", "image": "000000033471.jpg", "conversations": conversation}
    write(data / "llava-instruct/llava_instruct_150k.json", [record, {**record, "image": "../secret.jpg"}])
    (source,) = opened("llava-instruct")
    assert said(source[0]) == [
        ("user", (0, "\nWhat colour is the bus?")),
        ("assistant", ("Red.",)),
        ("user", ("How many?\n",)),
        ("assistant", ("One.",)),
    ]
    assert near(colours(source[0]), [LIME])
    assert source[0].meta == {"id": "000000033471"}
    assert kind_of_error(source, 1) == "image path"


def test_visual_cot(data: Path) -> None:
    path = data / "visual-cot/cot/flickr30k/1.png"
    picture(path, GREY, (60, 40))
    with Image.open(path) as image:
        image.paste(RED, (30, 10, 50, 20))
        image.save(path)
    record = {
        "image": ["cot/flickr30k/1.png", "cot/flickr30k/1.png###[30, 10, 50, 20]"],
        "conversations": turns(f"<image>\nWhat is red? {REQUEST}", "[0.5, 0.333, 0.833, 0.5]", "<image>", "The sign."),
    }
    outside = {**record, "image": ["cot/flickr30k/1.png", "cot/flickr30k/1.png###[70, 10, 90, 20]"]}
    inverted = {**record, "image": ["cot/flickr30k/1.png", "cot/flickr30k/1.png###[50, 10, 30, 20]"]}
    write(data / "visual-cot/viscot_363k.json", [record, inverted, outside])
    (source,) = opened("visual-cot")
    assert said(source[0]) == [
        ("user", (0, "\nWhat is red?")),
        ("assistant", ("I will look closer at the part of the image that answers this.\n", 1, "\nThe sign.")),
    ]
    whole, region = (open_reference(image) for image in source[0].images)
    assert (whole.size, region.size) == ((60, 40), (20, 20))
    # A square around the box: 5 pixels more above and below.
    assert region.getcolors() == [(200, GREY), (200, RED)] or region.getcolors() == [(200, RED), (200, GREY)]
    assert region.getpixel((0, 5)) == region.getpixel((19, 14)) == RED
    assert region.getpixel((0, 4)) == region.getpixel((19, 15)) == GREY
    assert len({content_hash(image) for image in source[0].images}) == 2
    assert kind_of_error(source, 1) == "box"
    with pytest.raises(ValueError, match=r"1\.png of 60 x 40"):
        open_reference(source[2].images[1])


def test_vstar(data: Path) -> None:
    for folder in ("gqa/images", "coco2014/train2014", "coco2017/train2017"):
        picture(data / f"vstar/images/{folder}/1.png", GREY, (60, 40))
    focus = "Additional visual information to focus on: <object>; <object>."
    names = {
        "GQA_data": "gqa/images",
        "spatial_relation_data": "coco2014/train2014",
        "vaw_attribute_data": "gqa/images",
    }
    for name, folder in names.items():
        record = {
            "image": f"{folder}/1.png",
            "search": True,
            "target_instances": [{"name": "cup", "bbox": [5, 5, 10, 20]}, {"name": "lid", "bbox": [40, 10, 15.5, 8]}],
            "conversations": turns(f"<image>\n{focus}\nIs the cup left of the lid?", "Yes."),
        }
        without = {key: value for key, value in record.items() if key not in ("search", "target_instances")}
        write(data / f"vstar/{name}.json", [record, without])
    for source in opened("vstar"):
        assert said(source[0]) == [
            ("user", (0, "\nIs the cup left of the lid?")),
            ("assistant", ("Let me first mark what this is about.\n", 1, "\nYes.")),
        ]
        whole, boxed = (open_reference(image) for image in source[0].images)
        assert whole.getcolors() == [(2400, GREY)]
        assert boxed.size == (60, 40)
        assert boxed.getpixel((5, 5)) == boxed.getpixel((14, 24)) == boxed.getpixel((40, 17)) == PEN
        assert boxed.getpixel((6, 6)) == boxed.getpixel((15, 25)) == GREY
        assert kind_of_error(source, 1) == "box"


def test_a_format_that_could_be_two_is_asked_for(data: Path) -> None:
    record = {"image": ["a.png", "a.png###[1, 2, 30, 40]"], "conversations": turns("<image>\nWhat?", "A.")}
    write(data / "x.json", [record])
    with pytest.raises(ValueError, match=r"as llava .* and as visual_cot .*; name one in the recipe"):
        open_sources(DataConfig.model_validate({"sources": [{"path": "data/x.json"}]}))


def test_a_region_is_read_of_what_lies_inside_the_folder_alone(data: Path) -> None:
    picture(data / "in/a.png", RED, (20, 20))
    picture(data / "secret.png", BLUE, (20, 20))
    contents = ["a.png#crop=0,0,5,5", "../secret.png#crop=0,0,5,5", "/etc/hosts#boxes=0,0,5,5", "b.png#crop=0,0,5,5"]
    records = [{"messages": [{"role": "user", "content": "<image>?"}], "images": [image]} for image in contents]
    write(data / "in/x.jsonl", records)
    (source,) = open_sources(DataConfig.model_validate({"sources": [{"path": "data/in/x.jsonl"}]}))
    assert colours(source[0]) == [RED]
    assert [kind_of_error(source, number) for number in (1, 2, 3)] == ["image path", "image path", "missing image"]


def test_bad_records_of_a_set_are_skipped_and_counted(data: Path) -> None:
    """As in a training: a good one in place of each bad one."""
    picture(data / "vstar/images/gqa/images/1.png", GREY, (60, 40))
    record = {
        "image": "gqa/images/1.png",
        "target_instances": [{"name": "cup", "bbox": [5, 5, 10, 20]}],
        "conversations": turns("<image>\nWhat?", "A cup."),
    }
    for name in ("GQA_data", "spatial_relation_data", "vaw_attribute_data"):
        write(data / f"vstar/{name}.json", [record, {**record, "target_instances": []}, record])
    sources = opened("vstar", max_bad_fraction=0.5)
    counts: Counter[str] = Counter()
    found = list(good_samples(sources[1], counts))
    assert [isinstance(sample, RecordError) for sample in found] == [False, True, False]
    assert "record 2: no target_instances" in str(found[1])
    assert counts == {"box": 1}

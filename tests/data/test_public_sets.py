"""Laws of public sets: a small set in its true layout, in the folders that its file in recipes/mixtures names, opened
by that file's own settings, becomes the samples that are written down here by hand. The images are real files."""

from __future__ import annotations

import csv
import io
import itertools
import json
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from diptych.config import build_recipe
from diptych.data.bad_records import good_samples
from diptych.data.image_regions import RED as PEN
from diptych.data.record_formats.generation_pairs import LEAD_INS
from diptych.data.references import content_hash, open_reference, split_frame
from diptych.data.samples import RecordError, Sample
from diptych.data.sources import Source, open_sources
from diptych.data_settings import DataConfig

MIXTURES = Path(__file__).parents[2] / "recipes" / "mixtures"
RED, LIME, BLUE, GREY = (255, 0, 0), (0, 255, 0), (0, 0, 255), (128, 128, 128)
REQUEST = "Please provide the bounding box coordinate of the region that can help you answer the question better."


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder `data` that the mixtures name their sets in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path / "data"


def picture(path: Path, colour: tuple[int, int, int], size: tuple[int, int] = (8, 8)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encoded(colour, size, path.suffix))


def encoded(colour: tuple[int, int, int], size: tuple[int, int] = (8, 8), suffix: str = ".png") -> bytes:
    buffer = io.BytesIO()
    lossless: dict[str, Any] = {"quality": 100, "subsampling": 0} if suffix.startswith(".jp") else {}
    Image.new("RGB", size, colour).save(buffer, "JPEG" if lossless else "PNG", **lossless)
    return buffer.getvalue()


def write(path: Path, records: list[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(f"{json.dumps(one)}\n" for one in records) if path.suffix == ".jsonl" else json.dumps(records)
    path.write_text(text, encoding="utf-8")


def write_clip(path: Path, seconds: int = 3) -> None:
    """One frame of plain grey after the other, ten a second."""
    av = pytest.importorskip("av")
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libvpx-vp9" if path.suffix == ".webm" else "libx264", rate=10)
        stream.width = stream.height = 32
        stream.pix_fmt = "yuv420p"
        for number in range(10 * seconds):
            pixels = np.full((32, 32, 3), 10 + 7 * number, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())


def settings_of(name: str, **changes: Any) -> DataConfig:
    settings = yaml.safe_load((MIXTURES / f"{name}.yaml").read_text(encoding="utf-8"))
    settings["data"] |= changes
    return build_recipe({"output_dir": "runs/x", **settings}).data


def opened(name: str, **changes: Any) -> list[Source]:
    return open_sources(settings_of(name, **changes))


def said(sample: Sample) -> list[tuple[str, tuple[str | int, ...]]]:
    return [(message.role, message.parts) for message in sample.messages]


def colours(sample: Sample) -> list[tuple[int, ...]]:
    """Of each image the colour in its middle."""
    images = [open_reference(image) for image in sample.images]
    return [image.getpixel((image.width // 2, image.height // 2)) for image in images]  # type: ignore[misc]


def near(found: list[tuple[int, ...]], expected: list[tuple[int, ...]]) -> bool:
    """JPEG and YUV are off by a little."""
    return len(found) == len(expected) and bool(np.abs(np.subtract(found, expected)).max() <= 4)


def kind_of_error(source: Source, number: int) -> str:
    with pytest.raises(RecordError) as caught:
        source[number]
    assert source.where(number) in str(caught.value)
    return caught.value.kind


def turns(*values: str) -> list[dict[str, str]]:
    return [{"from": ("human", "gpt")[place % 2], "value": value} for place, value in enumerate(values)]


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


@pytest.mark.parametrize("field", ["video_path", "video"])
def test_video_star(data: Path, field: str) -> None:
    write_clip(data / "video-star/videos/Kinetics700/a.mp4")
    record = {
        field: "Kinetics700/a.mp4",
        "question_id": 5,
        "question": "What?",
        "label": {"action": "diving"},
        "conversations": turns("<video>\nWhat is done?", "Diving."),
    }
    broken = {**record, field: "Kinetics700/b.mp4"}
    for name in ("kinetics700", "starb", "finediving"):
        write(data / f"video-star/ft_json/{name}_tune_.json", [record, broken])
    for source in opened("video-star"):
        assert said(source[0]) == [("user", (0, 1, 2, "\nWhat is done?")), ("assistant", ("Diving.",))]
        assert near(colours(source[0]), [(10 + 7 * frame,) * 3 for frame in (5, 15, 25)])
        assert kind_of_error(source, 1) == "missing image"


def test_sharegptvideo(data: Path) -> None:
    root = data / "sharegptvideo"
    for number in range(1, 101):
        picture(root / f"train_300k/v_1-Scene-001/c01_{number:04d}.jpeg", (2 * number, 0, 0))
    for number in range(1, 4):
        picture(root / f"train_300k/v_2/c01_{number:04d}.jpeg", (0, 20 * number, 0))
    record = {"video": "v_2", "id": "v_2_1", "conversations": turns("<video>\nWhere?", "In a newsroom.")}
    long = {**record, "video": "v_1-Scene-001"}
    records = [record, long, {**record, "video": "v_3"}, {**record, "video": "../train_300k/v_2"}]
    for name in ("video_240k_caption_15k", "video_caption_300k"):
        write(root / f"video_instruction/train/sft/{name}.jsonl", records)
    for source in opened("sharegptvideo"):
        assert said(source[0]) == [("user", (0, 1, "\nWhere?")), ("assistant", ("In a newsroom.",))]
        assert near(colours(source[0]), [(0, 20, 0), (0, 60, 0)])
        shown = [image[0] for image in colours(source[1])]
        assert len(shown) == 45
        assert shown == sorted(shown)
        assert shown[0] < 10
        assert shown[-1] > 190
        assert kind_of_error(source, 2) == "missing clip"
        assert kind_of_error(source, 3) == "image path"


def test_sharegpt4video(data: Path) -> None:
    write_clip(data / "sharegpt4video/videos/panda/a.mp4", seconds=2)
    record = {
        "video_id": "a",
        "video_path": "panda/a.mp4",
        "timestamp": ["00:00:00.000", "00:00:02.000"],
        "keyframe": [0, 10],
        "captions": [{"idx": "1", "content": "Dark."}, {"idx": "-1", "content": "It grows light."}],
        "zip_folder": "panda_videos_1.zip",
    }
    write(data / "sharegpt4video/sharegpt4video_40k.jsonl", [record, {**record, "captions": record["captions"][:1]}])
    (source,) = opened("sharegpt4video")
    assert said(source[0]) == [("user", (0, 1, "\nDescribe this video.")), ("assistant", ("It grows light.",))]
    assert kind_of_error(source, 1) == "structure"


def write_shard(path: Path, entries: list[tuple[str, dict[str, bytes]]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for key, members in entries:
            for suffix, body in members.items():
                info = tarfile.TarInfo(f"{key}.{suffix}")
                info.size = len(body)
                tar.addfile(info, io.BytesIO(body))


def pair(key: str, caption: str, colour: tuple[int, int, int]) -> tuple[str, dict[str, bytes]]:
    """As img2dataset writes it."""
    told = {"key": key, "caption": caption, "url": f"http://x/{key}", "status": "success", "width": 8, "height": 8}
    return key, {"jpg": encoded(colour, suffix=".jpg"), "json": json.dumps(told).encode(), "txt": caption.encode()}


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


def frames_of(sample: Sample) -> list[list[int]]:
    """The frames' numbers in the clip, of the user's turn and the assistant's."""
    found = []
    for message in sample.messages:
        shades = [open_reference(sample.images[part]).getpixel((9, 9)) for part in message.parts if type(part) is int]
        found.append([round((shade[0] - 10) / 7) for shade in shades])  # type: ignore[index]
    return found


def check_clips(source: Source, count: int) -> None:
    """Whatever the task: the frames are the clip's, as far apart as the words say."""
    tasks = set()
    for number in range(count):
        sample = source[number]
        tasks.add(sample.meta["task"])
        assert [message.role for message in sample.messages] == ["user", "assistant"]
        shown, asked = frames_of(sample)
        every = sorted({*shown, *asked})
        step = 10 * sample.meta["interval"]
        assert all(abs(later - one - step) <= 1.5 for one, later in itertools.pairwise(every))
        assert asked or sample.meta["task"] == "interval"
    assert len(tasks) >= 3


def test_howto100m(data: Path) -> None:
    write_clip(data / "howto100m/videos/-j9C-auQoKs.mp4")
    write_clip(data / "howto100m/videos/b.webm")
    with (data / "howto100m/HowTo100M_v1.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["video_id", "category_1", "category_2", "rank", "task_id"])
        for number in range(10):
            table.writerow([("-j9C-auQoKs", "b")[number % 2], "Food and Entertaining", "Recipes", number, 105222])
        table.writerow(["vanished", "Health", "", 1, 3])
    (source,) = opened("howto100m")
    check_clips(source, 10)
    assert (split_frame(source[0].images[0]) or [""])[0] == str(data / "howto100m/videos/-j9C-auQoKs.mp4")
    assert kind_of_error(source, 10) == "missing clip"


def test_something_something(data: Path) -> None:
    root = data / "something-something-v2"
    write_clip(root / "20bn-something-something-v2/41775.webm")
    entry = {"id": "41775", "label": "moving drawer", "template": "Moving [part]", "placeholders": ["drawer"]}
    write(root / "train.json", [entry] * 8 + [{**entry, "id": "1"}])
    write(root / "validation.json", [entry])
    write(root / "test.json", [{"id": "41775"}])
    train, validation, test = opened("something-something")
    check_clips(train, 8)
    assert kind_of_error(train, 8) == "missing clip"
    assert validation[0].meta["task"] == test[0].meta["task"] == train[0].meta["task"]


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


def write_table(path: Path, fields: dict[str, list[Any]]) -> None:
    """As the Hub's `datasets` writes tables: images are structs of bytes and path."""
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path.parent.mkdir(parents=True, exist_ok=True)
    image = arrow.struct([("bytes", arrow.binary()), ("path", arrow.string())])
    columns = {
        name: arrow.array([{"bytes": one, "path": None} for one in values], image)
        if any(isinstance(one, bytes) for one in values)
        else arrow.array(values)
        for name, values in fields.items()
    }
    parquet.write_table(arrow.table(columns), path)


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

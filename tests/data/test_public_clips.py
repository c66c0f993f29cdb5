"""Laws of public sets of clips: in its true layout, in the folders that its file in
recipes/mixtures names, opened by that file's own settings, a small set becomes the samples written here by hand."""

from __future__ import annotations

import csv
import itertools
from pathlib import Path

import pytest

from diptych.data.references import open_reference, split_frame
from diptych.data.samples import Sample
from diptych.data.sources import Source
from public_set_layouts import colours, kind_of_error, near, opened, picture, said, turns, write, write_clip


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder `data` that the mixtures name their sets in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path / "data"


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

"""Laws of validation: every count is right, every problem is found, and nothing else is called one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from torch import zeros

from diptych.backbones.tiny_language import build_byte_tokenizer
from diptych.data.held_out import open_held_out
from diptych.data.samples import Message, Sample
from diptych.data.sources import Source, open_sources
from diptych.data.tokenize import build_sequence
from diptych.data.validation import find_role_problem, validate_sources
from diptych.data_settings import DataConfig, SourceConfig

TOKENIZER = build_byte_tokenizer()


def build_stream(sample: Sample) -> Any:
    return build_sequence(
        sample, tokenizer=TOKENIZER, template="plain", load_image=lambda _: zeros(0), num_image_tokens=4, max_length=60
    )


def record(question: str, answer: str, *images: str, loss: bool | None = None) -> dict[str, Any]:
    reply: dict[str, Any] = {"role": "assistant", "content": answer}
    if loss is not None:
        reply["loss"] = loss
    return {"messages": [{"role": "user", "content": question}, reply], "images": list(images)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("red", "blue"):
        Image.new("RGB", (8, 8), name).save(tmp_path / f"{name}.png")
    Image.new("RGB", (8, 8), "red").save(tmp_path / "also-red.png")
    (tmp_path / "broken.png").write_bytes(b"\x89PNG")
    return tmp_path


def sources(folder: Path, name: str, *records: Any) -> list[Source]:
    path = folder / name
    path.write_text("\n".join(one if isinstance(one, str) else json.dumps(one) for one in records) + "\n")
    return open_sources(DataConfig(sources=(SourceConfig(path=str(path)),)))


GOOD = [
    record("Draw red.", "<image>", "red.png"),
    record("<image>What?", "blue", "blue.png"),
    record("Hello?", "Hello."),
]


def test_good_samples_are_counted_and_nothing_is_wrong_with_them(folder: Path) -> None:
    (report,) = validate_sources(sources(folder, "a.jsonl", *GOOD), build_stream=build_stream)
    streams = [build_stream(sample) for sample in sources(folder, "a.jsonl", *GOOD)[0]]
    assert report.problems == {}
    assert (report.num_records, report.num_samples) == (3, 3)
    assert (report.context_images, report.target_images) == (1, 1)
    assert report.tokens == sum(map(len, streams))
    assert report.longest == max(map(len, streams))
    said = len("blue") + 1 + len("Hello.") + 1  # with the end of each turn
    assert report.supervised_tokens == 4 + said


PROBLEMS = {
    "JSON": "{",
    "image count": record("<image><image>", "two", "red.png"),
    "missing image": record("<image>?", "x", "nowhere.png"),
    "image path": record("<image>?", "x", "../secret.png"),
    "image": record("<image>?", "x", "broken.png"),
    "too long": record("?" * 100, "x"),
    "no loss": record("What?", "x", loss=False),
    "roles": {"messages": [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]},
}


@pytest.mark.parametrize("kind", PROBLEMS)
def test_each_problem_is_found_named_and_counted(folder: Path, kind: str) -> None:
    (report,) = validate_sources(
        sources(folder, "a.jsonl", GOOD[0], PROBLEMS[kind], GOOD[1], PROBLEMS[kind]), build_stream=build_stream
    )
    assert {name: count for name, (count, _) in report.problems.items()} == {kind: 2}
    assert "a.jsonl" in report.problems[kind][1][0]
    assert report.num_samples == 2


def test_what_is_held_out_is_known_by_its_content(folder: Path) -> None:
    """Under another file's name the image is the same; other words or another image are another sample."""
    held_out = sources(folder, "held.jsonl", record("Draw red.", "<image>", "also-red.png"))
    (report,) = validate_sources(
        sources(folder, "a.jsonl", *GOOD, record("Draw it.", "<image>", "red.png")),
        held_out=held_out,
        build_stream=build_stream,
    )
    assert {name: count for name, (count, _) in report.problems.items()} == {"held out": 1}
    assert report.shared_images == 1
    assert report.num_samples == 3


@pytest.mark.parametrize("unread", ["{", record("<image>?", "x", "broken.png"), record("<image>?", "x", "nowhere.png")])
def test_held_out_records_that_cannot_be_read_are_told(folder: Path, unread: Any) -> None:
    held_out = sources(folder, "held.jsonl", GOOD[0], unread)
    _, report = validate_sources(sources(folder, "a.jsonl", *GOOD[1:]), held_out=held_out)
    assert "held.jsonl" in report.name
    assert {name: count for name, (count, _) in report.problems.items()} == {"held-out record": 1}
    assert "held.jsonl" in report.problems["held-out record"][1][0]


SETTINGS: dict[str, dict[str, Any]] = {
    "image_root": {"image_root": "pictures"},
    "columns": {"columns": {"messages": "turns"}},
    "task": {"task": "draw", "prompt_templates": ("Draw {caption}.",)},
}


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_held_out_file_is_read_as_the_source_beside_it(folder: Path, setting: str) -> None:
    """An identical file is all held out, whatever its reader needs."""
    config = dict(SETTINGS[setting])
    one = record("Draw.", "<image>", "red.png")
    if "image_root" in config:
        config["image_root"] = str(folder / "pictures")
        (folder / "pictures").mkdir()
        (folder / "red.png").rename(folder / "pictures" / "red.png")
    if "columns" in config:
        one["turns"] = one.pop("messages")
    if "task" in config:
        one = {"image": "red.png", "caption": "a red square"}
    for name in ("a", "held_out"):
        (folder / f"{name}.jsonl").write_text(json.dumps(one) + "\n")
    other = SourceConfig(path=str(folder / "b.jsonl"))  # without the settings: another way of reading the file
    data = DataConfig(sources=(other, SourceConfig(path=str(folder / "a.jsonl"), **config)))
    held_out = open_held_out(folder / "held_out.jsonl", data)
    (report,) = validate_sources([Source(data.sources[1], data)], held_out=held_out)
    assert {name: count for name, (count, _) in report.problems.items()} == {"held out": 1}


@pytest.mark.parametrize(
    ("roles", "said"),
    [
        ("ua", None),
        ("sua", None),
        ("uaua", None),
        ("aua", None),
        ("uua", "turn 2 is the user's"),
        ("uaa", "turn 3 is the assistant's"),
        ("ua" + "u", "nobody answers"),
        ("s", "nobody answers"),
        ("usa", "behind the first turn"),
    ],
)
def test_turns_alternate_and_end_with_an_answer(roles: str, said: str | None) -> None:
    names = {"s": "system", "u": "user", "a": "assistant"}
    found = find_role_problem(Sample(tuple(Message(names[role], ("x",)) for role in roles)))
    assert (said is None) == (found is None)
    assert said is None or said in str(found)

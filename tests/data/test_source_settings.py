"""Laws of a source's settings: what would change nothing is refused, what is not there is told, by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from diptych.data.samples import RecordError
from diptych.data.sources import Source
from diptych.data_settings import DataConfig, SourceConfig

GOOD = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}


def source_of(path: Path, *, allow_urls: Any = False, **config: Any) -> Source:
    made = SourceConfig(path=str(path), **config)
    return Source(made, DataConfig(sources=(made,), allow_urls=allow_urls))


def write(path: Path, *records: Any) -> Path:
    path.write_text(json.dumps(list(records)) if path.suffix == ".json" else "\n".join(map(json.dumps, records)))
    return path


@pytest.mark.parametrize("name", ["x.jsonl", "x.json"])
def test_a_file_that_goes_away_is_named(tmp_path: Path, name: str) -> None:
    source = source_of(write(tmp_path / name, GOOD, GOOD))
    (tmp_path / name).unlink()
    with pytest.raises(RecordError, match=rf"{name}.* cannot be read any more") as caught:
        source[1]
    assert caught.value.kind == "missing file"


def test_a_part_of_an_image_on_the_web_is_refused(tmp_path: Path) -> None:
    """It was shown whole."""
    part = {"type": "image_url", "image_url": {"url": "https://images.example.com/a.png#crop=1,2,30,40"}}
    path = write(tmp_path / "x.jsonl", {"messages": [{"role": "user", "content": [part]}]})
    with pytest.raises(RecordError, match="a part of one on the web"):
        source_of(path, allow_urls=("images.example.com",))[0]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"prompt_templates": ("Do {instruction}",)}, "prompt_templates is of captions, triples"),
        ({"split": "train"}, "split is of Hugging Face datasets; its store is json_lines"),
        ({"subset": "small"}, "subset is of datasets of the Hub"),
        ({"num_frames": 3}, "num_frames is of clips"),
        ({"fps": 1.0, "max_frames": 9}, "fps, max_frames is of clips"),
    ],
)
def test_a_setting_that_would_change_nothing_is_refused(tmp_path: Path, settings: Any, words: str) -> None:
    path = write(tmp_path / "x.jsonl", GOOD)
    with pytest.raises(ValueError, match=words):
        source_of(path, **settings)


CAPTION = {"image": "a.png", "caption": "a cat"}
TRIPLE = {"instruction": "Make it red.", "input_images": ["a.png"], "output_image": "a.png"}


@pytest.mark.parametrize(
    ("record", "settings", "words"),
    [
        (CAPTION, {"task": "draw", "prompt_templates": ("Please {instruction}",)}, r"holds \{caption\}, .*'Please"),
        (CAPTION, {"task": "draw", "prompt_templates": ("Draw.",)}, r"holds \{caption\}"),
        (CAPTION, {"task": "read", "prompt_templates": ("Is this {caption}?",)}, "holds no words of the record"),
        (TRIPLE, {"prompt_templates": ("Do: {caption}",)}, r"holds \{instruction\}"),
    ],
)
def test_a_template_for_words_of_another_format_is_refused(
    tmp_path: Path, record: dict[str, Any], settings: Any, words: str
) -> None:
    """Training would read the braces."""
    with pytest.raises(ValueError, match=words):
        source_of(write(tmp_path / "x.jsonl", record), **settings)


@pytest.mark.parametrize("settings", [{"num_frames": 2}, {"fps": 1.0}])
@pytest.mark.parametrize("hosts", [(), ("x.org",)])
def test_a_clip_on_the_web_is_refused(tmp_path: Path, settings: Any, hosts: tuple[str, ...]) -> None:
    """Each of its frames was the first."""
    turns = [{"from": "human", "value": "<video>\nWhat?"}, {"from": "gpt", "value": "a"}]
    path = write(tmp_path / "x.jsonl", {"conversations": turns, "video": "https://x.org/v.gif"})
    with pytest.raises(RecordError, match="is on the web; fetch it, and name the file"):
        source_of(path, allow_urls=hosts, **settings)[0]


def test_a_column_that_is_not_there_is_told(tmp_path: Path) -> None:
    path = write(tmp_path / "x.jsonl", GOOD)
    with pytest.warns(UserWarning, match="names picture, which none of the first records has; they have messages"):
        source_of(path, columns={"images": "picture"})


def test_a_recipe_that_says_every_default_is_the_recipe(tmp_path: Path) -> None:
    """As a morph keeps its recipe."""
    path = write(tmp_path / "x.jsonl", GOOD)
    assert len(source_of(path, **SourceConfig(path=str(path)).model_dump(mode="json", exclude={"path"}))) == 1

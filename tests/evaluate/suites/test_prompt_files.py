"""Laws of prompt files: each is read in its keepers' layout, the same captions are drawn every time, and what is no
such file is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from diptych.evaluate.suites import prompt_files
from diptych.evaluate.suites.prompt_files import read_coco_prompts, read_dpg_prompts, read_geneval_prompts


def write_captions(folder: Path, num_images: int, name: str = "captions_val2014.json") -> None:
    """Five captions an image, as COCO has, and one that is no text."""
    images = [{"id": 7 * k, "file_name": f"COCO_val2014_{7 * k:012}.jpg"} for k in range(num_images)]
    annotations = [
        {"id": 100 + 5 * k + n, "image_id": 7 * k, "caption": f"Picture {k}, said {n}. \n"}
        for n in range(5)
        for k in range(num_images)
    ]
    annotations.append({"id": 1, "image_id": 0, "caption": None})
    (folder / name).write_text(json.dumps({"images": images, "annotations": annotations}))


def test_one_caption_of_each_image_is_asked_always_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_captions(tmp_path, 40)
    examples = read_coco_prompts(tmp_path)
    asked = [example.question() for example in examples]
    assert sorted(int(question.split(",")[0].removeprefix("Picture ")) for question in asked) == list(range(40))
    assert len({question.split("said")[1] for question in asked}) > 1
    assert all(question.endswith(".") for question in asked)
    assert read_coco_prompts(tmp_path) == examples
    monkeypatch.setattr(prompt_files, "NUM_COCO", 15)
    assert read_coco_prompts(tmp_path) == examples[:15]


def test_prompts_of_ones_own_are_asked_line_by_line(tmp_path: Path) -> None:
    lines = [{"prompt": " a cat\u2028 "}, {"prompt": "a dog", "id": 12}]
    (tmp_path / "prompts.jsonl").write_text("\n".join(json.dumps(line, ensure_ascii=False) for line in lines) + "\n")
    assert [(e.id, e.question()) for e in read_coco_prompts(tmp_path)] == [("0", "a cat"), ("12", "a dog")]


def test_geneval_is_read_line_by_line(tmp_path: Path) -> None:
    lines = [
        {"tag": "single_object", "include": [{"class": "bench", "count": 1}], "prompt": "a photo of a bench"},
        {"tag": "counting", "include": [{"class": "cow", "count": 2}], "prompt": "a photo of two cows"},
    ]
    (tmp_path / "evaluation_metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    examples, found = read_geneval_prompts(tmp_path)
    assert [(e.id, e.kind, e.question()) for e in examples] == [
        ("00000", "single_object", "a photo of a bench"),
        ("00001", "counting", "a photo of two cows"),
    ]
    assert {id: json.loads(line) for id, line in found.items()} == {"00000": lines[0], "00001": lines[1]}


def test_dpg_is_a_folder_of_texts(tmp_path: Path) -> None:
    (tmp_path / "partiprompts9.txt").write_text("A long text.\n")
    (tmp_path / "1.txt").write_text("Another.")
    assert [(e.id, e.question()) for e in read_dpg_prompts(tmp_path)] == [
        ("1", "Another."),
        ("partiprompts9", "A long text."),
    ]


def test_what_is_no_such_file_is_refused_with_where_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"either prompts\.jsonl or COCO's captions_\*\.json, and holds neither"):
        read_coco_prompts(tmp_path)
    with pytest.raises(ValueError, match=r"no evaluation_metadata\.jsonl; give the folder prompts/ of github"):
        read_geneval_prompts(tmp_path)
    with pytest.raises(ValueError, match=r"holds no \.txt; give the folder dpg_bench/prompts"):
        read_dpg_prompts(tmp_path)
    (tmp_path / "empty.txt").write_text(" \n")
    with pytest.raises(ValueError, match="holds no prompt"):
        read_dpg_prompts(tmp_path)
    write_captions(tmp_path, 2)
    for content, says in (
        ("", "holds no prompts"),
        ('{"prompt": "a"}\nno JSON\n', "line 2, is no JSON object"),
        ("[1]\n", "line 1, is no JSON object"),
        ('{"caption": "a"}\n', 'line 1, has no "prompt"'),
        ('{"prompt": " "}\n', 'line 1, has no "prompt"'),
    ):
        (tmp_path / "evaluation_metadata.jsonl").write_text(content)
        with pytest.raises(ValueError, match=says):
            read_geneval_prompts(tmp_path)
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "a"}\n')
    with pytest.raises(ValueError, match=r"holds prompts\.jsonl, captions_val2014\.json"):
        read_coco_prompts(tmp_path)

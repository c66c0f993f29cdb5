"""Prompts of public benchmarks in their own files: COCO's captions, GenEval's lines, DPG-Bench's texts."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from diptych.data.samples import Message, RecordError
from diptych.data.stores.coco_captions import CocoCaptions
from diptych.evaluate.suite import Example

NUM_COCO = 30_000


def read_coco_prompts(folder: Path) -> list[Example]:
    """Of prompts.jsonl every line ({"prompt": ..., "id": ...}, the id may be left out); of captions*.json, in COCO's
    format, one caption of each of NUM_COCO images: always the same, drawn by their hashes. Raises ValueError for a
    folder with neither or both, and for lines that are no prompts."""
    found = [path for path in (folder / "prompts.jsonl", *sorted(folder.glob("captions*.json"))) if path.is_file()]
    if len(found) != 1:
        names = ", ".join(path.name for path in found) or "neither"
        raise ValueError(f"{folder} must hold either prompts.jsonl or COCO's captions_*.json, and holds {names}")
    if found[0].suffix == ".jsonl":
        lines = _read_lines(found[0])
        return [_example(str(line.get("id", number)), _prompt(line, found[0], number)) for number, line in lines]
    captions = CocoCaptions(found[0])
    by_image: dict[str, tuple[bytes, str, str]] = {}
    for number in range(len(captions)):
        try:
            record = captions.read(number)
        except RecordError:
            continue  # no text, or of no image
        id = str(record["id"])
        ranked = (hashlib.sha256(id.encode()).digest(), id, record["caption"].strip())
        by_image[record["image"]] = min(ranked, by_image.get(record["image"], ranked))
    return [_example(id, caption) for _, id, caption in sorted(by_image.values())[:NUM_COCO]]


def read_geneval_prompts(folder: Path) -> tuple[list[Example], dict[str, str]]:
    """Of GenEval's evaluation_metadata.jsonl: examples, whose ids are the keepers' names of folders and whose kinds
    are its tags; and the lines by id. Raises ValueError for a folder without it and for lines that are none of it."""
    path = folder / "evaluation_metadata.jsonl"
    if not path.is_file():
        raise ValueError(f"{folder} holds no {path.name}; give the folder prompts/ of github.com/djghosh13/geneval")
    lines = {f"{number:05}": line for number, line in _read_lines(path)}
    examples = [_example(id, _prompt(line, path, int(id)), kind=str(line.get("tag", ""))) for id, line in lines.items()]
    return examples, {id: json.dumps(line, ensure_ascii=False) for id, line in lines.items()}


def read_dpg_prompts(folder: Path) -> list[Example]:
    """Of DPG-Bench's folder of .txt files, one prompt each; ids are their names. Raises ValueError for none, and for
    an empty one."""
    paths = sorted(folder.glob("*.txt"))
    if not paths:
        raise ValueError(f"{folder} holds no .txt; give the folder dpg_bench/prompts of github.com/TencentQQGYLab/ELLA")
    examples = [_example(path.stem, path.read_text(encoding="utf-8").strip()) for path in paths]
    if empty := [example.id for example in examples if not example.question()]:
        raise ValueError(f"{folder / empty[0]}.txt holds no prompt; fetch the folder again")
    return examples


def _read_lines(path: Path) -> list[tuple[int, dict[str, object]]]:
    entries = []
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n")):
        if line.strip():
            try:
                entries.append((number, dict(json.loads(line))))
            except (ValueError, TypeError) as error:
                raise ValueError(f"{path}, line {number + 1}, is no JSON object: {error}") from error
    if not entries:
        raise ValueError(f"{path} holds no prompts; fetch it again")
    return entries


def _prompt(line: dict[str, object], path: Path, number: int) -> str:
    prompt = line.get("prompt")
    if not isinstance(prompt, str) or not prompt.strip():
        raise ValueError(f'{path}, line {number + 1}, has no "prompt"')
    return prompt.strip()


def _example(id: str, prompt: str, *, kind: str = "") -> Example:
    return Example(id, (Message("user", (prompt,)),), kind=kind)

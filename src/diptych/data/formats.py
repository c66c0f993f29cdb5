"""Canonical samples: JSON Lines of messages and images, every record checked, every error naming its file and line.

A record is `{"messages": [{"role", "content", "loss"?}], "images": [path, ...], "meta"?: {...}, "id"?: ...}`. Each
`<image>` in a content (or `{"type": "image"}` among content parts) stands for the next path of `images`, relative to
the file's folder.
"""

from __future__ import annotations

import json
import os
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

from diptych.data.images import resolve_inside
from diptych.settings import DataConfig

IMAGE_PLACEHOLDER = "<image>"
ROLES = ("system", "user", "assistant")
MAX_RECORD_BYTES = 16_000_000


@dataclass(frozen=True)
class Message:
    """One turn. A part is text, or an int: the index of an image in `Sample.images`.

    `loss`: whether the turn is learnt; None leaves it to the role (assistant turns are).
    """

    role: str
    parts: tuple[str | int, ...]
    loss: bool | None = None


@dataclass(frozen=True)
class Sample:
    """One conversation. `images` are paths relative to the folder of the file that the sample came from."""

    messages: tuple[Message, ...]
    images: tuple[str, ...] = ()
    meta: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class BadRecord:
    """A record that is no sample: its line, the kind of problem (for counting), and what is wrong with it."""

    line: int
    kind: str
    reason: str


class RecordError(ValueError):
    """What is wrong with one record; `kind` groups equal problems."""

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(reason)
        self.kind = kind


def read_sources(data: DataConfig) -> list[list[Sample]]:
    """The samples of every source of a recipe, their images as paths that can be opened. Errors: see `read_samples`."""
    sources = []
    for source in data.sources:
        root = Path(source.path).parent
        samples = read_samples(source.path, max_bad_fraction=data.max_bad_fraction)
        sources.append([replace(s, images=tuple(str(root / image) for image in s.images)) for s in samples])
    return sources


@contextmanager
def naming_sample(data: DataConfig, source: int, index: int) -> Iterator[None]:
    """Adds to a ValueError which sample it is about: its file, and its number among that file's good samples."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{data.sources[source].path}, sample {index + 1}: {error}") from error


def read_samples(path: str | Path, *, max_bad_fraction: float = 0.0) -> list[Sample]:
    """Reads a file of canonical samples, one JSON record per line, and checks that its images exist in its folder.

    Up to `max_bad_fraction` of the records may be bad: they are skipped, and a warning gives their counts by kind.
    Raises ValueError that names the file, the first bad line and the counts if there are more, and if the file is
    missing or empty.
    """
    samples: list[Sample] = []
    bad: list[BadRecord] = []
    for record in scan_samples(path):
        if isinstance(record, BadRecord):
            bad.append(record)
        else:
            samples.append(record)
    if bad:
        total = len(samples) + len(bad)
        counts = ", ".join(f"{kind}: {count}" for kind, count in sorted(Counter(r.kind for r in bad).items()))
        summary = (
            f"{path}: {len(bad)} of {total} records are bad ({counts}); the first, line {bad[0].line}: {bad[0].reason}"
        )
        if len(bad) > max_bad_fraction * total:
            raise ValueError(f"{summary}; correct them, or raise data.max_bad_fraction (now {max_bad_fraction:g})")
        warnings.warn(f"{summary}; they are skipped", stacklevel=2)
    if not samples:
        raise ValueError(f"{path} holds no samples")
    return samples


def scan_samples(path: str | Path) -> Iterator[Sample | BadRecord]:
    """Streams a file: a Sample or a BadRecord per line that is not blank. Raises ValueError if it does not exist."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(
            f"data file {path} does not exist; build it first, such as with: diptych data build emoji --out DIR"
        )
    root = path.parent
    found: set[str] = set()
    with path.open("rb") as file:
        for number, line in enumerate(_bounded_lines(file), start=1):
            if line is not None and not line.strip():
                continue
            try:
                if line is None:
                    raise RecordError("too long", f"the record is longer than {MAX_RECORD_BYTES} bytes")
                sample = parse_sample(_decode(line))
                for image in sample.images:
                    if image not in found:
                        _check_image(root, image)
                        found.add(image)
            except RecordError as error:
                yield BadRecord(number, error.kind, str(error))
            else:
                yield sample


def parse_sample(record: object) -> Sample:
    """One decoded record as a Sample. Raises RecordError (a ValueError) that says what is wrong with it."""
    if not isinstance(record, dict):
        raise RecordError("structure", f"a record is an object with messages and images, not {_kind(record)}")
    record = cast("dict[str, Any]", record)
    if unknown := sorted(set(record) - {"messages", "images", "meta", "id"}):
        raise RecordError("unknown key", f"unknown keys {unknown}; a record has messages, images, meta and id")
    images = record.get("images", [])
    if not isinstance(images, list) or not all(isinstance(image, str) for image in images):
        raise RecordError("structure", "images must be a list of paths")
    messages = record.get("messages")
    if not isinstance(messages, list) or not messages:
        raise RecordError("structure", "messages must be a list of at least one message")
    meta = record.get("meta", {})
    if not isinstance(meta, dict):
        raise RecordError("structure", f"meta must be an object, not {_kind(meta)}")
    if "id" in record:
        meta = {"id": record["id"], **meta}
    parsed: list[Message] = []
    used = 0
    for number, message in enumerate(messages, start=1):
        parsed.append(_parse_message(message, number, used))
        used += sum(isinstance(part, int) for part in parsed[-1].parts)
    if used != len(images):
        raise RecordError("image count", f"{used} {IMAGE_PLACEHOLDER} placeholders for {len(images)} images")
    return Sample(tuple(parsed), tuple(images), meta)


def sample_to_record(sample: Sample) -> dict[str, Any]:
    """The canonical record of a sample: `parse_sample` of it gives the sample back."""
    messages: list[dict[str, Any]] = []
    seen = 0
    for message in sample.messages:
        for part in message.parts:
            if isinstance(part, int):
                if part != seen:
                    raise ValueError(f"a sample names image {part} where image {seen} is next; order its images by use")
                seen += 1
            elif IMAGE_PLACEHOLDER in part:
                raise ValueError(f"the text {part!r} holds {IMAGE_PLACEHOLDER!r}, which would be read as an image")
        content = "".join(IMAGE_PLACEHOLDER if isinstance(part, int) else part for part in message.parts)
        entry: dict[str, Any] = {"role": message.role, "content": content}
        if message.loss is not None:
            entry["loss"] = message.loss
        messages.append(entry)
    record: dict[str, Any] = {"messages": messages, "images": list(sample.images)}
    if sample.meta:
        record["meta"] = sample.meta
    return record


def write_samples(path: str | Path, samples: Iterable[Sample]) -> int:
    """Writes canonical samples, one per line; returns how many."""
    count = 0
    with Path(path).open("w", encoding="utf-8", newline="\n") as file:
        for sample in samples:
            file.write(json.dumps(sample_to_record(sample), ensure_ascii=False) + "\n")
            count += 1
    return count


def _parse_message(message: object, number: int, next_image: int) -> Message:
    where = f"message {number}"
    if not isinstance(message, dict):
        raise RecordError("structure", f"{where} is an object with role and content, not {_kind(message)}")
    message = cast("dict[str, Any]", message)
    if unknown := sorted(set(message) - {"role", "content", "loss"}):
        raise RecordError("unknown key", f"{where} has unknown keys {unknown}; it has role, content and loss")
    role, loss = message.get("role"), message.get("loss")
    if role not in ROLES:
        raise RecordError("role", f"{where} has role {role!r}; roles are {', '.join(ROLES)}")
    if loss is not None and not isinstance(loss, bool):
        raise RecordError("structure", f"{where}: loss must be true or false, not {_kind(loss)}")
    parts: list[str | int] = []
    for piece in _pieces(message.get("content"), where):
        if piece is None:
            parts.append(next_image)
            next_image += 1
        elif parts and isinstance(parts[-1], str):
            parts[-1] += piece
        else:
            parts.append(piece)
    if not parts and role != "system":
        raise RecordError("empty", f"{where} is empty")
    return Message(role, tuple(parts), loss)


def _pieces(content: object, where: str) -> Iterator[str | None]:
    """Texts, and None for each image."""
    if isinstance(content, str):
        for index, text in enumerate(content.split(IMAGE_PLACEHOLDER)):
            if index:
                yield None
            if text:
                yield _checked_text(text, where)
        return
    if not isinstance(content, list):
        raise RecordError("structure", f"{where}: content must be text or a list of parts, not {_kind(content)}")
    for part in content:
        if isinstance(part, dict) and set(part) == {"type", "text"} and part["type"] == "text":
            if not isinstance(part["text"], str):
                raise RecordError("structure", f"{where}: a text part holds {_kind(part['text'])}")
            if IMAGE_PLACEHOLDER in part["text"]:
                raise RecordError(
                    "structure", f"{where}: {IMAGE_PLACEHOLDER} inside a text part; make it an image part"
                )
            if part["text"]:
                yield _checked_text(part["text"], where)
        elif part == {"type": "image"}:
            yield None
        else:
            raise RecordError(
                "structure",
                f'{where}: a part is {{"type": "text", "text": ...}} or {{"type": "image"}}, not {str(part)[:80]!r}',
            )


def _checked_text(text: str, where: str) -> str:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise RecordError("encoding", f"{where} holds half of a surrogate pair, which is no character") from None
    return text


def _check_image(root: Path, image: str) -> None:
    try:
        location = resolve_inside(root, image)
    except ValueError as error:
        raise RecordError("image path", str(error)) from None
    if not os.path.isfile(location):  # unlike Path.is_file, False for a name too long for the system
        raise RecordError("missing image", f"image {image[:200]!r} does not exist in {root}")


def _decode(line: bytes) -> object:
    try:
        return json.loads(line.decode("utf-8-sig"), parse_constant=_refuse_constant)
    except UnicodeDecodeError as error:
        raise RecordError("encoding", f"not UTF-8 at byte {error.start}") from None
    except RecursionError:
        raise RecordError("JSON", "not valid JSON: nested too deeply") from None
    except ValueError as error:
        raise RecordError("JSON", f"not valid JSON: {error}") from None


def _refuse_constant(name: str) -> object:
    raise ValueError(f"{name} is no JSON number")


def _bounded_lines(file: Any) -> Iterator[bytes | None]:
    """Lines of a binary file; None for one that is too long, which is passed over without being held."""
    while line := file.readline(MAX_RECORD_BYTES + 1):
        if len(line) <= MAX_RECORD_BYTES:
            yield line
            continue
        while line and not line.endswith(b"\n"):
            line = file.readline(MAX_RECORD_BYTES + 1)
        yield None


def _kind(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "text", bool: "a truth value", type(None): "nothing"}
    return names.get(type(value), "a number")

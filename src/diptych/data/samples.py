"""Canonical samples: JSON Lines of messages and images, every record checked, every error naming its file and line.

A record is `{"messages": [{"role", "content", "loss"?}], "images": [path, ...], "meta"?: {...}, "id"?: ...}`. Each
`<image>` in a content (or `{"type": "image"}` among content parts) stands for the next path of `images`, relative to
the file's folder. A content part of OpenAI's, `{"type": "image_url", "image_url": {"url": ...}}`, brings its own image.
What else a record has beside them (a source, a prompt's id) is passed over, unless it could be one of them misspelt.
"""

from __future__ import annotations

import json
import os
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, cast

from diptych.data.images import resolve_inside

IMAGE_PLACEHOLDER = "<image>"
ROLES = ("system", "user", "assistant")
ImageRole = Literal["context", "target"]
MAX_RECORD_BYTES = 16_000_000


@dataclass(frozen=True)
class Message:
    """One turn. A part is text, or an int: the index of an image in `Sample.images`.

    `loss`: whether the turn is learnt; None leaves it to the role (assistant turns are).
    """

    role: str
    parts: tuple[str | int, ...]
    loss: bool | None = None

    @property
    def is_learnt(self) -> bool:
        return self.role == "assistant" if self.loss is None else self.loss


@dataclass(frozen=True)
class Sample:
    """One conversation. `images` are paths relative to the folder of the file that the sample came from.

    `image_roles`: of the images in their order, the last one of all that follow; empty: each is what its turn says.
    """

    messages: tuple[Message, ...]
    images: tuple[str, ...] = ()
    meta: dict[str, Any] = field(default_factory=dict)
    image_roles: tuple[ImageRole, ...] = ()

    def target_images(self) -> frozenset[int]:
        """Indices of the images that are learnt to be drawn; all others are context."""
        if self.image_roles:
            last = len(self.image_roles) - 1
            return frozenset(i for i in range(len(self.images)) if self.image_roles[min(i, last)] == "target")
        return frozenset(
            part for message in self.messages if message.is_learnt for part in message.parts if isinstance(part, int)
        )


@dataclass(frozen=True)
class BadRecord:
    """A record that is no sample: its line, the kind of problem (for counting), and what is wrong with it."""

    line: int
    kind: str
    reason: str


KEYS = ("messages", "images", "meta", "id")
SHOWING = frozenset({"image", "video", "videos", "audio"})
"""Keys of other forms of records, which hold what the messages are about."""


class RecordError(ValueError):
    """What is wrong with one record; `kind` groups equal problems."""

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(reason)
        self.kind = kind


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
                sample = parse_sample(decode_record(line))
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
        raise RecordError("structure", f"a record is an object with messages and images, not {kind_of(record)}")
    record = cast("dict[str, Any]", record)
    others = map(str, set(record) - set(KEYS))
    if unknown := sorted(key for key in others if key in SHOWING or get_close_matches(key, KEYS, cutoff=0.75)):
        raise RecordError("unknown key", f"unknown keys {unknown}; a record has {', '.join(KEYS)}")
    listed = record.get("images")
    listed = [] if listed is None else listed
    if not isinstance(listed, list) or not all(isinstance(image, str) for image in listed):
        raise RecordError("structure", "images must be a list of paths")
    messages = record.get("messages")
    if not isinstance(messages, list) or not messages:
        raise RecordError("structure", "messages must be a list of at least one message")
    meta = record.get("meta")
    meta = {} if meta is None else meta
    if not isinstance(meta, dict):
        raise RecordError("structure", f"meta must be an object, not {kind_of(meta)}")
    if "id" in record:
        meta = {"id": record["id"], **meta}
    images = _Images(listed)
    parsed = tuple(_parse_message(message, number, images) for number, message in enumerate(messages, start=1))
    if images.num_placeholders != len(listed):
        raise RecordError(
            "image count", f"{images.num_placeholders} {IMAGE_PLACEHOLDER} placeholders for {len(listed)} images"
        )
    return Sample(parsed, tuple(images.used), meta)


class _Images:
    """Gives each image of a record its index, in the order of use."""

    def __init__(self, listed: list[str]) -> None:
        self.listed = listed
        self.num_placeholders = 0
        self.used: list[str] = []

    def next_index(self, own: str | None) -> int:
        """Of the image that a part brings itself, or of the next one that is listed."""
        if own is None:
            # One too many: counted, and refused once all are counted.
            own = self.listed[self.num_placeholders] if self.num_placeholders < len(self.listed) else ""
            self.num_placeholders += 1
        self.used.append(own)
        return len(self.used) - 1


def sample_to_record(sample: Sample) -> dict[str, Any]:
    """The canonical record of a sample: `parse_sample` of it gives the sample back.

    Raises ValueError for one that no record can hold, such as with image roles, which are a source's setting."""
    if sample.image_roles:
        raise ValueError("a record cannot hold image roles; they are a setting of its source (image_roles)")
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


def _parse_message(message: object, number: int, images: _Images) -> Message:
    where = f"message {number}"
    if not isinstance(message, dict):
        raise RecordError("structure", f"{where} is an object with role and content, not {kind_of(message)}")
    message = cast("dict[str, Any]", message)
    if unknown := sorted(map(str, set(message) - {"role", "content", "loss", "name"})):
        raise RecordError("unknown key", f"{where} has unknown keys {unknown}; it has role, content and loss")
    role, loss = message.get("role"), message.get("loss")
    role = "system" if role == "developer" else role  # OpenAI's newer word
    if role not in ROLES:
        raise RecordError("role", f"{where} has role {role!r}; roles are {', '.join(ROLES)}")
    if loss is not None and not isinstance(loss, bool):
        raise RecordError("structure", f"{where}: loss must be true or false, not {kind_of(loss)}")
    parts: list[str | int] = []
    for piece in _pieces(message.get("content"), where):
        if isinstance(piece, _ImagePart):
            parts.append(images.next_index(piece.own))
        elif parts and isinstance(parts[-1], str):
            parts[-1] += piece
        else:
            parts.append(piece)
    if not parts and role != "system":
        raise RecordError("empty", f"{where} is empty")
    return Message(role, tuple(parts), loss)


@dataclass(frozen=True)
class _ImagePart:
    """`own`: the image that the part brings itself; None: it stands for the next one that the record lists."""

    own: str | None = None


def _pieces(content: object, where: str) -> Iterator[str | _ImagePart]:
    if isinstance(content, str):
        for index, text in enumerate(content.split(IMAGE_PLACEHOLDER)):
            if index:
                yield _ImagePart()
            if text:
                yield checked_text(text, where)
        return
    if not isinstance(content, list):
        raise RecordError("structure", f"{where}: content must be text or a list of parts, not {kind_of(content)}")
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind in ("text", "input_text", "output_text") and set(part) == {"type", "text"}:
            if not isinstance(part["text"], str):
                raise RecordError("structure", f"{where}: a text part holds {kind_of(part['text'])}")
            if IMAGE_PLACEHOLDER in part["text"]:
                raise RecordError(
                    "structure", f"{where}: {IMAGE_PLACEHOLDER} inside a text part; make it an image part"
                )
            if part["text"]:
                yield checked_text(part["text"], where)
        elif part == {"type": "image"}:
            yield _ImagePart()
        elif (url := _image_url(part)) is not None:
            yield _ImagePart(url)
        else:
            raise RecordError(
                "structure",
                f'{where}: a part is {{"type": "text", "text": ...}}, {{"type": "image"}} or {{"type": "image_url", '
                f'"image_url": {{"url": ...}}}}, not {str(part)[:80]!r}',
            )


def _image_url(part: object) -> str | None:
    """What an OpenAI part of an image names: `{"url": ...}` of chat completions, the plain string of responses."""
    if not isinstance(part, dict) or part.get("type") not in ("image_url", "input_image"):
        return None
    if not set(part) <= {"type", "image_url", "detail"}:
        return None
    url = part.get("image_url")
    if isinstance(url, dict) and set(url) <= {"url", "detail"}:
        url = url.get("url")
    return url if isinstance(url, str) else None


def checked_text(text: str, where: str) -> str:
    """The text. Raises RecordError if it is none that could be written down."""
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


def decode_record(line: bytes) -> object:
    """The JSON value of a record. Raises RecordError for what is not strict JSON in UTF-8, or nested too deeply."""
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


def kind_of(value: object) -> str:
    """What a value is, in the words of JSON."""
    names = {dict: "an object", list: "a list", str: "text", bool: "a truth value", type(None): "nothing"}
    return names.get(type(value), "a number")

"""Where each record of a large text file begins: found in one pass, kept on disk for the next run."""

from __future__ import annotations

import hashlib
import os
import secrets
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from diptych.data.samples import MAX_RECORD_BYTES, RecordError

CHUNK_BYTES = 8_000_000
SMALLEST_KEPT_BYTES = 4_000_000
"""Smaller files are indexed faster than an index of theirs is found."""
_FORMAT = 1


def load_index(path: Path, kind: str, build: Callable[[BinaryIO], np.ndarray], index_dir: Path | None) -> np.ndarray:
    """The index that `build` makes of a file, or the one kept in `index_dir` since; int64, on disk where it is kept.

    A file that has changed (its size or its time) is indexed anew. An index that cannot be kept is a warning.
    """
    kept = None
    if index_dir is not None and path.stat().st_size >= SMALLEST_KEPT_BYTES:
        kept = kept_file(path, kind, index_dir)
        index = read_kept(kept)
        if index is not None:
            return index
    with path.open("rb") as file:
        index = build(file)
    if kept is not None:
        keep(kept, index, of=path)
    return index


def kept_file(path: Path, kind: str, index_dir: Path) -> Path:
    """Where an array that is made of a file lies as long as the file has not changed (its size or its time)."""
    status = path.stat()
    identity = f"{_FORMAT} {kind} {path.resolve()} {status.st_size} {status.st_mtime_ns}"
    return index_dir / f"{hashlib.sha256(identity.encode()).hexdigest()[:32]}.npy"


def read_kept(kept: Path) -> np.ndarray | None:
    """The array, on disk; None if it must be made. A damaged one is a warning."""
    try:
        return np.load(kept, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, EOFError) as error:
        warnings.warn(f"index {kept} is damaged ({error}); it is made again", stacklevel=3)
        return None


def keep(kept: Path, index: np.ndarray, *, of: Path) -> None:
    """Writes the array whole or not at all; what cannot be kept is a warning."""
    temporary = kept.with_suffix(f".{secrets.token_hex(4)}.tmp")
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            np.save(file, index, allow_pickle=False)
        os.replace(temporary, kept)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        warnings.warn(f"the index of {of} cannot be kept in {kept.parent}: {error.strerror}", stacklevel=3)


def read_range(path: str | Path, start: int, size: int) -> bytes:
    """At most `size` bytes of a file. It is opened for it: no position is shared between threads or after a fork.

    Raises RecordError for a file that has gone, or cannot be read, since it was opened as a source.
    """
    try:
        with open(path, "rb", buffering=0) as file:
            return read_at(file.fileno(), start, size)
    except OSError as error:
        raise RecordError("missing file", f"{path} cannot be read any more: {error.strerror}") from None


def read_at(descriptor: int, start: int, size: int) -> bytes:
    """At most `size` bytes of an open file, whose position stays."""
    pieces = []
    while size > 0 and (piece := os.pread(descriptor, size, start)):
        pieces.append(piece)
        start, size = start + len(piece), size - len(piece)
    return b"".join(pieces)


def index_lines(file: BinaryIO) -> np.ndarray:
    """The starts of the lines of a file that are not blank, then its length."""
    found: list[np.ndarray] = []
    unfinished = 0  # where the line that the last chunk ended in began
    position = 0
    for position, chunk in _chunks(file):
        ends = np.flatnonzero(np.frombuffer(chunk, np.uint8) == 10) + position
        if not len(ends):
            continue
        starts = np.concatenate(([unfinished], ends[:-1] + 1))
        unfinished = int(ends[-1]) + 1
        found.append(starts[_filled(file, chunk, position, starts, ends)])
    length = file.seek(0, os.SEEK_END)
    if unfinished < length and _line(file, unfinished, length).strip():
        found.append(np.array([unfinished]))
    return np.concatenate([*found, np.array([length])]).astype(np.int64)


def _filled(file: BinaryIO, chunk: bytes, position: int, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Which lines are not blank. Only those that begin with white space have to be read for it."""
    inside = starts >= position
    first = np.full(len(starts), 32, np.uint8)
    first[inside] = np.frombuffer(chunk, np.uint8)[starts[inside] - position]
    filled = first > 32
    for place in np.flatnonzero(~filled):
        filled[place] = bool(_line(file, int(starts[place]), int(ends[place])).strip())
    return filled


def _line(file: BinaryIO, start: int, end: int) -> bytes:
    """Of a line that is longer than a record may be, no more than shows that it is."""
    return read_at(file.fileno(), start, min(end - start, MAX_RECORD_BYTES + 1))


def _chunks(file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    position = 0
    file.seek(0)
    while chunk := file.read(CHUNK_BYTES):
        yield position, chunk
        position += len(chunk)


def index_array(file: BinaryIO) -> np.ndarray:
    """[2, N] starts and ends of the elements of the JSON array that a file holds, without reading any of them.

    Strings, escapes and depth are followed; an element may be anything. Raises ValueError for a file that holds
    something else, or ends too early.
    """
    starts: list[np.ndarray] = []
    ends: list[np.ndarray] = []
    opened = None
    depth, quoted, slashes = 0, 0, 0
    closed = False
    for position, chunk in _chunks(file):
        data = np.frombuffer(chunk, np.uint8)
        if opened is None:
            head = chunk.removeprefix(b"\xef\xbb\xbf").lstrip() if position == 0 else chunk.lstrip()
            if not head:
                continue
            if head[:1] != b"[":
                raise ValueError(
                    "it is no JSON array: it does not begin with '['; for a record a line: store: json_lines"
                )
            opened = position + len(chunk) - len(head)
        quotes, slashes = _real_quotes(data, slashes)
        marks = np.flatnonzero(np.isin(data, np.frombuffer(b"{}[],", np.uint8)))
        marks = marks[(np.searchsorted(quotes, marks) + quoted) % 2 == 0]
        quoted += len(quotes)
        kinds = data[marks]
        steps = np.where((kinds == 91) | (kinds == 123), 1, np.where(kinds == 44, 0, -1))
        after = depth + np.cumsum(steps)
        before = after - steps
        over = np.flatnonzero((after == 0) & (steps < 0))
        if len(over):
            marks, kinds, steps, after, before = (a[: over[0] + 1] for a in (marks, kinds, steps, after, before))
            closed = True
        separators = marks[(kinds == 44) & (before == 1)] + position
        ends.append(separators)
        starts.append(separators + 1)
        if closed:
            ends.append(marks[-1:] + position)
            if chunk[marks[-1] + 1 :].strip() or any(rest.strip() for _, rest in _chunks_from(file)):
                raise ValueError("there is something behind its JSON array")
            break
        depth = int(after[-1]) if len(after) else depth
    if opened is None or not closed:
        raise ValueError("its JSON array does not end; the file was cut, or it is no JSON")
    bounds = np.stack([np.concatenate([np.array([opened + 1]), *starts]), np.concatenate(ends)]).astype(np.int64)
    if bounds.shape[1] == 1 and not _line(file, int(bounds[0, 0]), int(bounds[1, 0])).strip():
        return bounds[:, :0]
    return bounds


def _chunks_from(file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    while chunk := file.read(CHUNK_BYTES):
        yield file.tell() - len(chunk), chunk


def _real_quotes(data: np.ndarray, slashes: int) -> tuple[np.ndarray, int]:
    """Places of the quotes that no backslash escapes. `slashes`: how many backslashes ended the chunk before; and the
    same of this one."""
    quotes = np.flatnonzero(data == 34)
    is_slash = data == 92
    # The length of the run of backslashes that ends right before a place: its distance from the last other byte.
    others = np.flatnonzero(~is_slash)
    trailing = len(data) - 1 - int(others[-1]) if len(others) else len(data) + slashes
    suspects = quotes[(quotes == 0) | is_slash[quotes - 1]]
    if len(suspects):
        last = np.searchsorted(others, suspects) - 1
        run = np.where(last >= 0, suspects - others[last] - 1, suspects + slashes)
        quotes = np.setdiff1d(quotes, suspects[run % 2 == 1], assume_unique=True)
    return quotes, trailing

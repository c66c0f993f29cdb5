"""WebDataset: uncompressed tars whose members are grouped into records by their names, read in place by offset.

`000123.jpg`, `000123.txt`, `000123.json` are one record, of key `000123`: the name up to its first dot. A record holds
the fields of its `.json`, its `.txt` as `caption`, its images as `image` (one, or a list in the order of their numbers,
those without one first, by name). Where words stand before an ending, they are a field as well: `000123.input.png` and
`000123.output.png` are `input` and `output`, of which `columns:` makes a triple.
Nothing is ever unpacked to disk. Members that are no plain files are skipped and counted.
"""

from __future__ import annotations

import os
import re
import tarfile
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, cast

import numpy as np

from diptych.data import samples
from diptych.data.references import MAX_IMAGE_BYTES, StoredImage
from diptych.data.samples import RecordError, decode_record, kind_of
from diptych.data.stores.offset_index import load_index, read_range
from diptych.data.stores.record_store import named_files

IMAGE_SUFFIXES = ("png", "jpg", "jpeg", "webp", "gif", "bmp")
MAX_HEADER_BYTES = 1_000_000
"""Of the headers that carry long names; a header that claims more is refused before it is read."""
_TEXT_SUFFIXES = {"txt": "caption", "caption": "caption", "cap": "caption"}
_COMPRESSED = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"PK\x03\x04": "zip",
}
# What is kept of a member: its record, its offset, its size, the number of its suffix, and the words in that.
_COLUMNS = 6
_WORD_BYTES = 16
_DAMAGED = -1
"""In place of a suffix: where a tar is whole no longer. The last row of its index."""


class TarShards:
    """Records of one or more tars, in the order given, by number.

    Of a tar that is cut or damaged, what is whole is read; the rest of it is one bad record of kind "shard", and a
    warning. Raises ValueError for a compressed tar, and if no whole record is in any of them.
    """

    def __init__(self, paths: Sequence[str | Path], *, index_dir: Path | None = None) -> None:
        self._paths = named_files(paths, ".tar")
        self.folder = Path(self._paths[0]).parent
        self._indices: list[np.ndarray] = []
        damaged: list[str] = []
        for path in self._paths:
            index, reason = _load_tar_index(path, index_dir)
            self._indices.append(index)
            if len(index) and index[-1, 3] == _DAMAGED:
                whole = int(index[-1, 0])
                why = reason or f"it ends too early, or is no tar, from byte {int(index[-1, 1]):,} on"
                damaged.append(f"{path} is corrupt, or no tar: {why}; replace it, or leave it out")
                if whole:
                    damaged[-1] += f" (records of it that are whole and read: {whole})"
        if damaged and not any((index[:, 3] != _DAMAGED).any() for index in self._indices):
            raise ValueError(damaged[0])
        for problem in damaged:
            warnings.warn(problem, stacklevel=3)
        self._ends = np.cumsum([int(index[-1, 0]) + 1 if len(index) else 0 for index in self._indices])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def _place(self, number: int) -> tuple[int, int]:
        shard = int(np.searchsorted(self._ends, number, side="right"))
        return shard, number - (int(self._ends[shard - 1]) if shard else 0)

    def read(self, number: int) -> Any:
        shard, record = self._place(number)
        index, path = self._indices[shard], self._paths[shard]
        first, last = np.searchsorted(index[:, 0], [record, record + 1])
        if index[first, 3] == _DAMAGED:
            raise RecordError("shard", f"{path} is cut or damaged from here on")
        return _merge(
            [
                (*_read_member(path, int(row[1]), int(row[2]), int(row[3])), row[4:].tobytes().rstrip(b"\0").decode())
                for row in index[first:last]
            ]
        )

    def where(self, number: int) -> str:
        shard, record = self._place(number)
        return f"{self._paths[shard]}, record {record + 1}"


def expand_shards(pattern: str) -> list[str]:
    """The files that a path, a glob (`*.tar`) or a brace range (`{000..012}.tar`) names, in order.

    Raises ValueError for a scheme (`pipe:` runs a command elsewhere; here nothing does), and if nothing is there.
    """
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:", pattern):
        raise ValueError(f"{pattern[:200]!r} names a scheme; shards are files, so fetch them first")
    found = re.fullmatch(r"(.*)\{(\d+)\.\.(\d+)\}(.*)", pattern, re.DOTALL)
    if found is not None:
        before, first, last, after = found.groups()
        if not 0 <= int(last) - int(first) < 1_000_000:
            raise ValueError(f"{pattern!r}: a brace range runs upwards, over at most a million shards")
        width = len(first) if first.startswith("0") else 0
        return [f"{before}{number:0{width}d}{after}" for number in range(int(first), int(last) + 1)]
    if any(mark in pattern for mark in "*?[") and not os.path.exists(pattern):
        import glob

        names = sorted(glob.glob(pattern))
        if not names:
            raise ValueError(f"no file matches {pattern!r}")
        return names
    return [pattern]


def refuse_compressed(path: Path) -> None:
    """Raises ValueError for an archive that has no random access, with what to do about it."""
    with path.open("rb") as file:
        head = file.read(6)
    for magic, kind in _COMPRESSED.items():
        if head.startswith(magic):
            remedy = "unpack it into a folder" if kind == "zip" else "decompress it (the images in it are already)"
            raise ValueError(f"{path} is compressed ({kind}), and is read by place; {remedy}")


def _load_tar_index(path: str, index_dir: Path | None) -> tuple[np.ndarray, str]:
    """The index of a tar; of one in which nothing is whole, that of a damaged one, and why."""
    refuse_compressed(Path(path))
    try:
        return load_index(Path(path), "tar 3", _index_tar, index_dir).reshape(-1, _COLUMNS), ""
    except (tarfile.TarError, ValueError, EOFError) as error:
        return np.array([[0, 0, 0, _DAMAGED, 0, 0]], np.int64), str(error)


class _HeaderReader:
    """A tar as `tarfile` may see it: no more than headers in memory at once, whatever they claim."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= MAX_HEADER_BYTES:
            raise ValueError(f"a header of {size:,} bytes; {MAX_HEADER_BYTES:,} are read")
        return self._file.read(size)


def _index_tar(file: BinaryIO) -> np.ndarray:
    """int64, row by row: record, offset, size, suffix number; see `_COLUMNS`."""
    rows: list[tuple[int, ...]] = []
    skipped: Counter[str] = Counter()
    key, record, seen = None, -1, set()
    length = os.fstat(file.fileno()).st_size
    with tarfile.open(fileobj=cast(Any, _HeaderReader(file)), mode="r:", errorlevel=2) as tar:
        try:
            for member in _members(tar):
                if (reason := _objection(member)) is not None:
                    skipped[reason] += 1
                    continue
                name = PurePosixPath(member.name)
                stem, _, suffix = name.name.partition(".")
                if member.offset_data + member.size > length:
                    record += key != str(name.parent / stem)
                    raise EOFError(f"it ends within its member {member.name[:200]!r}")
                suffix = suffix.lower()
                if (number := _suffix_number(suffix)) is None or not stem:
                    skipped["of no use"] += 1
                    continue
                own = str(name.parent / stem)
                if own != key or suffix in seen:
                    key, record, seen = own, record + 1, set()
                seen.add(suffix)
                rows.append((record, member.offset_data, member.size, number, *_pack_words(suffix)))
            _check_end(file, tar.offset)
        except (tarfile.TarError, ValueError, EOFError):
            # Which members its last record lacks cannot be known: it goes with the rest.
            rows = [row for row in rows if row[0] < record]
            if not rows:
                raise
            rows.append((record, file.tell(), 0, _DAMAGED, 0, 0))
    problems = {reason: count for reason, count in skipped.items() if reason != "of no use"}
    if problems:
        counts = ", ".join(f"{reason}: {count}" for reason, count in sorted(problems.items()))
        warnings.warn(f"{getattr(file, 'name', 'a tar')}: members skipped ({counts})", stacklevel=2)
    return np.array(rows, np.int64).reshape(-1)


def _members(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    while (member := tar.next()) is not None:
        cast(Any, tar).members = []  # it would keep them all
        yield member


def _check_end(file: BinaryIO, offset: int) -> None:
    """tarfile takes a header that is damaged, or cut, for the end. Raises ValueError unless it is one: a block of
    zeros, or nothing at all."""
    file.seek(offset)
    block = file.read(tarfile.BLOCKSIZE)
    if block and (len(block) < tarfile.BLOCKSIZE or block.strip(b"\0")):
        raise ValueError(f"at byte {offset:,} is no header")


def _objection(member: tarfile.TarInfo) -> str | None:
    if member.isdir():
        return "of no use"
    if member.issym() or member.islnk():
        return "link"
    if not member.isreg() or member.issparse():
        return "no plain file"
    if member.name.startswith("/") or "\\" in member.name or ".." in member.name.split("/"):
        return "name that leads out"
    return None


def _suffix_number(suffix: str) -> int | None:
    """Numbers of suffixes: 0 JSON, 1 text; images 1000 and up, with the number that stands before the last dot (and
    below 2000 without one)."""
    place, _, kind = suffix.rpartition(".")
    if kind in IMAGE_SUFFIXES:
        digits = re.sub(r"\D", "", place)[:6]
        return 1000 * (int(digits) + 2 if digits else 1) + IMAGE_SUFFIXES.index(kind)
    if kind == "json":
        return 0
    return 1 if kind in _TEXT_SUFFIXES else None


def _pack_words(suffix: str) -> tuple[int, ...]:
    """What stands before the last dot, where it is words of at most 16 letters and underscores, as two numbers."""
    words = suffix.rpartition(".")[0]
    if not re.fullmatch(rf"[a-z_]{{1,{_WORD_BYTES}}}", words):
        return 0, 0
    packed = np.frombuffer(words.encode().ljust(_WORD_BYTES, b"\0"), np.int64)
    return int(packed[0]), int(packed[1])


def _read_member(path: str, offset: int, size: int, suffix: int) -> tuple[int, Any]:
    """Its suffix' number, and what it holds; of an image, its reference."""
    if suffix >= 1000:
        if size > MAX_IMAGE_BYTES:
            raise RecordError("too large", f"an image of {size:,} bytes, more than the {MAX_IMAGE_BYTES:,} allowed")
        return suffix, StoredImage(f"{path}@{offset}+{size}")
    if size > samples.MAX_RECORD_BYTES:
        raise RecordError("too long", f"the record is longer than {samples.MAX_RECORD_BYTES} bytes")
    data = read_range(path, offset, size)
    if suffix == 0:
        return suffix, decode_record(data)
    try:
        return suffix, data.decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise RecordError("encoding", f"its text is not UTF-8 at byte {error.start}") from None


def _merge(members: list[tuple[int, Any, str]]) -> dict[str, Any]:
    """A record of its members: each the number of its suffix, what it holds, and the words in its suffix."""
    record: dict[str, Any] = {}
    found = [member for member in members if member[0] >= 1000]
    # Without a number, by their words; with one, by it.
    found.sort(key=lambda member: (member[0] // 1000, member[2], member[0]))
    images = [value for _, value, _ in found]
    for suffix, value, _ in members:
        if suffix == 0:
            if not isinstance(value, dict):
                raise RecordError("structure", f"its .json holds {kind_of(value)}, not an object")
            record = {**record, **value}
        elif suffix == 1:
            record.setdefault("caption", value)
    if images and "messages" in record:
        record["images"] = images
    elif images:
        record["image"] = images[0] if len(images) == 1 else images
        for _, value, words in found:
            if words:
                record.setdefault(words, value)
    return record

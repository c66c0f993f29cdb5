"""Unpacks wheels (zip) and npm tarballs by streaming: regular files only, below one folder, within size caps."""

from __future__ import annotations

import errno
import gzip
import hashlib
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Any

CHUNK = 1 << 20
MAX_MEMBERS = 50_000
MAX_NAME_LENGTH = 512
TAR_OVERHEAD = 4096
"""Bytes of headers and padding that a tar may spend on each member, for the cap on the decompressed stream."""


DAMAGE = (tarfile.TarError, zipfile.BadZipFile, gzip.BadGzipFile, zlib.error, struct.error, EOFError)
DAMAGE += (NotImplementedError, OverflowError, ValueError)
"""What the archive readers raise when the bytes make no sense to them."""


class UnsafeArchiveError(ValueError):
    """The archive holds something that is refused: a path that leads out, a link, a device, too much data."""


def unpack_archive(
    archive: Path, folder: Path, *, max_bytes: int, rename: Callable[[str], str | None] = lambda name: name
) -> dict[str, tuple[int, str]]:
    """Unpacks a .whl/.zip or .tgz/.tar.gz into the existing folder `folder`.

    `rename(member name)` gives the path below `folder`, or None to leave a member out. All members count towards
    `max_bytes` (decompressed), and every name is checked, left out or not. Returns, by path, size and SHA-256 of
    what was written. Raises UnsafeArchiveError (refused or damaged; what was already unpacked stays, for the caller
    to remove) and OSError (disk).
    """
    written: dict[str, tuple[int, str]] = {}
    budget = max_bytes
    try:
        for number, (name, size, source) in enumerate(_members(archive, max_bytes)):
            if number >= MAX_MEMBERS:
                raise UnsafeArchiveError(f"{archive.name} has more than {MAX_MEMBERS} members")
            check_member_name(name, archive.name)
            budget -= size
            if budget < 0:
                raise UnsafeArchiveError(f"{archive.name} unpacks to more than {max_bytes} bytes")
            path = rename(name)
            if path is None:
                continue
            check_member_name(path, archive.name)
            if path in written:
                raise UnsafeArchiveError(f"{archive.name} holds {path!r} twice")
            written[path] = (size, _write(source, folder / path, size=size, member=f"{name!r} of {archive.name}"))
    except UnsafeArchiveError:
        raise
    except DAMAGE as error:
        raise UnsafeArchiveError(f"{archive.name} is damaged or truncated: {error}") from error
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        # A damaged zip sends the reader to an offset that cannot be.
        raise UnsafeArchiveError(f"{archive.name} is damaged: {error}") from error
    return written


def check_member_name(name: str, archive: str) -> None:
    """Raises UnsafeArchiveError unless `name` is a plain relative path: no root, drive, `..`, backslash, control."""
    parts = name.split("/")
    if (
        not name
        or len(name) > MAX_NAME_LENGTH
        or any(part in ("", ".", "..") for part in parts)
        or any(ord(letter) < 32 or letter in '\\:*?"<>|' for letter in name)
        or PurePosixPath(name).is_absolute()
    ):
        raise UnsafeArchiveError(f"{archive} holds the unsafe path {name!r}; the archive is refused")


def _members(archive: Path, max_bytes: int) -> Iterator[tuple[str, int, IO[bytes]]]:
    if archive.suffix in (".whl", ".zip"):
        return _zip_members(archive)
    if archive.suffix == ".tgz" or archive.name.endswith(".tar.gz"):
        return _tar_members(archive, max_bytes)
    raise UnsafeArchiveError(f"{archive.name} is neither a wheel (.whl, .zip) nor a tarball (.tgz, .tar.gz)")


def _zip_members(archive: Path) -> Iterator[tuple[str, int, IO[bytes]]]:
    with zipfile.ZipFile(archive) as zipped:
        for info in zipped.infolist():
            mode = info.external_attr >> 16
            if info.flag_bits & 1 or info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise UnsafeArchiveError(f"{archive.name} holds the encrypted or oddly packed {info.filename!r}")
            # The name as stored: zipfile itself cuts it at a NUL.
            name = info.orig_filename
            if stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise UnsafeArchiveError(f"{archive.name} holds {name!r}, which is not a regular file")
            if name.endswith("/"):
                check_member_name(name.rstrip("/"), archive.name)
                continue
            with zipped.open(info) as source:
                yield name, info.file_size, source


def _tar_members(archive: Path, max_bytes: int) -> Iterator[tuple[str, int, IO[bytes]]]:
    with gzip.open(archive) as unzipped:
        stream = _CappedStream(unzipped, max_bytes + TAR_OVERHEAD * MAX_MEMBERS // 2, archive.name)
        with tarfile.open(fileobj=stream, mode="r|") as tar:  # pyright: ignore[reportArgumentType, reportCallIssue]
            for info in tar:
                if info.isdir():
                    check_member_name(info.name.rstrip("/"), archive.name)
                    continue
                source = tar.extractfile(info) if info.isreg() and not info.issparse() else None
                if source is None:
                    raise UnsafeArchiveError(f"{archive.name} holds {info.name!r}, which is not a regular file")
                yield info.name, info.size, source


class _CappedStream:
    """A stream that refuses to give more than `limit` bytes: tarfile itself reads extended headers without a cap."""

    def __init__(self, source: Any, limit: int, archive: str) -> None:
        self.source, self.left, self.archive = source, limit, archive

    def read(self, size: int) -> bytes:
        data = self.source.read(size)
        self.left -= len(data)
        if self.left < 0:
            raise UnsafeArchiveError(f"{self.archive} unpacks to far more than it declares")
        return data


def _write(source: IO[bytes], path: Path, *, size: int, member: str) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256()
    left = size
    with path.open("xb") as file:
        while chunk := source.read(min(CHUNK, left + 1)):
            left -= len(chunk)
            if left < 0:
                raise UnsafeArchiveError(f"{member} is larger than it declares")
            digest.update(chunk)
            file.write(chunk)
    if left:
        raise UnsafeArchiveError(f"{member} is damaged or truncated: {left} of {size} bytes are missing")
    return digest.hexdigest()

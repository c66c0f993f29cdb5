"""The cache: where it is, and how a folder in it comes to be: whole or not at all, one process at a time."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


class CacheError(ValueError):
    """A cached thing could not be made: the message says what, why and the remedy; nothing half-written is left."""


def cache_root() -> Path:
    """The cache folder: $DIPTYCH_CACHE, else $XDG_CACHE_HOME/diptych, else ~/.cache/diptych. Not created here."""
    if own := os.environ.get("DIPTYCH_CACHE"):
        return Path(own).expanduser().absolute()
    if shared := os.environ.get("XDG_CACHE_HOME"):
        return Path(shared).expanduser().absolute() / "diptych"
    return Path.home() / ".cache" / "diptych"


def report_to_stderr(message: str) -> None:
    """The default way to tell the user what is being done and what it costs."""
    print(f"diptych: {message}", file=sys.stderr, flush=True)


def hash_file(path: Path) -> str:
    """SHA-256 of a file's bytes, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds an exclusive lock on the file `path` (made if missing); waits for other threads and processes.

    The lock goes with its holder: a killed process leaves none behind.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def build_folder(folder: Path, build: Callable[[Path], None], *, is_whole: Callable[[Path], bool], what: str) -> Path:
    """Makes `folder` by `build(temporary folder)` and one rename, unless it is already whole. Safe to call at once
    from many threads and processes: one builds, the others wait and find it. Whatever interrupts it, also
    KeyboardInterrupt, the temporary folder goes; one left by a killed process goes at the next call.

    Raises CacheError for a full disk and for a cache that cannot be written; errors of `build` pass through.
    """
    if is_whole(folder):
        return folder
    partial = folder.with_name(f".{folder.name}.partial")
    try:
        with locked(folder.with_name(f".{folder.name}.lock")):
            if is_whole(folder):
                return folder
            try:
                _remove(partial)
                partial.mkdir(parents=True)
                build(partial)
                for path in partial.rglob("*"):
                    if path.is_file() and not path.is_symlink():
                        path.chmod(path.stat().st_mode | 0o444)  # safetensors writes files for their owner alone
                _remove(folder)
                os.replace(partial, folder)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:
        raise explain_os_error(error, what=what) from error
    return folder


def explain_os_error(error: OSError, *, what: str) -> CacheError:
    """The user's words for a full disk, a read-only or forbidden cache, or another I/O error while making `what`."""
    root = cache_root()
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return CacheError(
            f"the disk is full: {what} could not be written below {root}; "
            "free some space or set DIPTYCH_CACHE to a folder on another disk, and call again"
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return CacheError(f"{what} could not be written: {root} is not writable; set DIPTYCH_CACHE to a folder that is")
    return CacheError(f"{what} could not be written below {root}: {error}")


def _remove(folder: Path) -> None:
    if folder.is_symlink() or folder.is_file():
        folder.unlink()
    elif folder.exists():
        shutil.rmtree(folder)

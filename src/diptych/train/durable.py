"""Files that survive a crash: hashed and fsynced as they are written, listed in a manifest, published by one rename."""

from __future__ import annotations

import fcntl
import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from os import O_CREAT, O_DIRECTORY, O_EXCL, O_RDONLY, O_WRONLY, close, fsync, getpid, rename, write
from os import open as open_descriptor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

MANIFEST = "manifest.json"
TEMPORARY = ".writing-"
"""Prefix of everything that is not complete."""
LOCK = ".lock"
REPLACED = ".replaced-"
"""Prefix of a folder for the moment in which a newer one takes its name."""
_CHUNK = 4 * 2**20
_SAFETENSORS_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def write_file(path: Path, parts: Iterable[bytes | memoryview]) -> dict[str, Any]:
    """Writes a new file and forces it to the disk; gives its `sha256` and `size` for the manifest."""
    digest, size = hashlib.sha256(), 0
    descriptor = open_descriptor(path, O_WRONLY | O_CREAT | O_EXCL, 0o644)
    try:
        for part in parts:
            view = memoryview(part).cast("B") if len(part) else memoryview(b"")
            for start in range(0, len(view), _CHUNK):
                chunk = view[start : start + _CHUNK]
                digest.update(chunk)
                size += len(chunk)
                while chunk:
                    chunk = chunk[write(descriptor, chunk) :]
        fsync(descriptor)
    finally:
        close(descriptor)
    return {"sha256": digest.hexdigest(), "size": size}


def write_json(path: Path, value: Any) -> dict[str, Any]:
    """`write_file` of JSON."""
    return write_file(path, [json.dumps(value, allow_nan=False).encode()])


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """`write_file` of CPU tensors in the safetensors format.

    The safetensors library copies every tensor before it writes and cannot hash on the way; this streams.
    """
    header: dict[str, Any] = {}
    end = 0
    for name, tensor in tensors.items():
        start, end = end, end + tensor.numel() * tensor.element_size()
        shape = list(tensor.shape)
        header[name] = {"dtype": _SAFETENSORS_NAMES[tensor.dtype], "shape": shape, "data_offsets": [start, end]}
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)

    def parts() -> Iterable[bytes | memoryview]:
        yield len(encoded).to_bytes(8, "little") + encoded
        for tensor in tensors.values():
            if tensor.numel():
                yield tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data

    return write_file(path, parts())


def _manifest_bytes(files: Mapping[str, Any]) -> bytes:
    body = json.dumps({"format": 1, "files": files}, sort_keys=True)
    checksum = hashlib.sha256(body.encode()).hexdigest()
    return json.dumps({"format": 1, "files": files, "checksum": checksum}, sort_keys=True, indent=1).encode()


def write_manifest(folder: Path, files: Mapping[str, Any]) -> None:
    """Closes a folder: written last, it lists every file with its hash and size, and vouches for itself."""
    write_file(folder / MANIFEST, [_manifest_bytes(files)])


def find_damage(folder: Path) -> str | None:
    """Compares a folder with its manifest. None if whole; otherwise what is wrong, naming the file."""
    manifest = folder / MANIFEST
    try:
        raw = manifest.read_bytes()
    except OSError as error:
        return f"{manifest} cannot be read ({error.strerror}), so the folder was never completed"
    try:
        files = json.loads(raw)["files"]
        intact = raw == _manifest_bytes(files)
        expected = {str(name): (str(entry["sha256"]), int(entry["size"])) for name, entry in files.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        intact, expected = False, {}
    if not intact:
        return f"{manifest} is corrupt: it does not match its own checksum"
    for name, (sha256, size) in sorted(expected.items()):
        path = folder / name
        try:
            actual = path.stat().st_size
            if actual != size:
                return f"{path} is corrupt: {actual} bytes instead of {size}"
            with path.open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != sha256:
                    return f"{path} is corrupt: its SHA-256 is not the manifest's"
        except OSError as error:
            return f"{path} cannot be read ({error.strerror})"
    return None


def sync_folder(folder: Path) -> None:
    """Forces the names in a folder to the disk."""
    descriptor = open_descriptor(folder, O_RDONLY | O_DIRECTORY)
    try:
        fsync(descriptor)
    finally:
        close(descriptor)


def temporary_beside(path: Path) -> Path:
    """A name for the incomplete form of `path`, in the same folder, so that a rename completes it."""
    return path.with_name(f"{TEMPORARY}{path.name}-{getpid()}")


def publish_folder(temporary: Path, final: Path) -> None:
    """Gives a complete folder its name; one that stood there goes only when the new one is in place.

    On an error everything stands as before, with `temporary` for the caller to remove.
    """
    sync_folder(temporary)
    replaced = final.with_name(f"{REPLACED}{final.name}")
    if final.exists():
        rename(final, replaced)
    try:
        rename(temporary, final)
        sync_folder(final.parent)
    except BaseException:
        if not temporary.exists():
            final.rename(temporary)
        if replaced.exists():
            replaced.rename(final)
        raise
    shutil.rmtree(replaced, ignore_errors=True)


def replace_file(path: Path, data: bytes) -> None:
    """Writes a file whole or not at all."""
    temporary = temporary_beside(path)
    temporary.unlink(missing_ok=True)
    try:
        write_file(temporary, [data])
        rename(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


@contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Holds a folder for one run. Raises ValueError if another holds it; the lock goes with its holder's process."""
    with (folder / LOCK).open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ValueError(
                f"another run is writing into output_dir {folder}; wait for it, or choose another output_dir"
            ) from error
        yield


def is_held(folder: Path) -> bool:
    """Whether a run holds the folder at this moment (`only_writer`)."""
    try:
        with (folder / LOCK).open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def remove_incomplete(folder: Path) -> None:
    """Clears what a killed process left half-written in a folder, and takes back what it was about to replace."""
    for path in folder.glob(f"{REPLACED}*"):
        original = path.with_name(path.name.removeprefix(REPLACED))
        if original.exists():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.rename(original)
    for path in folder.glob(f"{TEMPORARY}*"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)

"""Tensors that are computed once and kept: in memory after their first use, on disk for the next run."""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import threading
import time
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

SHARD_BYTES = 128_000_000
SHARD_ENTRIES = 32_768
"""A shard that holds so many opens in a tenth of a second."""
SHARDS_OPEN = 16
_FORMAT, _FORMAT_BY_ENTRY = 2, 1
_ENTRY = "\n"
"""Between a content key and a tensor's name, in a shard."""
_ORPHAN_SECONDS = 24 * 3600


class TensorCache:
    """Named tensors under content keys, in `folder`/`key`; `key` holds the hash of the model that makes them.

    A `get` of a tensor used before is a dictionary look-up; any other reads its bytes alone, of a mapped file. What is
    `put` reaches the disk with `flush`, or by itself once SHARD_BYTES have gathered. A shard is a safetensors file and
    a JSON index with its SHA-256 (checked at the shard's first use), each written to a temporary name and renamed, the
    index last. Every process writes shards of its own, so any number of them may read and write one cache (`refresh`
    finds what others wrote). A damaged shard is dropped with a warning, and what it held counts as never computed.
    Values keep dtype, shape and bits. `memory_bytes`: what of it is on disk is forgotten in memory once more than this
    has gathered; None: never.
    Where the disk takes nothing, SHARD_BYTES of what is `put` wait for it, and what is older is forgotten too.
    `disk_bytes`: shards that would make the folder larger than this are not kept, and nothing more is (`is_full`);
    None: no bound.
    """

    def __init__(
        self, folder: str | Path, *, key: str, memory_bytes: int | None = None, disk_bytes: int | None = None
    ) -> None:
        if not re.fullmatch(r"\w[\w.-]*", key, re.ASCII):
            raise ValueError(f"cache key {key!r} must be a plain name of letters, digits, '-', '_' and '.'")
        self.folder = Path(folder) / key
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(f"cache folder {self.folder} cannot be made: {error.strerror}; set cache_dir") from error
        self._writer = f"{os.getpid():x}-{secrets.token_hex(6)}"
        self._num_written = 0
        self._values: dict[str, dict[str, Tensor]] = {}
        self._on_disk: dict[str, str] = {}  # content key -> name of the shard that holds it
        self._known: set[str] = set()
        self._opened: dict[str, _Shard] = {}  # the one used last at the end
        self._unsaved: dict[str, dict[str, Tensor]] = {}
        self._unsaved_bytes = 0
        self._memory_bytes, self._held_bytes = memory_bytes, 0
        self._disk_bytes = disk_bytes
        self.is_full = False
        self._verified: set[str] = set()
        self._write_failed = False
        self._put_since_flush = 0
        self._lock = threading.RLock()
        self._remove_orphans()
        self.refresh()

    def __contains__(self, content: str) -> bool:
        return content in self._values or content in self._on_disk

    def __len__(self) -> int:
        return len(self._values.keys() | self._on_disk.keys())

    def get(self, content: str) -> dict[str, Tensor] | None:
        """The tensors kept under a content key, to be read only; None if they must be computed."""
        found = self._values.get(content)
        if found is None and content in self._on_disk:
            with self._lock:
                while content in self._on_disk and content not in self._values:
                    self._read(content)
                found = self._values.get(content)
        return found

    def put(self, content: str, tensors: Mapping[str, Tensor] | Tensor) -> None:
        """Keeps a copy (on the CPU) of the tensors; a single one is kept under the name "tensor". A full cache does
        nothing."""
        if self.is_full:
            return
        named = {"tensor": tensors} if isinstance(tensors, Tensor) else tensors
        kept = {name: torch.empty(t.shape, dtype=t.dtype).copy_(t.detach()) for name, t in named.items()}
        with self._lock:
            self._held_bytes -= _num_bytes(self._values.get(content, {}))
            self._unsaved_bytes -= _num_bytes(self._unsaved.pop(content, {}))
            self._values[content] = kept
            self._unsaved[content] = kept
            self._unsaved_bytes += _num_bytes(kept)
            self._put_since_flush += _num_bytes(kept)
            self._held_bytes += _num_bytes(kept)
            if self._put_since_flush >= SHARD_BYTES or len(self._unsaved) % SHARD_ENTRIES == 0:
                self.flush_or_warn()
            self._make_room()

    def flush_or_warn(self) -> None:
        """`flush`, but a disk that takes nothing is a warning, the first time: a cache is no reason to stop."""
        with self._lock:
            try:
                self.flush()
            except ValueError as error:
                if not self._write_failed:
                    warnings.warn(f"{error}; meanwhile little is kept, in memory alone", stacklevel=3)
                self._write_failed = True
                while self._unsaved_bytes > SHARD_BYTES:
                    self._unsaved_bytes -= _num_bytes(self._unsaved.pop(next(iter(self._unsaved))))

    def flush(self) -> None:
        """Writes what is not on disk yet as one shard. Raises ValueError if it cannot; then nothing is lost."""
        with self._lock:
            self._put_since_flush = 0
            if not self._unsaved or not self._fits(self._unsaved_bytes):
                return
            name = f"{self._writer}-{self._num_written}"
            contents = list(self._unsaved)
            flat, entries = _flattened(self._unsaved)
            shard, index = self._paths(name)
            temporary = [shard.with_suffix(".shard-tmp"), index.with_suffix(".index-tmp")]
            try:
                save_file(flat, temporary[0])
                description = {"sha256": _sha256(temporary[0]), **entries}
                temporary[1].write_text(json.dumps(description), encoding="utf-8")
                if not self._fits():  # what other processes are writing counts as well
                    return
                os.replace(temporary[0], shard)
                os.replace(temporary[1], index)
            except (OSError, SafetensorError) as error:
                shard.unlink(missing_ok=True)
                raise ValueError(
                    f"cache {self.folder} could not be written: {error}; free some space, or set another cache_dir"
                ) from error
            finally:
                for path in temporary:
                    path.unlink(missing_ok=True)
            self._num_written += 1
            self._known.add(name)
            self._on_disk.update(dict.fromkeys(contents, name))
            self._unsaved = {}
            self._unsaved_bytes = 0
            self._write_failed = False

    def refresh(self) -> None:
        """Learns of the shards that other processes have written since."""
        with self._lock:
            for index in sorted(self.folder.glob("*.json")):
                if index.stem in self._known:
                    continue
                self._known.add(index.stem)
                try:
                    for content in _read_index(index)["entries"]:
                        self._on_disk[content] = index.stem
                except (OSError, ValueError) as error:
                    self._drop(index.stem, str(error))

    def _read(self, content: str) -> None:
        """Brings one entry into memory; a damaged shard is dropped instead."""
        name = self._on_disk[content]
        try:
            shard = self._opened.pop(name, None) or self._open(name)
            tensors = {one: shard.file.get_tensor(key).clone() for one, key in shard.keys_of(content).items()}
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            self._drop(name, str(error))
            return
        self._opened[name] = shard
        while len(self._opened) > SHARDS_OPEN:
            del self._opened[next(iter(self._opened))]
        self._make_room()
        self._values[content] = tensors
        self._held_bytes += _num_bytes(tensors)

    def _open(self, name: str) -> _Shard:
        path, index = self._paths(name)
        description = _read_index(index)
        if name not in self._verified and _sha256(path) != description["sha256"]:
            raise ValueError("its SHA-256 is not the one in its index")
        self._verified.add(name)
        entries = description["entries"]
        file = safe_open(path, framework="pt")
        return _Shard(file, description.get("names", ()), entries if isinstance(entries, dict) else None)

    def _make_room(self) -> None:
        if self._memory_bytes is not None and self._held_bytes > self._memory_bytes:
            self._values = dict(self._unsaved)
            self._held_bytes = self._unsaved_bytes

    def _fits(self, more: int = 0) -> bool:
        """Whether the folder and so many bytes more are within the bound; if not, nothing waits for the disk."""
        if self._disk_bytes is not None and _folder_bytes(self.folder) + more > self._disk_bytes:
            self.is_full = True
            self._unsaved, self._unsaved_bytes = {}, 0
        return not self.is_full

    def _drop(self, name: str, reason: str) -> None:
        shard, index = self._paths(name)
        warnings.warn(f"cache shard {shard} is damaged ({reason}); it is dropped and computed again", stacklevel=4)
        self._opened.pop(name, None)
        self._on_disk = {content: holder for content, holder in self._on_disk.items() if holder != name}
        for path in (index, shard):
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                warnings.warn(f"{path} cannot be removed: {error.strerror}", stacklevel=4)

    def _remove_orphans(self) -> None:
        """What a killed process left long ago: temporary files, and shards whose index was never written."""
        for path in self.folder.iterdir():
            if path.suffix in (".shard-tmp", ".index-tmp", ".safetensors") and not path.with_suffix(".json").exists():
                try:
                    if time.time() - path.stat().st_mtime > _ORPHAN_SECONDS:
                        path.unlink()
                except FileNotFoundError:
                    continue  # another process was first
                except OSError as error:
                    warnings.warn(f"{path} cannot be removed: {error.strerror}", stacklevel=3)

    def _paths(self, name: str) -> tuple[Path, Path]:
        return self.folder / f"{name}.safetensors", self.folder / f"{name}.json"


@dataclass(frozen=True)
class _Shard:
    """A mapped file; `names`: of the tensors that each entry has, or `entries`: what each of them is called there."""

    file: Any
    names: Sequence[str]
    entries: dict[str, dict[str, str]] | None

    def keys_of(self, content: str) -> dict[str, str]:
        if self.entries is not None:
            return self.entries[content]
        return {name: f"{content}{_ENTRY}{name}" for name in self.names}


def _flattened(values: Mapping[str, Mapping[str, Tensor]]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A shard's tensors under names of their own, and how its index says which they are: a list of content keys where
    all have tensors of the same names, which is read ten times as fast."""
    names = list(next(iter(values.values())))
    if all(list(tensors) == names for tensors in values.values()) and not any(_ENTRY in name for name in names):
        flat = {f"{content}{_ENTRY}{name}": t for content, tensors in values.items() for name, t in tensors.items()}
        return flat, {"format": _FORMAT, "names": names, "entries": list(values)}
    flat, entries = {}, {}
    for content, tensors in values.items():
        entries[content] = {name: str(len(flat) + place) for place, name in enumerate(tensors)}
        flat |= dict(zip(entries[content].values(), tensors.values(), strict=True))
    return flat, {"format": _FORMAT_BY_ENTRY, "entries": entries}


def _num_bytes(tensors: Mapping[str, Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors.values())


def _folder_bytes(folder: Path) -> int:
    total = 0
    for path in folder.iterdir():
        with suppress(FileNotFoundError):  # another process has renamed it
            total += path.stat().st_size
    return total


def _read_index(path: Path) -> dict:
    description = json.loads(path.read_text(encoding="utf-8"))
    wanted = description.get("format") if isinstance(description, dict) else None
    if wanted not in (_FORMAT, _FORMAT_BY_ENTRY):
        raise ValueError(f"its index has not format {_FORMAT} or {_FORMAT_BY_ENTRY}")
    entries = description.get("entries")
    if wanted == _FORMAT:
        valid = _are_strings(entries) and _are_strings(description.get("names"))
    else:
        valid = isinstance(entries, dict) and all(
            isinstance(names, dict) and all(isinstance(key, str) for key in names.values())
            for names in entries.values()
        )
    if not valid or not isinstance(description.get("sha256"), str):
        raise ValueError("its index lacks its entries or its SHA-256")
    return description


def _are_strings(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(entry, str) for entry in value)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

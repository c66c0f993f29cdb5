"""The identity of a model's weights: one SHA-256 over its stored tensors, whatever dtype they are then loaded in."""

from __future__ import annotations

import hashlib
import json
import mmap
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from diptych.backbones.cache_folder import cache_root

ALWAYS_HASHED_BELOW = 32 << 20
"""Smaller weights are hashed at every load: that takes less than 0.2 s."""
DTYPE_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def hash_folder(folder: Path) -> str:
    """SHA-256 over name, dtype, shape and bytes of every tensor in the folder's weights, in order of name. Its weights
    are what Hugging Face loads: model.safetensors, else the files of its index, else all *.safetensors.

    So it does not depend on the split into files, their headers, or the dtype of loading. Of large weights it is
    remembered in the cache, keyed by path, size and modification time of the files. Raises ValueError for a folder
    without safetensors and for damaged files.
    """
    files = _weight_files(folder)
    stats = [file.stat() for file in files]
    if sum(stat.st_size for stat in stats) < ALWAYS_HASHED_BELOW:
        return _hash_files(files)
    key = [[str(file.resolve()), stat.st_size, stat.st_mtime_ns] for file, stat in zip(files, stats, strict=True)]
    note = cache_root() / "hashes" / hashlib.sha256(json.dumps(key).encode()).hexdigest()
    with suppress(OSError):
        remembered = note.read_text(encoding="ascii")
        if len(remembered) == 64:
            return remembered
    result = _hash_files(files)
    # Remembering only saves time: a cache that cannot be written changes no result.
    with suppress(OSError):
        note.parent.mkdir(parents=True, exist_ok=True)
        partial = note.with_name(f"{note.name}.{os.getpid()}")
        partial.write_text(result, encoding="ascii")
        os.replace(partial, note)
    return result


def hash_module(module: nn.Module) -> str:
    """The hash that the module has once saved with `save_pretrained` in its present dtype: tied tensors count once."""
    tensors = dict(module.named_parameters())
    persistent = module.state_dict().keys()
    tensors |= {name: buffer for name, buffer in module.named_buffers() if name in persistent}
    return hash_tensors(tensors)


def hash_tensors(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over name, dtype, shape and bytes of the tensors, in order of name."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        _update(digest, name, DTYPE_NAMES[tensor.dtype], list(tensor.shape))
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _weight_files(folder: Path) -> list[Path]:
    index = folder / "model.safetensors.index.json"
    for name in ("model.safetensors", "diffusion_pytorch_model.safetensors"):  # of transformers, of diffusers
        if (folder / name).is_file():
            return [folder / name]
    if index.is_file():
        try:
            shards = sorted(
                {str(shard) for shard in json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()}
            )
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise ValueError(f"{index} is damaged: {error!r}; fetch or save the model again") from error
        if lacking := [shard for shard in shards if Path(shard).name != shard or not (folder / shard).is_file()]:
            raise ValueError(f"{folder} lacks {', '.join(lacking)}, which its index names; fetch or save it again")
        return [folder / shard for shard in shards]
    if files := sorted(folder.glob("*.safetensors")):
        return files
    raise ValueError(f"{folder} holds no *.safetensors; save the model there with save_pretrained")


def _update(digest: Any, name: str, dtype: str, shape: list[int]) -> None:
    digest.update(json.dumps([name, dtype, shape]).encode() + b"\n")


def _hash_files(files: list[Path]) -> str:
    entries = sorted((name, entry, file, start) for file in files for name, entry, start in _entries(file))
    names = [name for name, *_ in entries]
    if len(set(names)) < len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        raise ValueError(f"{files[0].parent}: several *.safetensors hold {twice[:3]}; keep one set of weights there")
    digest = hashlib.sha256()
    opened: dict[Path, mmap.mmap] = {}
    try:
        for name, (dtype, shape, begin, end), file, start in entries:
            if file not in opened:
                with file.open("rb") as handle:
                    opened[file] = mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ)
            _update(digest, name, dtype, list(shape))
            with memoryview(opened[file]) as view, view[start + begin : start + end] as part:
                digest.update(part)
    finally:
        for mapped in opened.values():
            mapped.close()
    return digest.hexdigest()


def _entries(file: Path) -> Iterator[tuple[str, tuple[str, tuple[int, ...], int, int], int]]:
    """Name, (dtype, shape, begin, end) of each tensor, and where the file's data start."""
    size = file.stat().st_size
    with file.open("rb") as handle:
        length = int.from_bytes(handle.read(8), "little")
        try:
            if not 0 < length <= size - 8:
                raise ValueError("the header's length is beyond the file")
            header = json.loads(handle.read(length))
            header.pop("__metadata__", None)
            for name, entry in header.items():
                begin, end = entry["data_offsets"]
                if not 0 <= begin <= end <= size - 8 - length:
                    raise ValueError(f"the bytes of {name} are beyond the file")
                yield name, (entry["dtype"], tuple(entry["shape"]), begin, end), 8 + length
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{file} is damaged or no safetensors file: {error}; fetch or save it again") from error

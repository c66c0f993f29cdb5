"""Law: the hash is of the stored weights, every bit of them, and of nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from diptych.backbones import weight_hash
from diptych.backbones.weight_hash import hash_folder, hash_module, hash_tensors

WEIGHTS = {
    "b.weight": torch.arange(12, dtype=torch.float32).reshape(3, 4),
    "a.bias": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
    "c": torch.tensor(7),
    "empty": torch.zeros(0, 3),
}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIPTYCH_CACHE", str(tmp_path / "cache"))


def write(folder: Path, *shards: dict[str, torch.Tensor]) -> Path:
    folder.mkdir(exist_ok=True)
    for number, shard in enumerate(shards):
        save_file(shard, folder / f"model-{number}.safetensors", metadata={"format": "pt", "number": str(number)})
    return folder


def test_it_is_the_same_in_memory_and_however_the_files_are_split(tmp_path: Path) -> None:
    names = sorted(WEIGHTS)
    whole = write(tmp_path / "whole", WEIGHTS)
    split = write(tmp_path / "split", {n: WEIGHTS[n] for n in names[2:]}, {n: WEIGHTS[n] for n in names[:2]})
    assert hash_folder(whole) == hash_folder(split) == hash_tensors(WEIGHTS)


def test_name_shape_dtype_and_every_byte_count(tmp_path: Path) -> None:
    first = hash_tensors(WEIGHTS)
    others = [
        WEIGHTS | {"b.weight": WEIGHTS["b.weight"].reshape(4, 3)},
        WEIGHTS | {"b.weight": WEIGHTS["b.weight"].view(torch.int32)},
        {("renamed" if name == "c" else name): tensor for name, tensor in WEIGHTS.items()},
        {name: tensor for name, tensor in WEIGHTS.items() if name != "empty"},
    ]
    assert len({first, *map(hash_tensors, others)}) == 5
    folder = write(tmp_path / "whole", WEIGHTS)
    file = folder / "model-0.safetensors"
    whole = file.read_bytes()
    length = int.from_bytes(whole[:8], "little")
    for place in range(8 + length, len(whole)):
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        assert hash_folder(folder) != first


def test_truncated_and_foreign_files_are_refused_by_name(tmp_path: Path) -> None:
    folder = write(tmp_path / "whole", WEIGHTS)
    file = folder / "model-0.safetensors"
    whole = file.read_bytes()
    for length in (0, 4, 8, 20, len(whole) - 1):
        file.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"model-0\.safetensors is damaged or no safetensors file"):
            hash_folder(folder)
    file.unlink()
    with pytest.raises(ValueError, match=r"holds no \*\.safetensors"):
        hash_folder(folder)


def test_two_sets_of_weights_in_one_folder_are_refused(tmp_path: Path) -> None:
    folder = write(tmp_path / "both", WEIGHTS, {"c": WEIGHTS["c"]})
    with pytest.raises(ValueError, match=r"several \*\.safetensors hold \['c'\]"):
        hash_folder(folder)


def test_large_weights_are_hashed_once_until_they_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weight_hash, "ALWAYS_HASHED_BELOW", 0)
    folder = write(tmp_path / "large", WEIGHTS)
    first = hash_folder(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(weight_hash, "_hash_files", lambda files: pytest.fail("hashed again"))
        assert hash_folder(folder) == first
    changed = load_file(folder / "model-0.safetensors") | {"c": torch.tensor(8)}
    write(folder, changed)
    assert hash_folder(folder) == hash_tensors(changed) != first


def test_tied_tensors_count_once_and_only_persistent_buffers_do() -> None:
    module: Any = torch.nn.Module()
    module.first = torch.nn.Linear(2, 2, bias=False)
    module.second = torch.nn.Linear(2, 2, bias=False)
    module.second.weight = module.first.weight
    module.register_buffer("kept", torch.ones(1))
    module.register_buffer("derived", torch.ones(1), persistent=False)
    wanted = hash_tensors({"first.weight": module.first.weight, "kept": module.kept})
    assert hash_module(module) == wanted


def test_what_hugging_face_would_not_load_does_not_count(tmp_path: Path) -> None:
    folder = write(tmp_path / "model", WEIGHTS)
    (folder / "model-0.safetensors").rename(folder / "model.safetensors")
    write(folder, {"other": torch.ones(1)})
    assert hash_folder(folder) == hash_tensors(WEIGHTS)


def test_the_shards_of_the_index_count_and_must_be_there(tmp_path: Path) -> None:
    names = sorted(WEIGHTS)
    folder = write(tmp_path / "model", {n: WEIGHTS[n] for n in names[:2]}, {n: WEIGHTS[n] for n in names[2:]})
    save_file({"other": torch.ones(1)}, folder / "consolidated.safetensors")
    index = folder / "model.safetensors.index.json"
    shards = {name: f"model-{int(place >= 2)}.safetensors" for place, name in enumerate(names)}
    index.write_text(json.dumps({"weight_map": shards}))
    assert hash_folder(folder) == hash_tensors(WEIGHTS)
    for bad, words in (("../x.safetensors", "lacks"), ("model-7.safetensors", "lacks model-7"), (None, "lacks None")):
        index.write_text(json.dumps({"weight_map": shards | {"c": bad}}))
        with pytest.raises(ValueError, match=words):
            hash_folder(folder)
    for damaged in ("", "[]", "{}", '{"weight_map": 3}'):
        index.write_text(damaged)
        with pytest.raises(ValueError, match="is damaged"):
            hash_folder(folder)

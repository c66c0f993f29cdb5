"""Laws of files that survive a crash."""

from __future__ import annotations

import errno
import hashlib
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from diptych.train import durable
from diptych.train.checkpoint import CheckpointError, find_latest, list_checkpoints, write_checkpoint
from diptych.train.durable import (
    find_damage,
    is_held,
    only_writer,
    publish_folder,
    remove_incomplete,
    replace_file,
    write_tensors,
)
from train.toy_method import make_snapshot


def test_tensors_are_read_back_by_the_safetensors_library(tmp_path: Path) -> None:
    tensors = {
        "matrix": torch.randn(3, 4).T,
        "bf16": torch.randn(5).bfloat16(),
        "scalar": torch.tensor(2.5, dtype=torch.float64),
        "empty": torch.zeros(0, 3),
        "ids": torch.arange(4),
        "mask": torch.tensor([True, False]),
    }
    entry = write_tensors(tmp_path / "t.safetensors", tensors)
    raw = (tmp_path / "t.safetensors").read_bytes()
    assert entry == {"sha256": hashlib.sha256(raw).hexdigest(), "size": len(raw)}
    read = load_file(tmp_path / "t.safetensors")
    assert sorted(read) == sorted(tensors)
    assert all(torch.equal(read[name], tensor) and read[name].dtype == tensor.dtype for name, tensor in tensors.items())


class Faults:
    """Counts calls of write, fsync and rename, and fails the n-th."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.calls = 0
        self.fail_at = 0
        self.kind = errno.ENOSPC
        for name in ("write", "fsync", "rename"):
            patch.setattr(durable, name, self._wrap(getattr(durable, name)))

    def _wrap(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            self.calls += 1
            if self.calls == self.fail_at:
                raise OSError(self.kind, "injected")
            return function(*arguments)

        return call

    def arm(self, fail_at: int, kind: int = errno.ENOSPC) -> None:
        self.calls, self.fail_at, self.kind = 0, fail_at, kind


@pytest.fixture
def faults(monkeypatch: pytest.MonkeyPatch) -> Faults:
    return Faults(monkeypatch)


@pytest.mark.parametrize("kind", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("again", [False, True], ids=["new-step", "same-step"])
def test_a_failure_at_any_write_fsync_or_rename_leaves_the_old_checkpoint(
    tmp_path: Path, faults: Faults, again: bool, kind: int
) -> None:
    write_checkpoint(tmp_path, make_snapshot(1), keep=2)
    faults.arm(0)
    step = 1 if again else 2
    write_checkpoint(tmp_path / "counting", make_snapshot(step), keep=2)
    total = faults.calls + (1 if again else 0)
    assert total >= 12
    shutil.rmtree(tmp_path / "counting")
    for fail_at in range(1, total + 1):
        faults.arm(fail_at, kind)
        with pytest.raises(CheckpointError, match=rf"step-00000{step} could not be written: .*injected.*intact"):
            write_checkpoint(tmp_path, make_snapshot(step), keep=2)
        assert [path.name for path in tmp_path.iterdir()] == ["step-000001"], fail_at
        latest = find_latest(tmp_path)
        assert latest is not None
        assert latest.state["step"] == 1
    faults.arm(0)
    write_checkpoint(tmp_path, make_snapshot(step), keep=2)
    assert [number for number, _ in list_checkpoints(tmp_path)] == sorted({1, step})


def test_a_failed_replacement_of_a_file_leaves_the_old_one(tmp_path: Path, faults: Faults) -> None:
    path = tmp_path / "log.jsonl"
    replace_file(path, b"old")
    for fail_at in (1, 2, 3):
        faults.arm(fail_at)
        with pytest.raises(OSError, match="injected"):
            replace_file(path, b"new")
        assert path.read_bytes() == b"old"
        assert list(tmp_path.iterdir()) == [path]


def test_partial_writes_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = durable.write
    monkeypatch.setattr(durable, "write", lambda descriptor, data: original(descriptor, data[:7]))
    write_checkpoint(tmp_path, make_snapshot(3), keep=1)
    assert find_damage(tmp_path / "step-000003") is None


def test_a_kill_between_two_renames_is_taken_back(tmp_path: Path) -> None:
    (tmp_path / ".replaced-morph").mkdir()
    (tmp_path / ".writing-morph-17").mkdir()
    remove_incomplete(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["morph"]
    (tmp_path / ".replaced-morph").mkdir()
    remove_incomplete(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["morph"]


def test_a_published_folder_takes_the_place_of_the_old(tmp_path: Path) -> None:
    for text in ("old", "new"):
        (tmp_path / "making").mkdir()
        (tmp_path / "making" / "file").write_text(text)
        publish_folder(tmp_path / "making", tmp_path / "morph")
    assert (tmp_path / "morph" / "file").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["morph"]


def mutate(folder: Path, choice: random.Random) -> tuple[Path, str]:
    """Damages one file of a checkpoint in one of seven ways; gives the file and the way."""
    paths = sorted(folder.iterdir())
    path = choice.choice(paths)
    data = bytearray(path.read_bytes())
    way = choice.choice(["flip", "flip", "truncate", "delete", "zero", "append", "swap", "empty"])
    where = choice.randrange(len(data))
    if way == "flip":
        data[where] ^= 1 << choice.randrange(8)
    elif way == "truncate":
        del data[where:]
    elif way == "zero":
        before = bytes(data)
        data[where : where + 16] = bytes(len(data[where : where + 16]))
        if data == before:
            data[where] ^= 1
    elif way == "append":
        data += b"\0"
    elif way == "swap":
        data = bytearray(choice.choice([other for other in paths if other != path]).read_bytes())
    elif way == "empty":
        data.clear()
    path.write_bytes(data)
    if way == "delete":
        path.unlink()
    return path, way


def check_mutations(folder: Path, count: int) -> None:
    whole, damaged = folder / "whole", folder / "run" / "step-000005"
    write_checkpoint(folder / "run", make_snapshot(4), keep=2)
    write_checkpoint(folder / "run", make_snapshot(5), keep=2)
    shutil.copytree(damaged, whole)
    choice = random.Random(0)
    for number in range(count):
        path, way = mutate(damaged, choice)
        damage = find_damage(damaged)
        assert str(path) in (damage or ""), (number, way, path, damage)
        shutil.rmtree(damaged)
        shutil.copytree(whole, damaged)
    assert find_damage(damaged) is None


def test_150_mutations_of_a_checkpoint_are_all_found(tmp_path: Path) -> None:
    check_mutations(tmp_path, 150)


@pytest.mark.slow
def test_2000_mutations_of_a_checkpoint_are_all_found(tmp_path: Path) -> None:
    check_mutations(tmp_path, 2000)


def test_every_bit_of_the_manifest_matters(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, make_snapshot(1), keep=1)
    manifest = folder / "manifest.json"
    data = manifest.read_bytes()
    for bit in range(0, 8 * len(data), 11):
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << (bit % 8)
        manifest.write_bytes(changed)
        damage = find_damage(folder)
        assert damage is not None
        assert "manifest.json" in damage


def test_a_folder_is_held_as_long_as_its_run_lasts(tmp_path: Path) -> None:
    assert not is_held(tmp_path)
    with only_writer(tmp_path):
        assert is_held(tmp_path)
    assert not is_held(tmp_path)
    with only_writer(tmp_path):  # asking took nothing away
        pass

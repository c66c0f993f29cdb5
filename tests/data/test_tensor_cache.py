"""Laws of the tensor cache: bit for bit, never half written, never trusted when damaged."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from diptych.data import tensor_cache
from diptych.data.tensor_cache import TensorCache

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int64, torch.uint8, torch.bool)


def found(cache: TensorCache, content: str) -> dict[str, torch.Tensor]:
    tensors = cache.get(content)
    assert tensors is not None
    return tensors


def fill(cache: TensorCache, num: int = 3, prefix: str = "c") -> dict[str, torch.Tensor]:
    torch.manual_seed(num)
    tensors = {f"{prefix}{i}": torch.randn(4, 3 + i) for i in range(num)}
    for content, tensor in tensors.items():
        cache.put(content, {"states": tensor})
    cache.flush()
    return tensors


@pytest.mark.parametrize("dtype", DTYPES)
def test_values_come_back_bit_for_bit_from_another_process_view(tmp_path: Path, dtype: torch.dtype) -> None:
    original = (torch.randn(3, 5, 7) * 100).to(dtype)
    if dtype.is_floating_point:
        original[0, 0, :3] = torch.tensor([float("nan"), float("inf"), -0.0], dtype=dtype)
    values = {"whole": original, "view": original[1:, ::2].transpose(0, 1), "scalar": original[0, 1, 0]}
    cache = TensorCache(tmp_path, key="model-1")
    cache.put("caption", {**values, "empty": original[:0]})
    cache.flush()
    kept = TensorCache(tmp_path, key="model-1").get("caption")
    assert kept is not None
    assert set(kept) == {*values, "empty"}
    assert kept["empty"].shape == (0, 5, 7)
    for name, value in values.items():
        assert kept[name].dtype == dtype
        assert kept[name].shape == value.shape
        assert kept[name].contiguous().view(-1).view(torch.uint8).equal(value.contiguous().view(-1).view(torch.uint8))


def test_what_was_never_put_is_none_and_a_single_tensor_has_a_name(tmp_path: Path) -> None:
    cache = TensorCache(tmp_path, key="m")
    assert cache.get("a") is None
    assert "a" not in cache
    assert len(cache) == 0
    cache.put("a", torch.ones(2))
    assert "a" in cache
    assert len(cache) == 1
    assert found(cache, "a")["tensor"].equal(torch.ones(2))


def test_a_kept_value_does_not_follow_later_changes_of_the_original(tmp_path: Path) -> None:
    cache = TensorCache(tmp_path, key="m")
    value = torch.zeros(3)
    cache.put("a", value)
    value += 1
    assert found(cache, "a")["tensor"].equal(torch.zeros(3))


def test_other_models_do_not_share_values(tmp_path: Path) -> None:
    fill(TensorCache(tmp_path, key="model-1"))
    assert TensorCache(tmp_path, key="model-2").get("c0") is None


@pytest.mark.parametrize("key", ["", "..", ".", "a/b", "/abs", "a\x00", "ü"])
def test_a_key_is_a_plain_name(tmp_path: Path, key: str) -> None:
    with pytest.raises(ValueError, match="plain name"):
        TensorCache(tmp_path, key=key)


@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.5, 0.99])
@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_a_damaged_shard_is_dropped_with_a_warning_and_computed_again(
    tmp_path: Path, damage: str, fraction: float
) -> None:
    cache = TensorCache(tmp_path, key="m")
    fill(cache, prefix="bad")
    (shard,) = cache.folder.glob("*.safetensors")
    data = bytearray(shard.read_bytes())
    fill(cache, prefix="good")
    if damage == "flip":
        data[int(fraction * len(data))] ^= 1
    elif damage == "cut":
        del data[int(fraction * len(data)) :]
    shard.unlink() if damage == "remove" else shard.write_bytes(bytes(data))

    again = TensorCache(tmp_path, key="m")
    with pytest.warns(UserWarning, match="damaged"):
        assert again.get("bad0") is None
    assert all(again.get(f"bad{i}") is None for i in range(3))
    assert all(again.get(f"good{i}") is not None for i in range(3))
    expected = fill(again, prefix="bad")
    fresh = TensorCache(tmp_path, key="m")
    assert all(found(fresh, content)["states"].equal(tensor) for content, tensor in expected.items())


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", '{"format": 1}', '{"format": 9, "entries": {}}', '{"format": 1, "entries": {"a": 3}}'],
)
def test_a_damaged_index_is_dropped_with_a_warning(tmp_path: Path, text: str) -> None:
    cache = TensorCache(tmp_path, key="m")
    fill(cache)
    (index,) = cache.folder.glob("*.json")
    index.write_text(text)
    with pytest.warns(UserWarning, match="damaged"):
        again = TensorCache(tmp_path, key="m")
    assert len(again) == 0
    assert not list(again.folder.iterdir())


@pytest.mark.parametrize("failing", ["save_file", "_sha256", "replace"])
def test_a_full_disk_leaves_nothing_half_written_and_flush_can_be_tried_again(
    tmp_path: Path, failing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = TensorCache(tmp_path, key="m")
    cache.put("a", torch.ones(3))

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os if failing == "replace" else tensor_cache, failing, fail)
        with pytest.raises(ValueError, match="No space left"):
            cache.flush()
    assert not list(cache.folder.iterdir())
    assert cache.get("a") is not None
    cache.flush()
    assert TensorCache(tmp_path, key="m").get("a") is not None


def test_a_full_disk_is_told_once_and_takes_no_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensor_cache, "SHARD_BYTES", 1000)
    cache = TensorCache(tmp_path, key="m", memory_bytes=2000)
    with monkeypatch.context() as patch:
        patch.setattr(tensor_cache, "save_file", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left")))
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            for number in range(200):
                cache.put(f"c{number}", torch.full((100,), float(number)))
                assert len(cache._values) <= 6
                assert len(cache._unsaved) <= 6
        assert ["No space left" in str(one.message) for one in told] == [True]
    assert found(cache, "c199")["tensor"].equal(torch.full((100,), 199.0))
    cache.flush()
    assert found(TensorCache(tmp_path, key="m"), "c199")["tensor"].equal(torch.full((100,), 199.0))


def test_large_amounts_reach_the_disk_by_themselves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensor_cache, "SHARD_BYTES", 1000)
    cache = TensorCache(tmp_path, key="m")
    for i in range(10):
        cache.put(f"c{i}", torch.full((100,), float(i)))
    assert len(list(cache.folder.glob("*.safetensors"))) == 3
    assert found(TensorCache(tmp_path, key="m"), "c8")["tensor"].equal(torch.full((100,), 8.0))


def test_processes_write_shards_of_their_own_and_see_those_of_others(tmp_path: Path) -> None:
    script = (
        "import os, sys, torch; from diptych.data.tensor_cache import TensorCache\n"
        "child = os.fork(); i = int(child == 0)\n"
        "cache = TensorCache(sys.argv[1], key='m')\n"
        "[(cache.put(f'c{i}-{j}', torch.full((5,), float(i * 10 + j))), cache.flush()) for j in range(4)]\n"
        "sys.exit(os.waitstatus_to_exitcode(os.wait()[1]) if child else 0)\n"
    )
    mine = TensorCache(tmp_path, key="m")
    mine.put("c9-0", torch.full((5,), 90.0))
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=True)
    mine.flush()
    assert mine.get("c0-0") is None
    mine.refresh()
    for i, j in [(i, j) for i in range(2) for j in range(4)] + [(9, 0)]:
        assert found(mine, f"c{i}-{j}")["tensor"].equal(torch.full((5,), float(i * 10 + j)))


def test_orphans_of_a_killed_process_go_after_a_day_and_not_before(tmp_path: Path) -> None:
    cache = TensorCache(tmp_path, key="m")
    fill(cache)
    old, new = cache.folder / "1-a-0.safetensors", cache.folder / "2-b-0.shard-tmp"
    for path in (old, new):
        path.write_bytes(b"half")
    os.utime(old, (time.time() - 2 * 86400, time.time() - 2 * 86400))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = TensorCache(tmp_path, key="m")
    assert not old.exists()
    assert new.exists()
    assert again.get("c0") is not None


def test_a_second_get_costs_a_dictionary_look_up(tmp_path: Path) -> None:
    cache = TensorCache(tmp_path, key="m")
    cache.put("a", torch.ones(3))
    first = cache.get("a")
    assert cache.get("a") is first
    started = time.perf_counter()
    for _ in range(10_000):
        cache.get("a")
    assert time.perf_counter() - started < 0.5


def test_the_index_is_plain_json(tmp_path: Path) -> None:
    cache = TensorCache(tmp_path, key="m")
    fill(cache, num=2)
    (index,) = cache.folder.glob("*.json")
    assert set(json.loads(index.read_text())["entries"]) == {"c0", "c1"}


def test_one_entry_is_read_without_the_others_of_its_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensor_cache, "SHARDS_OPEN", 2)
    written = {name: fill(TensorCache(tmp_path, key="m"), num=20, prefix=name) for name in "abc"}
    cache = TensorCache(tmp_path, key="m")
    for name in "abcab":
        assert found(cache, f"{name}7")["states"].equal(written[name][f"{name}7"])
        assert len(cache._opened) <= 2
    assert set(cache._values) == {"a7", "b7", "c7"}


def test_a_shard_whose_index_names_the_tensors_of_each_entry_is_read_too(tmp_path: Path) -> None:
    """As all were written once, and are where entries differ in their names."""
    cache = TensorCache(tmp_path, key="m")
    cache.put("a", {"one": torch.ones(2), "two": torch.zeros(3)})
    cache.put("b\n", {"one": torch.full((2,), 5.0)})
    cache.flush()
    (index,) = cache.folder.glob("*.json")
    assert json.loads(index.read_text())["format"] == 1
    again = TensorCache(tmp_path, key="m")
    assert found(again, "a")["two"].equal(torch.zeros(3))
    assert found(again, "b\n")["one"].equal(torch.full((2,), 5.0))


def test_many_small_entries_make_more_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensor_cache, "SHARD_ENTRIES", 4)
    cache = TensorCache(tmp_path, key="m")
    for number in range(11):
        cache.put(f"c{number}", torch.ones(1))
    assert len(list(cache.folder.glob("*.safetensors"))) == 2


def test_a_cache_with_a_bound_forgets_what_is_on_disk_and_finds_it_again(tmp_path: Path) -> None:
    cache = TensorCache(tmp_path, key="m", memory_bytes=1000)
    for number in range(20):
        cache.put(f"c{number}", torch.full((100,), float(number)))
        cache.flush()
    assert len(cache._values) <= 4
    assert len(cache) == 20
    for number in range(20):
        found = cache.get(f"c{number}")
        assert found is not None
        assert torch.equal(found["tensor"], torch.full((100,), float(number)))
        assert len(cache._values) <= 4


def test_files_never_exceed_the_bound_and_what_is_kept_stays_right(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensor_cache, "SHARD_BYTES", 1000)
    cache = TensorCache(tmp_path, key="m", disk_bytes=6000)
    for number in range(40):
        cache.put(f"c{number}", torch.full((100,), float(number)))
        assert sum(path.stat().st_size for path in cache.folder.iterdir()) <= 6000
    cache.flush()
    assert cache.is_full
    again = TensorCache(tmp_path, key="m", disk_bytes=6000)
    assert 0 < len(again) < 40
    for number in range(len(again)):
        assert found(again, f"c{number}")["tensor"].equal(torch.full((100,), float(number)))
    assert again.get("c39") is None


def test_what_another_process_is_writing_counts_to_the_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both see room, both write: whoever finds the folder too full then withdraws."""
    cache = TensorCache(tmp_path, key="m", disk_bytes=2000)
    cache.put("a", torch.zeros(100))
    written = tensor_cache.save_file

    def write_beside_another(*arguments: Any) -> None:
        written(*arguments)
        (cache.folder / "other.shard-tmp").write_bytes(bytes(1500))

    monkeypatch.setattr(tensor_cache, "save_file", write_beside_another)
    cache.flush()
    assert cache.is_full
    assert [path.name for path in cache.folder.iterdir()] == ["other.shard-tmp"]

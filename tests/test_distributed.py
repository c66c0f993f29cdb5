"""Laws of a single process, and of the choice of number format. Several processes: train/test_sharding.py."""

from __future__ import annotations

import math

import pytest
import torch

from diptych import distributed


def test_one_process_is_a_world_of_one() -> None:
    with distributed.process_group():
        assert (distributed.rank(), distributed.world_size()) == (0, 1)
        assert distributed.is_main()
        assert not distributed.is_distributed()
        assert distributed.sum_floats([1.5, -2.0]) == [1.5, -2.0]
        assert math.isnan(distributed.sum_floats([math.nan])[0])
        assert distributed.gather_bytes(b"ab") == [b"ab"]
        tensor = torch.ones(2)
        assert distributed.broadcast_(tensor) is tensor
        distributed.barrier()


def test_what_fails_in_the_main_process_is_raised() -> None:
    def fail(error: Exception) -> None:
        raise error

    with pytest.raises(KeyError, match="x"):
        distributed.on_main(lambda: fail(KeyError("x")), what="trying")
    with pytest.raises(ValueError, match=r"writing a.png failed: .*No space left.*run again"):
        distributed.on_main(lambda: fail(OSError(28, "No space left on device")), what="writing a.png")
    distributed.on_main(lambda: None, what="nothing")


@pytest.mark.parametrize(
    ("features", "expected"),
    [
        ({"avx512_f", "avx512_bf16"}, torch.bfloat16),
        ({"amx_bf16"}, torch.bfloat16),
        ({"avx512_f", "avx2"}, torch.float32),
        (set(), torch.float32),
    ],
)
def test_auto_is_bfloat16_only_where_it_is_fast(
    monkeypatch: pytest.MonkeyPatch, features: set[str], expected: torch.dtype
) -> None:
    capabilities = {"avx512_bf16": False, "cpu_name": "a CPU", "num_sockets": 1, **dict.fromkeys(features, True)}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    cpu = torch.device("cpu")
    assert distributed.resolve_dtype("auto", cpu) == expected
    assert distributed.resolve_dtype("float32", cpu) == torch.float32
    assert distributed.resolve_dtype("bfloat16", cpu) == torch.bfloat16


def test_without_torchs_word_the_kernels_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert distributed.resolve_dtype("auto", torch.device("cpu")) in (torch.float32, torch.bfloat16)

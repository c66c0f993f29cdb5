"""What this process runs on: its rank among others, its device, and the number format that the device is fast in.

Every function works, and costs nothing, in a single process. Several processes are started by torchrun.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh


def is_distributed() -> bool:
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    return dist.get_rank() if is_distributed() else 0


def world_size() -> int:
    return dist.get_world_size() if is_distributed() else 1


def is_main() -> bool:
    """True in the one process that writes files and prints."""
    return rank() == 0


def compute_device() -> torch.device:
    """The device of this process: under CUDA the GPU of its local rank, otherwise the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return torch.device("cpu")


def free_memory() -> None:
    """What nobody holds any more is free at once, on the GPU too: models lie in cycles, which wait for a collection."""
    gc.collect()
    torch.cuda.empty_cache()  # does nothing where CUDA was not used


@contextmanager
def main_first() -> Iterator[None]:
    """Rank 0 runs the body before the others do, so that what it fetches and caches is there for them."""
    if is_distributed() and not is_main():
        dist.barrier()
    try:
        yield
    finally:
        if is_distributed() and is_main():
            dist.barrier()


@contextmanager
def process_group() -> Iterator[None]:
    """Joins the processes that torchrun started (gloo on CPU, NCCL on CUDA) and leaves them at the end.

    Without torchrun, in a world of one, or inside another `process_group()`, it does nothing.
    """
    if is_distributed() or int(os.environ.get("WORLD_SIZE", "1")) <= 1:
        yield
        return
    device = compute_device()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


def data_mesh() -> DeviceMesh:
    """All processes in one row; samples and trained parameters are divided among them."""
    return init_device_mesh(compute_device().type, (world_size(),), mesh_dim_names=("data",))


def sum_floats(values: Sequence[float]) -> list[float]:
    """Sums each value over all ranks, in float64; every rank gets the same result. NaN and infinity stay visible."""
    if world_size() == 1 or not values:
        return [float(value) for value in values]
    total = torch.tensor(values, dtype=torch.float64)
    dist.all_reduce(total)
    return total.tolist()


def broadcast_(tensor: Tensor) -> Tensor:
    """Overwrites the tensor on every rank with rank 0's."""
    if world_size() > 1:
        dist.broadcast(tensor, src=0)
    return tensor


def gather_bytes(data: bytes) -> list[bytes]:
    """The bytes of every rank, in the order of ranks, on every rank; lengths may differ."""
    if world_size() == 1:
        return [data]
    lengths = [torch.zeros(1, dtype=torch.long) for _ in range(world_size())]
    dist.all_gather(lengths, torch.tensor([len(data)]))
    longest = max(int(length) for length in lengths)
    padded = torch.frombuffer(bytearray(data.ljust(longest, b"\0")), dtype=torch.uint8)
    parts = [torch.empty(longest, dtype=torch.uint8) for _ in lengths]
    dist.all_gather(parts, padded)
    return [part.numpy().tobytes()[: int(length)] for part, length in zip(parts, lengths, strict=True)]


def barrier() -> None:
    """Waits until every rank has come here."""
    sum_floats([0.0])


def on_main(action: Callable[[], None], *, what: str) -> None:
    """Runs an action in rank 0 alone. If it fails every rank raises, so that none waits for one that is gone.

    Raises what the action raised; an OSError becomes a ValueError that says what could not be done.
    """
    failure: Exception | None = None
    if is_main():
        try:
            action()
        except OSError as error:
            failure = ValueError(f"{what} failed: {error}; free space or mend the disk and run again")
            failure.__cause__ = error
        except Exception as error:  # noqa: BLE001 - every rank must hear of it
            failure = error
    if sum_floats([float(failure is not None)])[0]:
        raise failure or ValueError(f"{what} failed in rank 0; see its message")


def resolve_dtype(name: str, device: torch.device) -> torch.dtype:
    """The format that matrix products run in: `auto` is bfloat16 where the hardware multiplies it, else float32.

    On a CPU without AVX512-BF16 or AMX, bfloat16 is emulated and several times slower than float32.
    """
    if name != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16}[name]
    fast = torch.cuda.is_bf16_supported() if device.type == "cuda" else bool(_cpu_features() & _BF16_FEATURES)
    return torch.bfloat16 if fast else torch.float32


_BF16_FEATURES = frozenset({"avx512_bf16", "amx_bf16"})


def _cpu_features() -> frozenset[str]:
    """Names of the CPU's instruction sets, by torch where it can tell, else by the kernel."""
    probe = getattr(torch.cpu, "get_capabilities", None)
    if probe is not None:
        return frozenset(name for name, present in probe().items() if present is True)
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux: nothing known, so nothing assumed
        return frozenset()
    return frozenset(word for line in lines if line.startswith("flags") for word in line.split())

"""How ratios are measured: both sides interleaved in one process, the median of paired ratios, and FLOPs counted."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode


@dataclass(frozen=True)
class Ratio:
    """`median` of slow / fast over `pairs`, with the quickest run of each side in seconds."""

    median: float
    low: float
    high: float
    slow_seconds: float
    fast_seconds: float
    pairs: int


def measure_ratio(
    slow: Callable[[], Any],
    fast: Callable[[], Any],
    *,
    pairs: int = 9,
    warm: int = 2,
    clock: Callable[[], float] = time.perf_counter,
) -> Ratio:
    """Runs slow and fast in turn, the order swapped in every second pair, so that drift and load meet both alike.

    clock: `time.process_time` on a machine that others load; then say so beside the figure.
    """
    for _ in range(warm):
        slow()
        fast()
    times: list[tuple[float, float]] = []
    for number in range(pairs):
        if number % 2:
            second, first = _time(fast, clock), _time(slow, clock)
        else:
            first, second = _time(slow, clock), _time(fast, clock)
        times.append((first, second))
    ratios = sorted(a / b for a, b in times)
    return Ratio(
        median=statistics.median(ratios),
        low=ratios[len(ratios) // 4],
        high=ratios[-1 - len(ratios) // 4],
        slow_seconds=min(a for a, _ in times),
        fast_seconds=min(b for _, b in times),
        pairs=pairs,
    )


def count_flops(run: Callable[[], Any]) -> int:
    """Multiplications and additions of matrix products and of attention, whole masks included."""
    with FlopCounterMode(display=False, custom_mapping=_CPU_ATTENTION) as counter:
        run()
    return counter.get_total_flops()


def print_table(title: str, columns: list[str], rows: list[list[str]]) -> None:
    """One Markdown table, with the machine's load when it was measured."""
    load = os.getloadavg()[0]
    print(f"\n{title} (load before and during: {load:.1f} on {os.cpu_count()} cores)\n")
    print("| " + " | ".join(columns) + " |")
    print("|" + "---|" * len(columns))
    for row in rows:
        print("| " + " | ".join(row) + " |")


def _attention_flops(query: Any, key: Any, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
    batch, heads, length, width = query
    return 4 * batch * heads * length * key[2] * width


def _attention_backward_flops(grad: Any, query: Any, key: Any, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
    return _attention_flops(query, key) * 5 // 2


# torch's counter does not know the CPU's fused attention.
_CPU_ATTENTION: dict[Any, Any] = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward_flops,
}


def _time(run: Callable[[], Any], clock: Callable[[], float]) -> float:
    start = clock()
    run()
    return clock() - start

"""P4, P5: what the LM head costs in training: whole logits against chunks, every position against supervised ones.

SmolLM2's head (49,152 words, width 576), float32. Memory, of 8,192 tokens: the peak of a process that does nothing
else, above what it held before; each side in a process of its own. Time: of 2,048 tokens. The losses of both sides, and
their gradients, are the same numbers.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from diptych.nn.chunked_loss import CHUNK_SIZE
from diptych.nn.linear_head_loss import linear_head_cross_entropy
from paired import measure_ratio, print_table

VOCABULARY, WIDTH, SUPERVISED = 49152, 576, 0.25
TOKENS, TIMED_TOKENS = 8192, 2048
IGNORE = -100
SIDES = ("whole", "chunked")


def build(*, share: float, frozen: bool, num: int = TIMED_TOKENS) -> tuple[dict[str, Callable[[], Tensor]], nn.Linear]:
    """One step of each side, by the names of SIDES: loss and gradients of states and head. `share`: of positions that
    are supervised; the whole side computes logits at all of them."""
    torch.manual_seed(0)
    head = nn.Linear(WIDTH, VOCABULARY, bias=False).requires_grad_(not frozen)
    states = torch.randn(num, WIDTH, requires_grad=True)
    labels = torch.randint(VOCABULARY, (num,))
    kept = torch.randperm(num)[: int(share * num)].sort().values
    masked = torch.full_like(labels, IGNORE).index_copy(0, kept, labels[kept])

    def whole() -> Tensor:
        return cross_entropy(head(states).float(), masked, ignore_index=IGNORE, reduction="sum")

    def chunked() -> Tensor:
        return linear_head_cross_entropy(states[kept], labels[kept], head.weight)

    def step(loss_of: Callable[[], Tensor]) -> Tensor:
        states.grad = head.weight.grad = None
        loss = loss_of()
        loss.backward()
        return torch.stack([loss.detach(), states.grad.norm()])  # type: ignore[union-attr]

    return {"whole": lambda: step(whole), "chunked": lambda: step(chunked)}, head


def check(sides: dict[str, Callable[[], Tensor]]) -> None:
    a, b = sides["whole"](), sides["chunked"]()
    if not torch.allclose(a, b, rtol=1e-4):
        raise ValueError(f"whole logits give loss and gradient {a.tolist()}, chunks {b.tolist()}; they must be equal")


def peak_bytes(side: str, *, frozen: bool) -> int:
    """Measured in a process of its own."""
    command = [sys.executable, __file__, "--peak", side, *(["--frozen"] if frozen else [])]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return int(done.stdout.split()[-1])


def print_peak(side: str, *, frozen: bool) -> None:
    torch.set_num_threads(2)
    sides, head = build(share=1.0, frozen=frozen, num=TOKENS)
    head(torch.randn(2, WIDTH))  # threads and libraries are there before it counts
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here on
    before = resident_peak()
    sides[side]()
    print(resident_peak() - before)


def resident_peak() -> int:
    """Bytes; Linux's own count (getrusage would begin with the parent's)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("VmHWM")).split()[1])


def measure(*, pairs: int) -> list[list[str]]:
    rows = []
    for frozen in (False, True):
        sides, _ = build(share=1.0, frozen=frozen)
        check(sides)
        speed = measure_ratio(sides["whole"], sides["chunked"], pairs=pairs, warm=1)
        memory = [peak_bytes(side, frozen=frozen) for side in SIDES]
        what = "frozen head" if frozen else "trained head"
        rows.append(
            [
                f"P4 peak memory, whole / chunks of {CHUNK_SIZE}, {TOKENS} tokens, {what}",
                ">= 8 at >= 0.9 speed",
                f"{memory[0] / memory[1]:.1f} at {speed.median:.2f} ({speed.low:.2f}-{speed.high:.2f}) speed",
                f"{memory[0] / 2**20:.0f} / {memory[1] / 2**20:.0f} MiB",
            ]
        )
    sides, _ = build(share=SUPERVISED, frozen=False)
    check(sides)
    ratio = measure_ratio(sides["whole"], sides["chunked"], pairs=pairs, warm=1)
    rows.append(
        [
            f"P5 time, head at every / at supervised positions ({SUPERVISED:.0%})",
            ">= 3.5",
            f"{ratio.median:.2f} ({ratio.low:.2f}-{ratio.high:.2f})",
            f"{ratio.slow_seconds:.2f} / {ratio.fast_seconds:.2f} s",
        ]
    )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--peak", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--frozen", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peak:
        print_peak(options.peak, frozen=options.frozen)
        return
    torch.set_num_threads(2)
    rows = measure(pairs=options.pairs)
    print_table("LM head, two threads", ["what", "goal", "measured, median (quartiles)", "each side"], rows)


if __name__ == "__main__":
    main()

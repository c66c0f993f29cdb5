"""`diptych data encode`: what of a recipe's data no training changes, computed by any number of processes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from diptych import distributed
from diptych.config import Recipe
from diptych.data.packing import Pick
from diptych.models.method import Method
from diptych.models.registry import build_method

AT_ONCE = 64


def encode(recipe: Recipe, *, progress: Any) -> None:
    """Encodes every sample once; what is in the cache already is passed by. Prints how many, and what was skipped."""
    with distributed.process_group():
        with distributed.main_first():
            method = build_method(recipe)
        skipped = encode_share(method, progress=progress)
        total = sum(method.num_samples())
        num_skipped = int(distributed.sum_floats([float(skipped.total())])[0])
        if distributed.is_main():
            kinds = f" ({', '.join(f'{kind}: {count}' for kind, count in skipped.most_common())})" if skipped else ""
            print(f"{total - num_skipped} samples are encoded, {num_skipped} skipped{kinds}")


def encode_share(method: Method, *, progress: Any = lambda what, done, total: None) -> Counter[str]:
    """This rank's share of all samples, every so-manieth of them. Gives what was skipped, by kind."""
    everything: list[Pick] = []
    skipped: Counter[str] = Counter()
    counts = method.num_samples()
    total, seen = sum(counts), 0
    for source, count in enumerate(counts):
        for index in range(distributed.rank(), count, distributed.world_size()):
            everything.append((index, source, index))
            if len(everything) == AT_ONCE:
                _encode(method, everything, skipped)
                everything.clear()
            seen += distributed.world_size()
            if seen % (AT_ONCE * 4) < distributed.world_size():
                progress("encoding", min(seen, total), total)
    if everything:
        _encode(method, everything, skipped)
    progress("encoding", total, total)
    method.flush()
    return skipped


def _encode(method: Method, picks: Sequence[Pick], skipped: Counter[str]) -> None:
    try:
        method.encode(picks)
    except ValueError:
        for pick in picks:
            try:
                method.encode([pick])
            except ValueError as error:
                skipped[str(getattr(error, "kind", "unusable"))] += 1

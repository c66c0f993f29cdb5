"""Two runs on the same examples: the paired bootstrap of their difference, and what differs in how they were made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diptych.evaluate.bootstrap import Estimate, estimate_mean
from diptych.evaluate.result_files import STAMP, read_json, read_rows
from diptych.evaluate.stamp import stamp_differences
from diptych.evaluate.suite import Row

FEW = 10
ROUNDING = 1e-6
"""Of floats that batches of another size add up otherwise."""
_NUM_TOLD = 3


@dataclass(frozen=True)
class Difference:
    """Of one metric, over the examples that have it in both runs: both means, and that of `other - one`."""

    suite: str
    metric: str
    kind: str
    one: float
    other: float
    difference: Estimate

    @property
    def is_clear(self) -> bool:
        """Whether the 95% interval leaves out 0; of fewer than FEW pairs a bootstrap knows too little to say."""
        low, high = self.difference.interval
        return self.difference.num >= FEW and (low > ROUNDING or high < -ROUNDING)

    def as_dict(self) -> dict[str, Any]:
        return {
            "suite": self.suite,
            "metric": self.metric,
            "kind": self.kind or None,
            "one": self.one,
            "other": self.other,
            "difference": self.difference.mean,
            "interval_95": list(self.difference.interval),
            "n": self.difference.num,
        }


@dataclass(frozen=True)
class Comparison:
    """`stamp_differences`: in words. `not_shared`: suites that only one of the runs has."""

    differences: list[Difference]
    stamp_differences: list[str]
    not_shared: list[str]


def compare_runs(one: Path, other: Path) -> Comparison:
    """Pairs two folders of `diptych eval` by the ids of their examples, suite by suite, overall and by kind.

    Raises ValueError for a folder without a run, a run that is not complete, no suite in common, and examples that
    differ: then the difference would be that of the questions.
    """
    stamps = [read_json(folder / STAMP) for folder in (one, other)]
    names = [set(stamp["suites"]) for stamp in stamps]
    if not (shared := sorted(names[0] & names[1])):
        told = " and ".join(", ".join(sorted(own)) for own in names)
        raise ValueError(f"{one} and {other} share no suite ({told}); evaluate both on the same")
    rows = [{(row.suite, row.id): row for row in read_rows(folder)} for folder in (one, other)]
    differences: list[Difference] = []
    for suite in shared:
        pairs = _pair(suite, (one, other), stamps, rows)
        differences += _compare(suite, "", pairs)
        for kind in sorted({row.kind for row, _ in pairs} - {""}):
            differences += _compare(suite, kind, [pair for pair in pairs if pair[0].kind == kind])
    told = stamp_differences(stamps[0], stamps[1], ignored=frozenset({"suites"}))
    judges = [{name: stamp["suites"][name].get("judges", {}) for name in shared} for stamp in stamps]
    told += [f"judge {line}" for line in stamp_differences(*judges)]
    return Comparison(differences, told, sorted(names[0] ^ names[1]))


def _pair(
    suite: str, folders: tuple[Path, Path], stamps: Sequence[dict[str, Any]], rows: Sequence[dict[Any, Row]]
) -> list[tuple[Row, Row]]:
    own = [{id: row for (name, id), row in of_run.items() if name == suite} for of_run in rows]
    for folder, stamp, found in zip(folders, stamps, own, strict=True):
        if len(found) != (wanted := stamp["suites"][suite]["num_examples"]):
            raise ValueError(
                f"{folder} holds {len(found)} of {wanted} examples of {suite}; call diptych eval on it again to go on"
            )
    only = [sorted(own[0].keys() - own[1].keys()), sorted(own[1].keys() - own[0].keys())]
    if any(only):
        told = " and ".join(
            f"{len(ids)} only in {folder} ({', '.join(ids[:_NUM_TOLD])}{', ...' if len(ids) > _NUM_TOLD else ''})"
            for folder, ids in zip(folders, only, strict=True)
            if ids
        )
        raise ValueError(f"the examples of {suite} differ: {told}; evaluate both with the same --data and --limit")
    same = ["version", "whole_set_hash"]  # of the whole set, since answers are also judged by examples not asked
    if stamps[0].get("shuffle_images") == stamps[1].get("shuffle_images"):
        same.append("prompt_set_hash")
    asked = [{key: stamp["suites"][suite].get(key) for key in same} for stamp in stamps]
    if told := stamp_differences(*asked):
        raise ValueError(
            f"the examples of {suite} have the same ids and yet are asked or judged otherwise ({'; '.join(told)}); "
            "evaluate both with one version of diptych, on the same --data"
        )
    return [(own[0][id], own[1][id]) for id in sorted(own[0])]


def _compare(suite: str, kind: str, pairs: Sequence[tuple[Row, Row]]) -> list[Difference]:
    found = []
    for metric in dict.fromkeys(name for row, _ in pairs for name in row.scores):
        values = [(a.scores[metric], b.scores[metric]) for a, b in pairs if metric in a.scores and metric in b.scores]
        if values:
            means = [sum(column) / len(values) for column in zip(*values, strict=True)]
            groups = [a.inputs or a.id for a, b in pairs if metric in a.scores and metric in b.scores]
            estimate = estimate_mean([b - a for a, b in values], groups=groups)
            found.append(Difference(suite, metric, kind, means[0], means[1], estimate))
    return found

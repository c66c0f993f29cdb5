"""The scores of a folder of results, read back: of all its suites, whichever call asked them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diptych.evaluate.result_files import SCORES, read_json
from diptych.evaluate.suite import Baselines, Metric, MetricScore


@dataclass(frozen=True)
class ScoredSuite:
    """What scores.json tells of a suite. `num`: of examples; the first of `metrics` is the headline; a metric that says
    nothing of these examples has no score."""

    name: str
    words: str
    num: int
    metrics: tuple[Metric, ...]
    scores: Mapping[str, MetricScore]
    by_kind: Mapping[str, Mapping[str, MetricScore]]

    @property
    def headline(self) -> Metric:
        return self.metrics[0]

    def scored(self) -> list[tuple[Metric, MetricScore]]:
        """Over all examples, in the order of the metrics."""
        return [(metric, self.scores[metric.name]) for metric in self.metrics if metric.name in self.scores]


def read_scored_suites(folder: Path) -> list[ScoredSuite]:
    """By name. Raises ValueError for scores that are missing, damaged, or not of this version of Diptych."""
    told = read_json(folder / SCORES)
    try:
        return [_read_suite(name, entry) for name, entry in sorted(told["suites"].items())]
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{folder / SCORES} is not as diptych eval writes it ({error!r}); evaluate again") from error


def _read_suite(name: str, entry: Mapping[str, Any]) -> ScoredSuite:
    return ScoredSuite(
        name=name,
        words=entry["words"],
        num=entry["n"],
        metrics=tuple(Metric(**metric) for metric in entry["metrics"]),
        scores=_read_scores(entry["scores"]),
        by_kind={kind: _read_scores(scores) for kind, scores in entry["kinds"].items()},
    )


def _read_scores(entries: Mapping[str, Mapping[str, Any]]) -> dict[str, MetricScore]:
    return {
        name: MetricScore(
            entry["mean"],
            None if entry["interval_95"] is None else tuple(entry["interval_95"]),
            entry["n"],
            Baselines(entry["majority"], entry["chance"]),
        )
        for name, entry in entries.items()
    }

"""The page of an evaluation: scores with intervals and baselines, answers and drawings beside what is right, and the
worst cases. Made of the rows on the disk; self-contained."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from diptych.data.images import open_image
from diptych.evaluate.charts import Interval, Line, draw_chart, draw_intervals
from diptych.evaluate.report_page import (
    badge,
    cards,
    definition_list,
    details,
    image_pair,
    image_tag,
    page,
    paragraph,
    section,
    table,
    text,
)
from diptych.evaluate.stamp import flatten
from diptych.evaluate.suite import Example, Metric, MetricScore, Row, SuiteResult

NUM_SHOWN, NUM_WORST = 32, 24
SHOWN_SIZE = 160
"""Pixels of the longer side of an image on the page; files in the folder are whole."""


def render_suites(results: Sequence[SuiteResult], stamp: Mapping[str, Any], folder: Path) -> str:
    """The page as HTML. `folder`: where the rows' images lie."""
    sections = [section("Scores", _scores(results))]
    for result in results:
        sections.append(section(result.suite.name, _suite(result, folder)))
    recipe = stamp.get("recipe", {})
    rest = {key: value for key, value in stamp.items() if key != "recipe"}
    settings = definition_list({key: str(value) for key, value in flatten(recipe).items()}, is_code=True)
    made = definition_list({key: str(value) for key, value in flatten(rest).items()}, is_code=True)
    sections.append(section("Made with", made + details("The whole recipe of the morph", settings)))
    name, names = stamp.get("morph", "a morph"), ", ".join(result.suite.name for result in results)
    return page(f"Evaluation of {name}", f"{names}; {sum(len(r.rows) for r in results):,} examples.", "".join(sections))


def format_value(value: float | None, metric: Metric) -> str:
    """As the metric is told: per cent, decibels, or a plain number."""
    if value is None:
        return ""
    if metric.unit == "share":
        return f"{100 * value:.1f}%"
    return f"{value:.2f} dB" if metric.unit == "dB" else f"{value:.4g}"


def format_interval(score: MetricScore, metric: Metric) -> str:
    return "" if score.interval is None else " to ".join(format_value(edge, metric) for edge in score.interval)


def _scores(results: Sequence[SuiteResult]) -> str:
    rows = []
    for result in results:
        for number, metric in enumerate(m for m in result.suite.metrics if m.name in result.scores):
            name = f"{result.suite.name}: {metric.words}"
            rows.append(
                _score_row(f"<strong>{text(name)}</strong>" if not number else text(name), result.scores, metric)
            )
    told = (
        "Interval: 95%, bootstrap over examples. Majority: always the commonest answer to a kind of question. Chance: "
        "a guess among its answers. Neither is given where there is no such thing."
    )
    return _score_table(rows) + paragraph(told)


def _score_table(rows: Sequence[Sequence[str]]) -> str:
    return table(["", "mean", "95% interval", "n", "majority", "chance"], rows)


def _score_row(name: str, scores: Mapping[str, MetricScore], metric: Metric) -> list[str]:
    score = scores[metric.name]
    return [
        name,
        f'<span class="score">{format_value(score.mean, metric)}</span>',
        format_interval(score, metric),
        f"{score.num:,}",
        format_value(score.baselines.majority, metric),
        format_value(score.baselines.chance, metric),
    ]


def _suite(result: SuiteResult, folder: Path) -> str:
    headline = result.suite.metrics[0]
    parts = [paragraph(result.suite.words)]
    if any(result.by_kind.values()):
        parts.append(_by_kind(result))
    if charts := "".join(_spread(result, metric) for metric in result.suite.metrics if metric.unit != "share"):
        parts.append(f'<div class="charts">{charts}</div>')
    pairs = list(zip(result.examples, result.rows, strict=True))
    if any(row.images or example.images for example, row in pairs):
        shown = sorted(pairs, key=lambda pair: hashlib.sha256(pair[0].id.encode()).digest())[:NUM_SHOWN]
        parts.append(f"<h3>Some, by chance</h3>{_cards(shown, headline, folder)}")
    if worst := _worst(pairs, headline):
        parts.append(f"<h3>Worst cases</h3>{_cards(worst, headline, folder)}")
    return "".join(parts)


def _by_kind(result: SuiteResult) -> str:
    kinds = {kind: scores for kind, scores in result.by_kind.items() if scores}
    headline = result.suite.metrics[0]
    rows = [
        _score_row(text(f"{kind}: {metric.words}"), scores, metric)
        for kind, scores in kinds.items()
        for metric in result.suite.metrics
        if metric.name in scores
    ]
    told = {"all": result.scores} | kinds
    intervals = [
        Interval(kind, score.mean, score.interval or (score.mean, score.mean), score.baselines.majority)
        for kind, scores in told.items()
        if (score := scores.get(headline.name)) is not None
    ]
    bounds = (0.0, 1.0) if headline.unit == "share" else None
    label = f"{headline.words}, 95% interval; the tick is the majority baseline"
    chart = draw_intervals(intervals, title=f"{result.suite.name} by kind", x_label=label, bounds=bounds)
    return f'<div class="charts"><figure>{chart}</figure></div>{_score_table(rows)}'


def _spread(result: SuiteResult, metric: Metric) -> str:
    """How a metric that is no share lies over the examples: sorted values."""
    values = sorted(row.scores[metric.name] for row in result.rows if metric.name in row.scores)
    if len(values) < 2 or values[0] == values[-1]:
        return ""
    points = [(100 * place / (len(values) - 1), value) for place, value in enumerate(values)]
    chart = draw_chart(
        [Line(metric.words, points)],
        title=f"{metric.words}, sorted",
        x_label="per cent of the examples",
        y_label=metric.unit or metric.words,
    )
    return f"<figure><figcaption>{text(metric.words)}, sorted</figcaption>{chart}</figure>"


def _worst(pairs: Sequence[tuple[Example, Row]], metric: Metric) -> list[tuple[Example, Row]]:
    """Those below the best score, worst first; among equals, kinds take turns."""
    sign = 1 if metric.higher_is_better else -1
    scored = [pair for pair in pairs if metric.name in pair[1].scores]
    best = max((sign * row.scores[metric.name] for _, row in scored), default=0)
    best = max(best, 1.0) if metric.unit == "share" else best
    turns: dict[tuple[float, str], int] = {}
    ranked = []
    for example, row in sorted(scored, key=lambda pair: hashlib.sha256(pair[0].id.encode()).digest()):
        value = sign * row.scores[metric.name]
        if value < best:
            turn = turns[value, row.kind] = turns.get((value, row.kind), 0) + 1
            ranked.append((value, turn, row.kind, row.id, (example, row)))
    return [pair for *_, pair in sorted(ranked, key=lambda entry: entry[:4])[:NUM_WORST]]


def _cards(pairs: Sequence[tuple[Example, Row]], metric: Metric, folder: Path) -> str:
    return cards([_card(example, row, metric, folder) for example, row in pairs])


def _card(example: Example, row: Row, metric: Metric, folder: Path) -> str:
    value = row.scores.get(metric.name)
    mark = ""
    if value is not None:
        word = {1.0: "right", 0.0: "wrong"}.get(value, "") if metric.unit == "share" else ""
        mark = badge(word or format_value(value, metric), value > 0 if metric.unit == "share" else True)
    drawn = [_small(folder / path) for path in row.images]
    real = None if example.reference_image is None else _small(example.reference_image)
    if drawn and real is not None:
        shown = image_pair(real, drawn[0], row.question or row.reference)
    else:
        shown = "".join(image_tag(image, row.reference) for image in [*map(_small, example.images), *drawn])
    lines = [text(_cut(row.question))] if row.question else [text(row.id)]
    if not drawn:
        truth = f"<br><small>is: {text(_cut(row.reference))}</small>" if value != 1 and row.reference else ""
        lines.append(f"<strong>{text(_cut(row.answer) or '(no answer)')}</strong>{truth}")
    return f"{shown}<figcaption>{'<br>'.join(lines)} {mark}</figcaption>"


def _cut(content: str) -> str:
    content = " ".join(content.split())
    return content if len(content) <= 120 else f"{content[:119]}…"


def _small(path: Path) -> Image.Image:
    image = open_image(path)
    image.thumbnail((SHOWN_SIZE, SHOWN_SIZE))
    return image

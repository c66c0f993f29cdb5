"""The page of an evaluation: scores with intervals and baselines, answers and drawings beside what is right, and the
worst cases. Made of the scores and rows on the disk, of all suites of the folder; self-contained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from diptych.evaluate.charts import Interval, Line, draw_chart, draw_intervals, thin_out
from diptych.evaluate.report_page import (
    badge,
    cards,
    definition_list,
    details,
    image_row,
    page,
    paragraph,
    section,
    table,
    text,
)
from diptych.evaluate.scored_suites import ScoredSuite
from diptych.evaluate.shown_rows import choose_some, choose_worst, open_shown
from diptych.evaluate.stamp import flatten
from diptych.evaluate.suite import Metric, MetricScore, Row

MOST_CHARTS = 4
"""Of the metrics of a suite by kind; the table has all."""


def render_suites(suites: Sequence[ScoredSuite], rows: Sequence[Row], stamp: Mapping[str, Any], folder: Path) -> str:
    """The page as HTML. `rows`: of all suites; `folder`: where their images lie, and the small copies (`keep_shown`) of
    those that were asked with. Suites that the stamp names and that have no scores yet are named."""
    sections = [section("Scores", _scores(suites) + _unfinished(suites, stamp))]
    for suite in suites:
        sections.append(section(suite.name, _suite(suite, [row for row in rows if row.suite == suite.name], folder)))
    recipe = stamp.get("recipe", {})
    rest = {key: value for key, value in stamp.items() if key != "recipe"}
    settings = definition_list({key: str(value) for key, value in flatten(recipe).items()}, is_code=True)
    made = definition_list({key: str(value) for key, value in flatten(rest).items()}, is_code=True)
    sections.append(section("Made with", made + details("The whole recipe of the morph", settings)))
    name, names = stamp.get("morph", "a morph"), ", ".join(suite.name for suite in suites)
    return page(f"Evaluation of {name}", f"{names}; {sum(s.num for s in suites):,} examples.", "".join(sections))


def format_value(value: float | None, metric: Metric) -> str:
    """As the metric is told: per cent, decibels, or a plain number."""
    if value is None:
        return ""
    if metric.unit == "share":
        return f"{100 * value:.1f}%"
    return f"{value:.2f} dB" if metric.unit == "dB" else f"{value:.4g}"


def format_interval(score: MetricScore, metric: Metric) -> str:
    return "" if score.interval is None else " to ".join(format_value(edge, metric) for edge in score.interval)


def _scores(suites: Sequence[ScoredSuite]) -> str:
    rows = []
    for suite in suites:
        for metric, score in suite.scored():
            name = text(f"{suite.name}: {metric.words}")
            rows.append(_score_row(f"<strong>{name}</strong>" if metric == suite.headline else name, score, metric))
    told = (
        "Interval: 95%, bootstrap over examples, those on the same images together. Majority: always the commonest "
        "answer to a kind of question. Chance: a guess among its answers. Neither stands where there is no such thing."
    )
    headlines = {s.name: s.scores.get(s.headline.name) for s in suites if s.headline.unit == "share"}
    chart = _chart(headlines, Metric("", ""), title="The first score of each suite") if len(headlines) > 1 else ""
    elsewhere = ", ".join(suite.name for suite in suites if not suite.scored())
    told_of = (
        f"No score is told of: {elsewhere}. Other programs score it, or it takes more examples; see its own words."
    )
    return (
        _charts([chart])
        + (_score_table(rows) + paragraph(told) if rows else "")
        + (paragraph(told_of) if elsewhere else "")
    )


def _unfinished(suites: Sequence[ScoredSuite], stamp: Mapping[str, Any]) -> str:
    missing = [name for name in stamp.get("suites", {}) if name not in {suite.name for suite in suites}]
    if not missing:
        return ""
    told = f"Not complete, so not scored: {', '.join(missing)}. Call diptych eval with the same options to go on."
    return paragraph(told)


def _score_table(rows: Sequence[Sequence[str]]) -> str:
    return table(["", "mean", "95% interval", "n", "majority", "chance"], rows)


def _score_row(name: str, score: MetricScore, metric: Metric) -> list[str]:
    return [
        name,
        f'<span class="score">{format_value(score.mean, metric)}</span>',
        format_interval(score, metric),
        f"{score.num:,}",
        format_value(score.baselines.majority, metric),
        format_value(score.baselines.chance, metric),
    ]


def _suite(suite: ScoredSuite, rows: Sequence[Row], folder: Path) -> str:
    parts = [paragraph(suite.words)]
    parts.append(_charts([*_charts_by_kind(suite), *(_spread(suite, rows, metric) for metric in suite.metrics)]))
    if kinds := [kind for kind, scores in suite.by_kind.items() if scores]:
        parts.append(
            _score_table(
                [
                    _score_row(text(f"{kind}: {metric.words}"), score, metric)
                    for kind in kinds
                    for metric in suite.metrics
                    if (score := suite.by_kind[kind].get(metric.name)) is not None
                ]
            )
        )
    has_images = any(row.images or row.inputs for row in rows)
    if has_images:
        parts.append(f"<h3>Some, by chance</h3>{_cards(choose_some(rows), suite.headline, folder)}")
    if worst := choose_worst(rows, suite.metrics):
        shown = _cards(worst, suite.headline, folder) if has_images else _row_table(worst, suite)
        parts.append(f"<h3>Worst cases, worst first</h3>{shown}")
    return "".join(parts)


def _charts(charts: Sequence[str]) -> str:
    return f'<div class="charts">{"".join(charts)}</div>' if any(charts) else ""


def _charts_by_kind(suite: ScoredSuite) -> list[str]:
    """Of each metric: all examples, and each kind."""
    told = {"all": suite.scores} | {kind: scores for kind, scores in suite.by_kind.items() if scores}
    return [
        _chart({kind: scores.get(metric.name) for kind, scores in told.items()}, metric, title=metric.words)
        for metric in suite.metrics[:MOST_CHARTS]
        if len(told) > 1
    ]


def _chart(scores: Mapping[str, MetricScore | None], metric: Metric, *, title: str) -> str:
    """A row for each score that there is: the mean, its interval, its baselines. `metric`: whose unit they have."""
    found = {name: score for name, score in scores.items() if score is not None}
    intervals = [
        Interval(
            name,
            score.mean,
            score.interval,
            tick=score.baselines.majority,
            diamond=score.baselines.chance,
        )
        for name, score in found.items()
    ]
    compared = any(one.tick is not None or one.diamond is not None for one in intervals)
    chart = draw_intervals(
        intervals,
        title=title,
        x_label=f"mean, 95% interval{'; tick: majority, diamond: chance' if compared else ''}",
        bounds=(0.0, 1.0) if metric.unit == "share" else None,
    )
    return f"<figure><figcaption>{text(title)}</figcaption>{chart}</figure>" if found else ""


def _spread(suite: ScoredSuite, rows: Sequence[Row], metric: Metric) -> str:
    """How a metric that is no share lies over the examples: sorted values."""
    values = sorted(row.scores[metric.name] for row in rows if metric.name in row.scores)
    if metric.unit == "share" or len(values) < 2 or values[0] == values[-1]:
        return ""
    points = [(100 * place / (len(values) - 1), value) for place, value in enumerate(values)]
    chart = draw_chart(
        [Line(metric.words, thin_out(points))],
        title=f"{suite.name}: {metric.words}, sorted",
        x_label="per cent of the examples",
        y_label=metric.unit or metric.words,
    )
    return f"<figure><figcaption>{text(metric.words)}, sorted</figcaption>{chart}</figure>"


def _row_table(rows: Sequence[Row], suite: ScoredSuite) -> str:
    """Rows without images."""
    told = [
        [
            text(_cut(row.question) or row.id),
            f"<strong>{text(_cut(row.answer) or '(no answer)')}</strong>",
            text(_cut(row.reference)),
            text(row.kind),
            *(format_value(row.scores.get(metric.name), metric) for metric in suite.metrics),
        ]
        for row in rows
    ]
    return table(["asked", "answer", "right", "kind", *(m.words for m in suite.metrics)], told, is_words=True)


def _cards(rows: Sequence[Row], metric: Metric, folder: Path) -> str:
    return cards([_card(row, metric, folder) for row in rows])


def _card(row: Row, metric: Metric, folder: Path) -> str:
    value = row.scores.get(metric.name)
    mark = ""
    if value is not None:
        word = {1.0: "right", 0.0: "wrong"}.get(value, "") if metric.unit == "share" else ""
        mark = badge(word or format_value(value, metric), value > 0 if metric.unit == "share" else True)
    shown = open_shown(row, folder)
    told = row.question or row.reference or row.id
    images = [
        *(("given" if shown.drawn else "", image, told) for image in shown.asked),
        *(("real", image, f"real: {told}") for image in shown.right),
        *(("drawn", image, told) for image in shown.drawn),
    ]
    lines = [text(_cut(row.question))] if row.question else [text(row.id)]
    if not shown.drawn:
        truth = f"<br><small>is: {text(_cut(row.reference))}</small>" if value != 1 and row.reference else ""
        lines.append(f"<strong>{text(_cut(row.answer) or '(no answer)')}</strong>{truth}")
    return f"{image_row(images) if images else ''}<figcaption>{'<br>'.join(lines)} {mark}</figcaption>"


def _cut(content: str) -> str:
    content = " ".join(content.split())
    return content if len(content) <= 120 else f"{content[:119]}…"

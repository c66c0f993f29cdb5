"""Curves over training as figures: of one run or several, as logged behind and smoothed in front, one colour a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from diptych.evaluate.charts import Line, draw_chart, series_class, smooth, thin_out
from diptych.evaluate.report_page import text

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Curve:
    """A value over training. `series`: its points by the run's name. `is_log`: drawn on a logarithmic scale.
    `is_exact`: it has no noise to be smoothed."""

    title: str
    y_label: str
    series: Mapping[str, Points]
    is_log: bool = False
    x_label: str = "minutes of training"
    is_exact: bool = False


def draw_curves(curves: Sequence[Curve], names: Sequence[str] = ("",)) -> str:
    """A figure for each, side by side. `names`: of all runs, in the order of their colours, whether a curve has them or
    not."""
    figures = []
    for curve in curves:
        lines = []
        for name, points in curve.series.items():
            thinned, number, told = thin_out(points), names.index(name), f"{name}, " if name else ""
            lines.append(Line(f"{told}as logged", thinned, is_faint=True, series=number))
            smoothed = smooth(thinned, window=1 if curve.is_exact else max(1, len(thinned) // 20))
            lines.append(Line(f"{told}smoothed", smoothed, series=number))
        labels = {"x_label": curve.x_label, "y_label": curve.y_label}
        chart = draw_chart(lines, title=curve.title, is_log=curve.is_log, **labels)
        figures.append(f"<figure><figcaption>{text(curve.title)}</figcaption>{chart}</figure>")
    return f'<div class="charts">{"".join(figures)}</div>' if figures else ""


def draw_legend(names: Sequence[str]) -> str:
    """Which colour is whose."""
    keys = (f'<span><i class="key {series_class(n)}"></i>{text(name)}</span>' for n, name in enumerate(names))
    return f'<p class="legend">{"".join(keys)}</p>'

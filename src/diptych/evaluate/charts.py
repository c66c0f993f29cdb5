"""Line charts, and values with intervals, as inline SVG: no library, no script, colours from the page's style sheet."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from html import escape

WIDTH, HEIGHT = 520, 240
NUM_COLOURS = 6
MOST_POINTS = 600
"""Of one line; more are told by the means of neighbours."""
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 12, 12, 40
_MOST_LETTERS = 34
"""Of a name beside an interval."""


@dataclass(frozen=True)
class Line:
    """Points (x, y) in the order of x. `is_faint`: behind the others, thin (raw values behind a smoothed line).
    `series`: its colour, in turns of NUM_COLOURS; later turns are dashed."""

    name: str
    points: Sequence[tuple[float, float]]
    is_faint: bool = False
    series: int = 0


def thin_out(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most MOST_POINTS, each the mean of as many neighbours."""
    size = -(-len(points) // MOST_POINTS)
    groups = [points[start : start + size] for start in range(0, len(points), max(1, size))]
    return [(sum(x for x, _ in group) / len(group), sum(y for _, y in group) / len(group)) for group in groups]


def smooth(points: Sequence[tuple[float, float]], *, window: int) -> list[tuple[float, float]]:
    """Each value as the mean over `window` values around it (fewer at the ends)."""
    half = window // 2
    values = [y for _, y in points]
    smoothed = []
    for index, (x, _) in enumerate(points):
        around = values[max(0, index - half) : index + half + 1]
        smoothed.append((x, sum(around) / len(around)))
    return smoothed


def draw_chart(lines: Sequence[Line], *, title: str, x_label: str, y_label: str, is_log: bool = False) -> str:
    """An <svg> element with axes, ticks and one path per line. `is_log`: y on a logarithmic scale (values above 0).

    Values that are not finite (or not above 0, with `is_log`) are left out; a chart without points says so.
    """
    kept = [replace(line, points=[p for p in line.points if _can_show(p, is_log)]) for line in lines]
    points = [point for line in kept for point in line.points]
    head = (
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title, quote=True)}">'
        f"<title>{escape(title)}</title>"
    )
    if not points:
        return f'{head}<text class="label" x="{WIDTH / 2}" y="{HEIGHT / 2}" text-anchor="middle">no points</text></svg>'
    scale_y = math.log10 if is_log else float
    x_low, x_high = _widen(min(x for x, _ in points), max(x for x, _ in points))
    y_values = [scale_y(y) for _, y in points]
    y_low, y_high = _widen(min(y_values), max(y_values))
    y_ticks = _log_ticks(y_low, y_high) if is_log else _ticks(y_low, y_high)
    if is_log and len(y_ticks) >= 2:
        y_low, y_high = min(y_low, y_ticks[0]), max(y_high, y_ticks[-1])

    def place(x: float, y: float) -> tuple[float, float]:
        return (
            _LEFT + (x - x_low) / (x_high - x_low) * (WIDTH - _LEFT - _RIGHT),
            HEIGHT - _BOTTOM - (y - y_low) / (y_high - y_low) * (HEIGHT - _TOP - _BOTTOM),
        )

    parts = [head]
    for y in y_ticks:
        _, at = place(x_low, y)
        label = _label(10**y if is_log else y)
        parts.append(f'<line class="rule" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>')
        parts.append(f'<text class="label" x="{_LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">{label}</text>')
    for x in _ticks(x_low, x_high):
        at, _ = place(x, y_low)
        parts.append(
            f'<text class="label" x="{at:.1f}" y="{HEIGHT - _BOTTOM + 16}" text-anchor="middle">{_label(x)}</text>'
        )
    for line in sorted(kept, key=lambda line: not line.is_faint):
        path = " ".join("{:.1f},{:.1f}".format(*place(x, scale_y(y))) for x, y in line.points)
        kind = f"{'faint' if line.is_faint else 'line'} {series_class(line.series)}"
        if len(line.points) == 1 and not line.is_faint:  # a line of one point is not to be seen
            at_x, at_y = path.split(",")
            parts.append(f'<circle class="point {series_class(line.series)}" cx="{at_x}" cy="{at_y}" r="3"/>')
        parts.append(f'<polyline class="{kind}" points="{path}"><title>{escape(line.name)}</title></polyline>')
    middle = (_LEFT + WIDTH - _RIGHT) / 2
    parts.append(f'<text class="label" x="{middle}" y="{HEIGHT - 6}" text-anchor="middle">{escape(x_label)}</text>')
    at = f"{HEIGHT / 2 - 14:.0f}"
    turned = f'x="11" y="{at}" text-anchor="middle" transform="rotate(-90 11 {at})"'
    parts.append(f'<text class="label" {turned}>{escape(y_label)}</text>')
    return "".join([*parts, "</svg>"])


def series_class(series: int) -> str:
    """Of the page's style sheet: colour, and dashes from the second turn on."""
    return f"series-{series % NUM_COLOURS}{' dashed' if series >= NUM_COLOURS else ''}"


@dataclass(frozen=True)
class Interval:
    """A value with its interval, where one is known; `tick`, `diamond`: what it is to be compared with."""

    name: str
    value: float
    interval: tuple[float, float] | None
    tick: float | None = None
    diamond: float | None = None


def draw_intervals(
    intervals: Sequence[Interval], *, title: str, x_label: str, bounds: tuple[float, float] | None = None
) -> str:
    """An <svg> element with a row for each: a dot, its interval as a whisker, its tick and diamond. `bounds`: of the
    axis; None: those of what is shown."""
    longest = max((len(one.name) for one in intervals), default=0)
    left, height = min(max(60, 7 * longest + 16), WIDTH // 2), _TOP + 24 * len(intervals) + _BOTTOM
    edges = [e for one in intervals for e in (*(one.interval or ()), one.value, one.tick, one.diamond) if e is not None]
    low, high = bounds or _widen(min(edges, default=0.0), max(edges, default=1.0))
    margin = 0.0 if bounds else 0.03 * (high - low)  # no mark lies on the names
    low, high = low - margin, high + margin

    def place(x: float) -> float:
        return left + (x - low) / (high - low) * (WIDTH - left - 2 * _RIGHT)

    name = escape(title, quote=True)
    parts = [f'<svg class="chart" viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{name}">']
    parts.append(f"<title>{escape(title)}</title>")
    foot = height - _BOTTOM
    for x in _ticks(low, high):
        parts.append(f'<line class="rule" x1="{place(x):.1f}" x2="{place(x):.1f}" y1="{_TOP}" y2="{foot}"/>')
        parts.append(f'<text class="label" x="{place(x):.1f}" y="{foot + 16}" text-anchor="middle">{_label(x)}</text>')
    for number, one in enumerate(intervals):
        y = _TOP + 24 * number + 12
        told = one.name if len(one.name) <= _MOST_LETTERS else f"{one.name[: _MOST_LETTERS - 1]}…"
        parts.append(f'<text class="label" x="{left - 10}" y="{y + 4}" text-anchor="end">{escape(told)}</text>')
        if one.interval is not None:
            from_x, to_x = map(place, one.interval)
            parts.append(f'<line class="whisker" x1="{from_x:.1f}" x2="{to_x:.1f}" y1="{y}" y2="{y}"/>')
        parts.append(f'<circle class="dot" cx="{place(one.value):.1f}" cy="{y}" r="4"/>')
        if one.tick is not None:
            x = place(one.tick)
            parts.append(f'<line class="tick" x1="{x:.1f}" x2="{x:.1f}" y1="{y - 8}" y2="{y + 8}"/>')
        if one.diamond is not None:
            x = place(one.diamond)
            corners = f"M{x:.1f} {y - 5} L{x + 5:.1f} {y} L{x:.1f} {y + 5} L{x - 5:.1f} {y} Z"
            parts.append(f'<path class="diamond" d="{corners}"/>')
    middle = (left + WIDTH - _RIGHT) / 2
    parts.append(f'<text class="label" x="{middle}" y="{height - 6}" text-anchor="middle">{escape(x_label)}</text>')
    return "".join([*parts, "</svg>"])


def _can_show(point: tuple[float, float], is_log: bool) -> bool:
    return all(map(math.isfinite, point)) and (not is_log or point[1] > 0)


def _widen(low: float, high: float) -> tuple[float, float]:
    """A range that ticks can divide, also around values that are all the same."""
    size = max(abs(low), abs(high))
    if high - low > max(1e-9 * size, 1e-12):
        return low, high
    return low - max(0.5, 0.01 * size), high + max(0.5, 0.01 * size)


def _ticks(low: float, high: float) -> list[float]:
    """Four to nine round values within low..high."""
    rough = (high - low) / 5
    power = 10 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(index * step, 12) for index in range(first, math.floor(high / step + 1e-9) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    """Logarithms of powers of ten around low..high, or of round values where the range is narrow."""
    powers = list(range(math.floor(low), math.ceil(high) + 1))
    if high - low >= 2:
        return [float(power) for power in powers]
    values = [math.log10(factor * 10.0**power) for power in powers for factor in (1, 2, 5)]
    inside = [value for value in values if low - 1e-9 <= value <= high + 1e-9]
    return inside if len(inside) >= 2 else [low, high]


def _label(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"

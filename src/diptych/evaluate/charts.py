"""Line charts as inline SVG: no script, no file beside the page."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

COLOURS = ("#3b6fd4", "#d4663b", "#3a9a63", "#8d5bc9")
WIDTH, HEIGHT, LEFT, BOTTOM, TOP, RIGHT = 640, 240, 56, 34, 16, 12


def line_chart(series: dict[str, Sequence[tuple[float, float]]], *, x_label: str, y_label: str) -> str:
    """An SVG of named lines of (x, y) points; lines without points are left out."""
    lines = {name: points for name, points in series.items() if points}
    if not lines:
        return "<p>nothing was logged</p>"
    xs = [x for points in lines.values() for x, _ in points]
    ys = [y for points in lines.values() for _, y in points]
    low_x, high_x, low_y, high_y = min(xs), max(xs), min(0.0, min(ys)), max(ys)
    span_x, span_y = (high_x - low_x) or 1.0, (high_y - low_y) or 1.0

    def place(x: float, y: float) -> str:
        across = LEFT + (x - low_x) / span_x * (WIDTH - LEFT - RIGHT)
        down = HEIGHT - BOTTOM - (y - low_y) / span_y * (HEIGHT - BOTTOM - TOP)
        return f"{across:.1f},{down:.1f}"

    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(y_label)} over {escape(x_label)}">']
    for step in range(5):
        y = low_y + span_y * step / 4
        _, down = place(low_x, y).split(",")
        parts.append(f'<line x1="{LEFT}" y1="{down}" x2="{WIDTH - RIGHT}" y2="{down}" class="rule"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{down}" text-anchor="end" dominant-baseline="middle">{y:.3g}</text>')
        x = low_x + span_x * step / 4
        across, _ = place(x, low_y).split(",")
        parts.append(f'<text x="{across}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{x:.3g}</text>')
    parts.append(f'<text x="{(WIDTH + LEFT) / 2}" y="{HEIGHT - 3}" text-anchor="middle">{escape(x_label)}</text>')
    for number, (name, points) in enumerate(lines.items()):
        colour = COLOURS[number % len(COLOURS)]
        path = " ".join(place(x, y) for x, y in points)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        key = LEFT + 12 + 130 * number
        parts.append(f'<rect x="{key}" y="{TOP - 10}" width="12" height="4" fill="{colour}"/>')
        parts.append(f'<text x="{key + 18}" y="{TOP - 4}">{escape(name)}</text>')
    return "".join([*parts, "</svg>"])

"""Laws of charts: well-formed whatever the values, nothing outside the frame, values that cannot be drawn left out."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diptych.evaluate.charts import (
    HEIGHT,
    MOST_POINTS,
    NUM_COLOURS,
    WIDTH,
    Interval,
    Line,
    draw_chart,
    draw_intervals,
    smooth,
    thin_out,
)

POINTS = st.lists(st.tuples(st.floats(0, 1e6), st.floats(allow_nan=True, allow_infinity=True, width=32)), max_size=20)


@given(POINTS, st.booleans())
def test_any_values_give_a_chart_within_its_frame(points: list[tuple[float, float]], is_log: bool) -> None:
    svg = draw_chart([Line("a & <b>", points)], title='"t"', x_label="<x>", y_label="y&", is_log=is_log)
    root = ElementTree.fromstring(svg)
    for line in root.iter("polyline"):
        for pair in line.attrib["points"].split():
            x, y = map(float, pair.split(","))
            assert -0.1 <= x <= WIDTH + 0.1
            assert -0.1 <= y <= HEIGHT + 0.1


def test_values_that_are_not_finite_are_left_out() -> None:
    svg = draw_chart([Line("a", [(0, 1.0), (1, float("nan")), (2, 3.0)])], title="t", x_label="x", y_label="y")
    (line,) = ElementTree.fromstring(svg).iter("polyline")
    assert len(line.attrib["points"].split()) == 2


def test_a_chart_without_points_says_so() -> None:
    assert "no points" in draw_chart([], title="t", x_label="x", y_label="y")


def test_smoothing_keeps_a_constant_and_the_places() -> None:
    points = [(float(x), 2.0) for x in range(9)]
    assert smooth(points, window=5) == points
    assert [y for _, y in smooth([(0.0, 0.0), (1.0, 3.0), (2.0, 0.0)], window=3)] == pytest.approx([1.5, 1.0, 1.5])


def test_intervals_stand_in_order_on_one_axis() -> None:
    shown = [Interval("a & <b>", 0.5, (0.4, 0.6), tick=0.25), Interval("c", 1.0, (1.0, 1.0))]
    root = ElementTree.fromstring(draw_intervals(shown, title="t", x_label="share", bounds=(0, 1)))
    whiskers = [line for line in root.iter("line") if line.attrib["class"] == "whisker"]
    dots, (tick,) = list(root.iter("circle")), [line for line in root.iter("line") if line.attrib["class"] == "tick"]
    for whisker, dot in zip(whiskers, dots, strict=True):
        assert float(whisker.attrib["x1"]) <= float(dot.attrib["cx"]) <= float(whisker.attrib["x2"]) <= WIDTH
    assert float(tick.attrib["x1"]) < float(whiskers[0].attrib["x1"])
    assert float(dots[0].attrib["cy"]) < float(dots[1].attrib["cy"])
    assert "a & <b>" in "".join(root.itertext())


def test_a_value_without_an_interval_has_no_whisker() -> None:
    root = ElementTree.fromstring(draw_intervals([Interval("a", 0.5, None)], title="t", x_label="x"))
    assert len(list(root.iter("circle"))) == 1
    assert "whisker" not in {line.attrib["class"] for line in root.iter("line")}


@pytest.mark.parametrize("values", [[], [2.0], [3.0, -1e9]])
def test_any_intervals_give_a_chart(values: list[float]) -> None:
    shown = [Interval("x", value, (value, value)) for value in values]
    assert ElementTree.fromstring(draw_intervals(shown, title="t", x_label="x"))


def test_lines_of_many_series_are_told_apart() -> None:
    lines = [Line(str(n), [(0, n), (1, n)], series=n) for n in range(2 * NUM_COLOURS)]
    root = ElementTree.fromstring(draw_chart(lines, title="t", x_label="x", y_label="y"))
    classes = [line.attrib["class"] for line in root.iter("polyline")]
    assert len(set(classes)) == 2 * NUM_COLOURS


@given(st.integers(0, 5 * MOST_POINTS))
def test_thinning_keeps_the_mean_and_a_bound(num: int) -> None:
    points = [(float(x), float(x % 7)) for x in range(num)]
    thinned = thin_out(points)
    assert len(thinned) <= MOST_POINTS
    assert thinned == points or num > MOST_POINTS
    assert [x for x, _ in thinned] == sorted(x for x, _ in thinned)
    if num % MOST_POINTS == 0 and num:
        assert sum(y for _, y in thinned) / len(thinned) == pytest.approx(sum(y for _, y in points) / num)


def test_a_diamond_stands_at_its_value() -> None:
    shown = [Interval("a", 0.5, (0.4, 0.6), tick=0.25, diamond=0.1), Interval("b", 0.5, (0.4, 0.6))]
    root = ElementTree.fromstring(draw_intervals(shown, title="t", x_label="share", bounds=(0, 1)))
    (diamond,) = root.iter("path")
    (tick,) = (line for line in root.iter("line") if line.attrib["class"] == "tick")
    assert float(diamond.attrib["d"].split()[0][1:]) < float(tick.attrib["x1"])

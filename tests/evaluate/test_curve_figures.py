"""Laws of curves: one colour a run wherever it is shown, raw values behind the smoothed ones, names escaped."""

from __future__ import annotations

from diptych.evaluate.curve_figures import Curve, draw_curves, draw_legend
from html_page import Page

POINTS = [(float(x), float(x % 5)) for x in range(100)]


def lines(html: str) -> list[str]:
    return [attributes["class"] or "" for tag, attributes in Page(html).tags if tag == "polyline"]


def test_a_run_has_its_colour_in_every_figure_and_in_the_legend() -> None:
    names = ["a", "<b>", "c"]
    curves = [Curve("one", "loss", {"<b>": POINTS}), Curve("two", "loss", {"c": POINTS, "<b>": POINTS})]
    html = draw_curves(curves, names)
    assert Page(html).open == []
    assert lines(html) == [
        *("faint series-1", "line series-1"),
        *("faint series-2", "faint series-1", "line series-2", "line series-1"),
    ]
    legend = Page(draw_legend(names))
    assert [a["class"] for tag, a in legend.tags if tag == "i"] == [f"key series-{n}" for n in range(3)]
    assert legend.text == "a <b> c"


def test_what_is_exact_is_not_smoothed() -> None:
    def drawn(is_exact: bool) -> list[str]:
        page = Page(draw_curves([Curve("rate", "rate", {"": POINTS}, is_exact=is_exact)]))
        return [a["points"] or "" for tag, a in page.tags if tag == "polyline"]

    exact, smoothed = drawn(True), drawn(False)
    assert exact[0] == exact[1] == smoothed[0]
    assert smoothed[0] != smoothed[1]


def test_a_curve_of_one_point_is_to_be_seen() -> None:
    page = Page(draw_curves([Curve("loss", "loss", {"": [(1.0, 2.0)]})]))
    assert [a["class"] for tag, a in page.tags if tag == "circle"] == ["point series-0"]


def test_no_curves_are_no_figures() -> None:
    assert draw_curves([]) == ""

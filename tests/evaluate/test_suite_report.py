"""Laws of the page: self-contained, every score with interval and baselines, the worst first, nothing taken as HTML."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from diptych.evaluate.harness import evaluate_suites
from diptych.evaluate.scored_suites import ScoredSuite
from diptych.evaluate.suite import Metric, Row
from diptych.evaluate.suite_report import render_suites
from html_page import Page
from toy_suite import ColourSuite, FakeMorph, another_stamp, draw, look

NASTY = "<script>alert(1)</script>"


def page_of(folder: Path, rule: Any, **suite: Any) -> Page:
    stamp = another_stamp(recipe={"language_model": NASTY})
    evaluate_suites(FakeMorph(rule), [ColourSuite(folder / "data", **suite)], folder / "out", stamp=stamp)
    return Page((folder / "out" / "report.html").read_text(encoding="utf-8"))


def images(page: Page) -> list[str]:
    return [attributes["src"] or "" for tag, attributes in page.tags if tag == "img"]


def test_the_page_fetches_nothing_and_runs_nothing(tmp_path: Path) -> None:
    page = page_of(tmp_path, lambda question, images: NASTY)
    assert page.open == []
    assert not {tag for tag, _ in page.tags} & {"script", "link", "iframe", "object", "form", "a"}
    assert all(source.startswith("data:image/png;base64,") for source in images(page))
    assert NASTY in page.text


def test_scores_stand_with_interval_n_and_baselines(tmp_path: Path) -> None:
    page = page_of(tmp_path, look)
    for told in ("colours: exact answers", "100.0%", " to 100.0%", "40", "50.0%", "37.5%", "Plain colours."):
        assert told in page.text, told
    assert "Worst cases" not in page.text
    assert [a["aria-label"] for tag, a in page.tags if tag == "svg"] == ["exact answers"]
    assert "mean, 95% interval; tick: majority, diamond: chance" in page.text


def test_the_worst_cases_are_those_that_were_wrong_of_every_kind(tmp_path: Path) -> None:
    page = page_of(tmp_path, lambda question, images: "yes" if "red?" in question else "mauve")
    shown = page.text.partition("Worst cases")[2]
    assert (shown.count("mauve"), shown.count("yes is: no")) == (12, 12), "kinds take turns"
    assert "wrong" in shown


def test_what_was_drawn_stands_beside_the_real_image(tmp_path: Path) -> None:
    page = page_of(tmp_path, draw, num=6, draws=True)
    assert len(images(page)) == 2 * 6
    assert page.text.count("real") == page.text.count("drawn") == 6


def test_a_later_call_shows_the_suites_of_the_earlier_ones_too(tmp_path: Path) -> None:
    """Without their data, and without naming them again."""
    page_of(tmp_path, look, num=6)
    drawing = ColourSuite(tmp_path / "other", 6, draws=True, name="drawing")
    for file in (tmp_path / "data").iterdir():
        file.unlink()
    out = tmp_path / "out"
    evaluate_suites(FakeMorph(draw), [drawing], out, stamp=another_stamp(recipe={"language_model": NASTY}))
    page = Page((out / "report.html").read_text(encoding="utf-8"))
    assert "colours, drawing; 18 examples." in page.text
    for told in ("colours: exact answers", "drawing: near in colour", "What colour is this?", "Draw red number 0."):
        assert told in page.text, told
    labels = [a["aria-label"] for tag, a in page.tags if tag == "svg"]
    assert labels == ["The first score of each suite", "exact answers"]
    assert len(images(page)) == 12 + 2 * 6


def test_a_suite_that_was_stopped_is_named_and_not_scored(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        evaluate_suites(FakeMorph(look, fails_at=3), [ColourSuite(tmp_path / "data", 6)], out, stamp=another_stamp())
    drawing = ColourSuite(tmp_path / "data", 6, draws=True, name="drawing")
    evaluate_suites(FakeMorph(draw), [drawing], out, stamp=another_stamp())
    text = Page((out / "report.html").read_text(encoding="utf-8")).text
    assert "Not complete, so not scored: colours." in text
    assert "drawing; 6 examples." in text


def test_a_suite_that_others_score_is_named_and_has_no_empty_table() -> None:
    rows = [Row("others", "1", "", "Question?", (), "", "", (), {})]
    suite = ScoredSuite("others", "Words.", 1, (Metric("exact", "exact answers"),), {}, {})
    page = Page(render_suites([suite], rows, {}, Path()))
    assert "No score is told of: others." in page.text
    assert "95% interval" not in page.text


def test_what_was_asked_without_images_is_told_in_a_table_worst_first() -> None:
    metrics = (Metric("exact", "exact answers"), Metric("far", "distance", unit="", higher_is_better=False))
    rows = [Row("words", str(n), "", f"Question {n}?", (), "no", NASTY, (), {"exact": 0.0, "far": n}) for n in range(3)]
    suite = ScoredSuite("words", "Words.", 3, metrics, {}, {})
    page = Page(render_suites([suite], rows, {}, Path()))
    assert page.open == []
    told = page.text.partition("worst first")[2]
    assert [told.index(f"Question {n}?") for n in (2, 1, 0)] == sorted(told.index(f"Question {n}?") for n in range(3))
    assert NASTY in told
    assert images(page) == []

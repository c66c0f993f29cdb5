"""Laws of the page: self-contained, every score with interval and baselines, the worst first, nothing taken as HTML."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from diptych.evaluate.harness import evaluate_suites
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
    for told in ("colours: exact answers", "100.0%", "100.0% to 100.0%", "40", "50.0%", "37.5%", "Plain colours."):
        assert told in page.text, told
    assert "Worst cases" not in page.text
    assert [a["aria-label"] for tag, a in page.tags if tag == "svg"] == ["colours by kind"]


def test_the_worst_cases_are_those_that_were_wrong_of_every_kind(tmp_path: Path) -> None:
    page = page_of(tmp_path, lambda question, images: "yes" if "red?" in question else "mauve")
    shown = page.text.partition("Worst cases")[2]
    assert (shown.count("mauve"), shown.count("yes is: no")) == (12, 12), "kinds take turns"
    assert "wrong" in shown


def test_what_was_drawn_stands_beside_the_real_image(tmp_path: Path) -> None:
    page = page_of(tmp_path, draw, num=6, draws=True)
    assert len(images(page)) == 2 * 6
    assert page.text.count("real") == page.text.count("drawn") == 6

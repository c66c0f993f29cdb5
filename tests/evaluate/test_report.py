"""Laws of the page: whole in one file, nothing to fetch, nothing of the data taken for markup."""

from __future__ import annotations

import base64
import io

from PIL import Image

from diptych.evaluate.curve_figures import Curve
from diptych.evaluate.language_check import LanguageCheck
from diptych.evaluate.report import Answer, Drawing, Report, ScoreRow, render_report
from diptych.evaluate.scores import Score
from html_page import Page

NASTY = '<script>alert("x")</script> & <img src=http://a.b/c.png>'
RED, BLUE = Image.new("RGB", (8, 8), "red"), Image.new("RGB", (8, 8), "blue")


def build(**changes: object) -> Report:
    drawings = [Drawing("Draw fox in 3D style.", RED, BLUE, 0), Drawing(NASTY, RED, BLUE, 6)]
    answers = [Answer(RED, "fox", "fox", True), Answer(BLUE, NASTY, "cat", False), Answer(BLUE, "", "cat", False)]
    settings = {
        "title": "A title",
        "summary": NASTY,
        "scores": [
            ScoreRow("Drawing", Score(0.775, 360, 0.005), 0.75, True),
            ScoreRow("Reading", Score(0.9, 40, 0.005), 0.95),
        ],
        "language": LanguageCheck(0.0, 32, 1000, True),
        "protocol": "as always",
        "question": "What is this?",
        "drawings": drawings,
        "held_out_drawings": drawings[:1],
        "answers": answers,
        "held_out_answers": [],
        "curves": [Curve("Loss", "loss", {"": [(0.1, 2.0), (0.2, 1.0)]}, True)],
        "grids": [("step 10", RED)],
        "facts": {"machine": NASTY},
        "settings": "seed: 0\nname: " + NASTY,
        "licences": ["OpenMoji, CC BY-SA 4.0"],
    }
    return Report(**(settings | changes))  # type: ignore[arg-type]


def test_the_page_fetches_nothing_and_runs_nothing() -> None:
    page = Page(render_report(build()))
    assert page.open == []
    assert not {tag for tag, _ in page.tags} & {"script", "link", "iframe", "object", "form", "a"}
    for tag, attributes in page.tags:
        for name in ("src", "href", "srcset", "data", "action", "onclick", "onload"):
            value = attributes.get(name)
            assert value is None or (tag == "img" and value.startswith("data:image/png;base64,"))
    policies = [a for t, a in page.tags if t == "meta" and a.get("http-equiv") == "Content-Security-Policy"]
    assert policies[0]["content"].startswith("default-src 'none'")  # type: ignore[union-attr]


def test_images_on_the_page_are_those_that_were_given() -> None:
    page = Page(render_report(build()))
    images = [attributes["src"] or "" for tag, attributes in page.tags if tag == "img"]
    assert len(images) == 2 * 3 + 3 + 1
    first = Image.open(io.BytesIO(base64.b64decode(images[0].partition(",")[2])))
    assert first.size == (8, 8)
    assert first.getpixel((3, 3)) == (0, 0, 255), "the real image stands first"


def test_scores_are_told_with_interval_n_chance_and_goal() -> None:
    text = Page(render_report(build())).text
    for told in ("77.5%", "360", "0.5%", "75% reached", "95% missed", "72.9% to 81.5%", "0 reached"):
        assert told in text, told
    assert "1 of the 3 answers shown are right" in text
    assert "place 7" in text
    assert "(no answer)" in text
    assert "OpenMoji, CC BY-SA 4.0" in text


def test_a_language_model_that_changed_is_not_passed_over() -> None:
    for check in (LanguageCheck(1e-9, 32, 1000, True), LanguageCheck(0.0, 32, 1000, False)):
        assert "0 missed" in Page(render_report(build(language=check))).text


def test_a_page_with_nothing_to_show_is_still_a_page() -> None:
    bare = build(drawings=[], held_out_drawings=[], answers=[], curves=[], grids=[], licences=[], scores=[])
    assert Page(render_report(bare)).open == []

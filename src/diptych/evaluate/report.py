"""One self-contained page about a run: scores, images, answers, curves. Opens without a network, needs no script."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from PIL import Image

from diptych.evaluate.curve_figures import Curve, draw_curves
from diptych.evaluate.language_check import LanguageCheck
from diptych.evaluate.report_page import (
    badge,
    cards,
    code,
    definition_list,
    details,
    grids,
    image_pair,
    image_tag,
    page,
    paragraph,
    section,
    table,
    text,
)
from diptych.evaluate.scores import Score


@dataclass(frozen=True)
class ScoreRow:
    """One line of the table of scores. `goal`: the share to reach, None where none was set."""

    name: str
    score: Score
    goal: float | None = None
    is_headline: bool = False


@dataclass(frozen=True)
class Drawing:
    """A prompt, what was drawn, the real image, and the place (0 is first) of the right concept among the real ones."""

    prompt: str
    drawn: Image.Image
    real: Image.Image
    rank: int


@dataclass(frozen=True)
class Answer:
    """What was told about an image, and the truth."""

    image: Image.Image
    answer: str
    truth: str
    is_right: bool


@dataclass(frozen=True)
class TableSection:
    """A table with a title, and words below it."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    words: str


@dataclass(frozen=True)
class Report:
    """Everything on the page, in the order in which it is shown. `protocol`: how the scores were measured.
    `keeps_language`: whether the method promises that the language model stays as it was."""

    title: str
    summary: str
    scores: Sequence[ScoreRow]
    language: LanguageCheck
    protocol: str
    question: str
    drawings: Sequence[Drawing]
    held_out_drawings: Sequence[Drawing]
    answers: Sequence[Answer]
    held_out_answers: Sequence[Answer]
    curves: Sequence[Curve]
    keeps_language: bool = True
    tables: Sequence[TableSection] = ()
    grids: Sequence[tuple[str, Image.Image]] = ()
    facts: Mapping[str, str] = field(default_factory=dict)
    settings: str = ""
    licences: Sequence[str] = ()


def render_report(report: Report) -> str:
    """The page as HTML; images are inside it, and its content policy forbids fetching anything."""
    held_out = paragraph(
        "Training never showed these concepts in these styles; it showed each of them in the other style. "
        "Whatever is right here was composed, not remembered."
    )
    sections = [
        section("Scores", _scores(report)),
        *(section(t.title, _table(t) + paragraph(t.words)) for t in report.tables),
        section("Drawing: combinations of the training set", _drawings(report.drawings)),
        section("Drawing: held-out combinations", held_out + _drawings(report.held_out_drawings)),
        section("Reading: images of the training set", _answers(report.answers, report.question)),
        section("Reading: held-out images", _answers(report.held_out_answers, report.question)),
        section(
            "The language model is untouched" if report.keeps_language else "The language model was trained",
            _language(report.language),
        ),
        section("Training", draw_curves(report.curves) or paragraph("Nothing was logged.")),
        section("The same prompts as training went on", grids(report.grids) or paragraph("None were drawn.")),
        section("Run", definition_list(report.facts) + details("Settings: the whole recipe", code(report.settings))),
        section("Images and words", "".join(map(paragraph, report.licences)) or paragraph("none")),
    ]
    return page(report.title, report.summary, "".join(sections))


def format_share(value: float) -> str:
    return f"{100 * value:.1f}%"


def _scores(report: Report) -> str:
    rows = []
    for row in report.scores:
        low, high = row.score.interval
        goal = ""
        if row.goal is not None:
            reached = row.score.value >= row.goal
            goal = f"{100 * row.goal:.0f}% {badge('reached' if reached else 'missed', reached)}"
        rows.append(
            [
                f"<strong>{text(row.name)}</strong>" if row.is_headline else text(row.name),
                f'<span class="score">{format_share(row.score.value)}</span>',
                f"{format_share(low)} to {format_share(high)}",
                f"{row.score.num:,}",
                format_share(row.score.chance),
                goal,
            ]
        )
    check = report.language
    is_whole = check.max_abs_diff == 0 and check.same_weights
    rows.append(
        [
            "<strong>Language: largest difference of text-only logits to the base LLM</strong>",
            f'<span class="score">{check.max_abs_diff:g}</span>',
            "",
            f"{check.num_prompts}",
            "",
            f"0 {badge('reached' if is_whole else 'missed', is_whole)}" if report.keeps_language else "",
        ]
    )
    return table(["", "reached", "95% interval", "n", "chance", "goal"], rows) + paragraph(report.protocol)


def _table(section: TableSection) -> str:
    return table(list(section.columns), [[text(cell) for cell in row] for row in section.rows])


def _drawings(drawings: Sequence[Drawing]) -> str:
    if not drawings:
        return paragraph("There are none.")
    shown = []
    for drawing in drawings:
        first = drawing.rank == 0
        mark = badge("first" if first else f"place {drawing.rank + 1}", first)
        pair = image_pair(drawing.real, drawing.drawn, drawing.prompt)
        shown.append(f"{pair}<figcaption>{text(drawing.prompt)} {mark}</figcaption>")
    first = sum(drawing.rank == 0 for drawing in drawings)
    line = (
        f"The real image, and beside it what was drawn from the prompt alone. {first} of the {len(drawings)} shown "
        "find their own concept first among all real images of the style."
    )
    return paragraph(line) + cards(shown)


def _answers(answers: Sequence[Answer], question: str) -> str:
    if not answers:
        return paragraph("There are none.")
    shown = []
    for answer in answers:
        told = answer.answer.strip()[:80] or "(no answer)"
        truth = "" if answer.is_right else f"<br><small>is: {text(answer.truth)}</small>"
        mark = badge("right" if answer.is_right else "wrong", answer.is_right)
        shown.append(f"{image_tag(answer.image, answer.truth)}<figcaption>{text(told)} {mark}{truth}</figcaption>")
    right = sum(answer.is_right for answer in answers)
    return paragraph(f"“{question}” {right} of the {len(answers)} answers shown are right.") + cards(shown, narrow=True)


def _language(check: LanguageCheck) -> str:
    told = (
        f"{check.num_prompts} texts went through the morph and through a freshly loaded copy of its language model: of "
        f"{check.num_logits:,} logits the largest absolute difference is {check.max_abs_diff:g}, and the weights are "
        f"{'bit for bit the same' if check.same_weights else 'not the same'}."
    )
    return paragraph(told)

"""One self-contained page about a run: scores, pictures, answers, curves. Opens offline, needs no script."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass, field
from html import escape

from PIL import Image

from diptych.evaluate.charts import line_chart

STYLE = """
:root { color-scheme: light dark; --ink: #1d2330; --soft: #667; --paper: #fff; --rule: #dde; --good: #23804d; --bad: #b3402a }
@media (prefers-color-scheme: dark) { :root { --ink: #e7e9f0; --soft: #9aa; --paper: #14171f; --rule: #333a48;
  --good: #5cc48b; --bad: #ef8570 } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 1080px;
  margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.7rem; margin-bottom: 0 } h2 { font-size: 1.15rem; margin-top: 2.4rem }
p.lead, .note { color: var(--soft) }
table { border-collapse: collapse; width: 100% } th, td { text-align: left; padding: .35rem .6rem; border-bottom: 1px solid var(--rule) }
td.number { font-variant-numeric: tabular-nums }
.good { color: var(--good) } .bad { color: var(--bad) }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(156px, 1fr)); gap: .8rem }
figure { margin: 0; border: 1px solid var(--rule); border-radius: 8px; padding: .5rem; background: #fff; color: #1d2330 }
figure .pair { display: flex; gap: 4px } figure .pair img { width: 50% } figure img { width: 100%; image-rendering: auto }
figcaption { font-size: .78rem; line-height: 1.3; margin-top: .3rem }
svg { width: 100%; max-width: 640px; height: auto } svg text { font-size: 11px; fill: var(--soft) } svg .rule { stroke: var(--rule) }
.wide img { max-width: 100%; background: #fff }
"""


@dataclass(frozen=True)
class ScoreRow:
    """One line of the table of scores. `goal`: None where none was set; `met`: None where it cannot be said."""

    name: str
    value: str
    detail: str
    goal: str = ""
    met: bool | None = None


@dataclass(frozen=True)
class Drawing:
    """A prompt, what was drawn, the real picture, and whether it was retrieved first."""

    prompt: str
    drawn: Image.Image
    real: Image.Image
    is_right: bool


@dataclass(frozen=True)
class Answer:
    question: str
    image: Image.Image
    answer: str
    truth: str
    is_right: bool


@dataclass(frozen=True)
class Report:
    """Everything on the page, in the order in which it is shown."""

    title: str
    lead: str
    scores: list[ScoreRow]
    drawings: list[Drawing]
    held_out_drawings: list[Drawing]
    answers: list[Answer]
    held_out_answers: list[Answer]
    losses: dict[str, list[tuple[float, float]]]
    speed: dict[str, list[tuple[float, float]]]
    grids: list[tuple[str, Image.Image]] = field(default_factory=list)
    facts: dict[str, str] = field(default_factory=dict)
    settings: str = ""


def render_report(report: Report) -> str:
    """The page as HTML; pictures are inside it."""
    body = [
        f"<h1>{escape(report.title)}</h1><p class=lead>{escape(report.lead)}</p>",
        "<h2>Scores</h2>" + _scores(report.scores),
        "<h2>Drawn from a prompt (left) beside the real picture (right)</h2>" + _drawings(report.drawings),
        "<h2>Combinations of concept and style never trained on</h2>" + _drawings(report.held_out_drawings),
        "<h2>Asked about a picture</h2>" + _answers(report.answers),
        "<h2>Asked about pictures of combinations never trained on</h2>" + _answers(report.held_out_answers),
        "<h2>Loss</h2>" + line_chart(dict(report.losses), x_label="minutes", y_label="loss"),
        "<h2>Speed</h2>" + line_chart(dict(report.speed), x_label="minutes", y_label="samples a second"),
        "<h2>The same prompts during training</h2>" + _grids(report.grids),
        "<h2>Run</h2>" + _facts(report.facts),
        f"<details><summary>Recipe</summary><pre>{escape(report.settings)}</pre></details>",
    ]
    head = f"<meta charset=utf-8><meta name=viewport content='width=device-width'><title>{escape(report.title)}</title>"
    return f"<!doctype html><html lang=en><head>{head}<style>{STYLE}</style></head><body>{''.join(body)}</body></html>"


def embed_image(image: Image.Image) -> str:
    """An <img> with the picture inside."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return f'<img alt="" src="data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}">'


def _scores(rows: list[ScoreRow]) -> str:
    lines = []
    for row in rows:
        mark = "" if row.met is None else f" class={'good' if row.met else 'bad'}"
        lines.append(
            f"<tr><td>{escape(row.name)}</td><td class=number><b{mark}>{escape(row.value)}</b></td>"
            f"<td class=number>{escape(row.goal)}</td><td class=note>{escape(row.detail)}</td></tr>"
        )
    return f"<table><tr><th>what</th><th>reached</th><th>goal</th><th></th></tr>{''.join(lines)}</table>"


def _drawings(drawings: list[Drawing]) -> str:
    figures = [
        f"<figure><div class=pair>{embed_image(d.drawn)}{embed_image(d.real)}</div><figcaption>{escape(d.prompt)} "
        f"<span class={'good' if d.is_right else 'bad'}>{'✓' if d.is_right else '✗'}</span></figcaption></figure>"
        for d in drawings
    ]
    return f"<div class=grid>{''.join(figures)}</div>" if figures else "<p class=note>none</p>"


def _answers(answers: list[Answer]) -> str:
    figures = [
        f"<figure>{embed_image(a.image)}<figcaption>{escape(a.question)}<br><b class={'good' if a.is_right else 'bad'}>"
        f"{escape(a.answer) or '(nothing)'}</b>{'' if a.is_right else f'<br>is: {escape(a.truth)}'}</figcaption></figure>"
        for a in answers
    ]
    return f"<div class=grid>{''.join(figures)}</div>" if figures else "<p class=note>none</p>"


def _grids(grids: list[tuple[str, Image.Image]]) -> str:
    pictures = [f"<p class=note>{escape(name)}</p><div class=wide>{embed_image(grid)}</div>" for name, grid in grids]
    return "".join(pictures) or "<p class=note>none were drawn</p>"


def _facts(facts: dict[str, str]) -> str:
    lines = [f"<tr><td>{escape(name)}</td><td>{escape(value)}</td></tr>" for name, value in facts.items()]
    return f"<table>{''.join(lines)}</table>"

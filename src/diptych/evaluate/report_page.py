"""Pieces of an HTML page: everything inline, everything escaped, light and dark."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from html import escape

from PIL import Image

STYLE = """
:root { color-scheme: light dark; --paper: #fcfcfa; --ink: #24292e; --soft: #6a737d; --rule: #e3e4e0; --card: #ffffff;
  --line: #2f6f9f; --line-1: #c2571a; --line-2: #3d8b4f; --line-3: #8a4fa8; --line-4: #a8862a; --line-5: #b83a5e;
  --good: #1a7f4b; --good-back: #e4f4ea; --bad: #9a4a12; --bad-back: #fbeee2; }
@media (prefers-color-scheme: dark) { :root { --paper: #16191d; --ink: #dfe3e8; --soft: #98a2ad; --rule: #30363d;
  --card: #1e2329; --line: #79b8e8; --line-1: #f0995c; --line-2: #7fcf92; --line-3: #c99be2; --line-4: #dcc067;
  --line-5: #f08aa6; --good: #7fd6a4; --good-back: #173625; --bad: #f0b483; --bad-back: #43280f; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.55 system-ui, sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 40px 24px 80px; }
h1 { font-size: 30px; line-height: 1.2; margin: 0 0 8px; }
h3 { font-size: 16px; margin: 28px 0 10px; }
h2 { font-size: 20px; margin: 48px 0 12px; padding-top: 16px; border-top: 1px solid var(--rule); }
.summary { color: var(--soft); font-size: 17px; max-width: 760px; margin: 0; }
p { max-width: 760px; } p.note, small { color: var(--soft); } p.note { font-size: 15px; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: 15px; }
th, td { text-align: right; padding: 8px 12px; border-bottom: 1px solid var(--rule); white-space: nowrap; }
th:first-child, td:first-child { text-align: left; white-space: normal; padding-left: 0; min-width: 150px; }
.words th, .words td { text-align: left; white-space: normal; vertical-align: top; overflow-wrap: anywhere; }
.words td { min-width: 90px; max-width: 320px; }
th { color: var(--soft); font-weight: 500; font-size: 14px; }
.score { font-variant-numeric: tabular-nums; font-weight: 600; }
.badge { display: inline-block; border-radius: 9px; padding: 0 7px; font-size: 12px; line-height: 18px;
  white-space: nowrap; }
.good { color: var(--good); background: var(--good-back); } .bad { color: var(--bad); background: var(--bad-back); }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(188px, 1fr)); gap: 12px; }
.cards.narrow { grid-template-columns: repeat(auto-fill, minmax(124px, 1fr)); }
.cards figure { margin: 0; padding: 10px; background: var(--card); border: 1px solid var(--rule); border-radius: 8px;
  text-align: center; }
.cards img { width: 80px; height: 80px; border-radius: 4px; background: #fff; object-fit: contain; }
.pair { display: flex; flex-wrap: wrap; justify-content: center; gap: 6px; }
.pair span { display: flex; flex-direction: column; } .pair small { font-size: 11px; line-height: 14px; }
figcaption { font-size: 13px; line-height: 1.4; overflow-wrap: anywhere; }
.cards figcaption { margin-top: 5px; }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(420px, 100%), 1fr)); gap: 20px; }
.charts figure { margin: 0; } .chart { width: 100%; height: auto; }
.chart .line { fill: none; stroke: var(--own); stroke-width: 2; stroke-linejoin: round; }
.chart .faint { fill: none; stroke: var(--own); stroke-width: 1; opacity: .3; } .line.dashed { stroke-dasharray: 6 4; }
.chart .point { fill: var(--own); }
.series-0 { --own: var(--line); } .series-1 { --own: var(--line-1); } .series-2 { --own: var(--line-2); }
.series-3 { --own: var(--line-3); } .series-4 { --own: var(--line-4); } .series-5 { --own: var(--line-5); }
.legend { display: flex; flex-wrap: wrap; gap: 2px 18px; font-size: 14px; max-width: none; }
.key { display: inline-block; width: 22px; vertical-align: middle; margin-right: 6px;
  border-top: 3px solid var(--own); }
.key.dashed { border-top-style: dashed; }
.chart .whisker { stroke: var(--line); stroke-width: 2; } .chart .dot { fill: var(--line); }
.chart .tick { stroke: var(--soft); stroke-width: 1.5; }
.chart .diamond { fill: var(--paper); stroke: var(--soft); stroke-width: 1.2; }
.chart .rule { stroke: var(--rule); } .chart .label { fill: var(--soft); font-size: 12px; }
.grid { margin: 0 0 16px; } .grid img { max-width: 100%; height: auto; border-radius: 6px; }
dl { display: grid; grid-template-columns: minmax(120px, max-content) 1fr; gap: 4px 20px; font-size: 15px; }
dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; } code { font-size: 13px; }
details { margin-top: 12px; } summary { cursor: pointer; }
pre { background: var(--card); border: 1px solid var(--rule); border-radius: 8px; padding: 14px; overflow-x: auto;
  font-size: 13px; line-height: 1.45; }
@media (max-width: 560px) { main { padding: 24px 14px 48px; } h1 { font-size: 25px; }
  .cards { grid-template-columns: repeat(auto-fill, minmax(150px, 1fr)); gap: 8px; }
  .cards img { width: 62px; height: 62px; } th, td { padding: 7px 8px; } dl { grid-template-columns: 1fr; gap: 0; }
  dd { margin-bottom: 8px; } }
"""
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def page(title: str, summary: str, body: str) -> str:
    """A whole document. Its content policy forbids the browser to fetch anything."""
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{text(title)}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}"><style>{STYLE}</style></head>'
        f'<body><main><h1>{text(title)}</h1><p class="summary">{text(summary)}</p>{body}</main></body></html>\n'
    )


def text(content: str) -> str:
    return escape(content, quote=True)


def section(title: str, body: str) -> str:
    return f"<section><h2>{text(title)}</h2>{body}</section>"


def paragraph(content: str) -> str:
    return f'<p class="note">{text(content)}</p>'


def table(header: Sequence[str], rows: Sequence[Sequence[str]], *, is_words: bool = False) -> str:
    """Cells of `rows` are HTML; those of `header` are text. `is_words`: lines break, and stand at the left."""
    head = "".join(f"<th>{text(cell)}</th>" for cell in header)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    kind = ' class="words"' if is_words else ""
    return f'<div class="scroll"><table{kind}><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def badge(content: str, is_good: bool) -> str:
    return f'<span class="badge {"good" if is_good else "bad"}">{text(content)}</span>'


def cards(contents: Sequence[str], *, narrow: bool = False) -> str:
    """Figures in a grid; contents are HTML."""
    figures = "".join(f"<figure>{content}</figure>" for content in contents)
    return f'<div class="cards{" narrow" if narrow else ""}">{figures}</div>'


def image_row(images: Sequence[tuple[str, Image.Image, str]]) -> str:
    """Images side by side: the word below each, the image, its description."""
    spans = "".join(f"<span>{image_tag(image, told)}<small>{text(word)}</small></span>" for word, image, told in images)
    return f'<div class="pair">{spans}</div>'


def image_pair(real: Image.Image, drawn: Image.Image, prompt: str) -> str:
    """What was drawn beside the real image."""
    return image_row([("real", real, f"real: {prompt}"), ("drawn", drawn, prompt)])


def definition_list(entries: Mapping[str, str], *, is_code: bool = False) -> str:
    mark = ("<code>", "</code>") if is_code else ("", "")
    rows = "".join(f"<dt>{text(key)}</dt><dd>{mark[0]}{text(value)}{mark[1]}</dd>" for key, value in entries.items())
    return f"<dl>{rows}</dl>"


def details(summary: str, body: str) -> str:
    return f"<details><summary>{text(summary)}</summary>{body}</details>"


def image_tag(image: Image.Image, description: str) -> str:
    """An image with its PNG inside the page."""
    data = io.BytesIO()
    image.save(data, format="PNG", optimize=True)
    encoded = base64.b64encode(data.getvalue()).decode("ascii")
    return (
        f'<img src="data:image/png;base64,{encoded}" alt="{text(description)}" width="{image.width}" '
        f'height="{image.height}">'
    )


def grids(named: Sequence[tuple[str, Image.Image]]) -> str:
    """Wide images, one below the other, each under its name."""
    return "".join(
        f'<figure class="grid"><figcaption>{text(name)}</figcaption>{image_tag(grid, name)}</figure>'
        for name, grid in named
    )


def code(content: str) -> str:
    return f"<pre>{text(content)}</pre>"

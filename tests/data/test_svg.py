"""Laws of rendering drawings: square, on white, and blind to everything outside the file."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from diptych.data.svg import MAX_SVG_BYTES, render_svg

SVG = (
    '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
    'viewBox="0 0 {box}">{body}</svg>'
)
RECTANGLE = '<rect id="r" width="100%" height="100%" fill="#ff0000"/>'


def drawing(tmp_path: Path, body: str, box: str = "10 10") -> Path:
    path = tmp_path / "drawing.svg"
    path.write_text(SVG.format(box=box, body=body), encoding="utf-8")
    return path


def test_a_drawing_fills_its_square_on_white(tmp_path: Path) -> None:
    image = render_svg(drawing(tmp_path, '<circle cx="5" cy="5" r="3" fill="#ff0000"/>'), 64)
    assert image.size == (64, 64)
    assert image.mode == "RGB"
    assert image.getpixel((32, 32)) == (255, 0, 0)
    assert image.getpixel((1, 1)) == (255, 255, 255)


@pytest.mark.parametrize("box", ["10 1000", "1000 10", "1 1000000"])
def test_an_extreme_aspect_stays_inside_the_square(tmp_path: Path, box: str) -> None:
    image = render_svg(drawing(tmp_path, RECTANGLE, box), 64)
    assert image.size == (64, 64)
    assert image.getpixel((2, 2)) == (255, 255, 255)


@pytest.mark.parametrize(
    "body", ['<use href="#r"/>', '<use xlink:href="#r"/>', '<rect width="5" height="5" fill="url(#g)"/>']
)
def test_references_inside_the_file_are_followed(tmp_path: Path, body: str) -> None:
    assert render_svg(drawing(tmp_path, RECTANGLE + body), 16).getpixel((12, 12)) == (255, 0, 0)


def test_no_reference_leaves_the_file(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8), "lime").save(tmp_path / "canary.png")
    canary = tmp_path / "canary.png"
    bodies = [
        f'<image href="{canary}" width="10" height="10"/>',
        '<image href="canary.png" width="10" height="10"/>',
        f'<image xlink:href="file://{canary}" width="10" height="10"/>',
        '<image href="http://127.0.0.1:9/a.png" width="10" height="10"/>',
        '<image href="data:image/png;base64,AAAA" width="10" height="10"/>',
        f'<filter id="f"><feImage href="{canary}"/></filter><rect width="9" height="9" filter="url(#f)"/>',
        '<use href="other.svg#a"/>',
        '<use href=" \n other.svg#a"/>',
        '<rect width="5" height="5" fill="url(other.svg#g)"/>',
        '<rect width="5" height="5" style="fill:URL( &quot;http://a/b#g&quot; )"/>',
        "<style>@import url(http://127.0.0.1/a.css);</style>",
        "<script>alert(1)</script>",
        "<foreignObject><p/></foreignObject>",
        '<text x="1" y="5">font</text>',
    ]
    for body in bodies:
        with pytest.raises(ValueError, match=r"drawing\.svg"):
            render_svg(drawing(tmp_path, body), 16)


def test_entities_are_never_expanded(tmp_path: Path) -> None:
    path = tmp_path / "drawing.svg"
    for declaration in ('<!DOCTYPE svg [<!ENTITY a SYSTEM "file:///etc/passwd">]>', "<!doctype svg>"):
        path.write_text(declaration + SVG.format(box="1 1", body=""))
        with pytest.raises(ValueError, match="document type"):
            render_svg(path, 16)
    path.write_bytes(('<?xml version="1.0" encoding="UTF-16"?>' + SVG.format(box="1 1", body="")).encode("utf-16"))
    with pytest.raises(ValueError, match="not UTF-8"):
        render_svg(path, 16)


@pytest.mark.parametrize(
    "text", ["", "<svg", "no drawing", "<html/>", "<svg xmlns='http://www.w3.org/2000/svg'><g></svg>"]
)
def test_what_is_no_drawing_is_refused_by_name(tmp_path: Path, text: str) -> None:
    (tmp_path / "drawing.svg").write_text(text)
    with pytest.raises(ValueError, match=r"drawing\.svg"):
        render_svg(tmp_path / "drawing.svg", 16)


def test_missing_and_huge_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot be read"):
        render_svg(tmp_path / "none.svg", 16)
    (tmp_path / "huge.svg").write_bytes(b" " * (MAX_SVG_BYTES + 1))
    with pytest.raises(ValueError, match="larger than"):
        render_svg(tmp_path / "huge.svg", 16)

"""SVG drawings rendered without following any reference out of the file."""

from __future__ import annotations

import io
import re
from pathlib import Path
from xml.etree import ElementTree

from PIL import Image

MAX_SVG_BYTES = 4_000_000
_FORBIDDEN_ELEMENTS = {"image", "feImage", "script", "foreignObject", "text", "style"}


def render_svg(path: str | Path, size: int, *, only_layers: str = "") -> Image.Image:
    """Renders an SVG file to size x size pixels, RGB, its aspect kept, centred on white.

    Only self-contained drawings are rendered: no entities, images, scripts, style sheets or text (fonts differ between
    machines), no reference but to the file's own elements. Raises ValueError that names the file otherwise, or
    if it is missing, larger than MAX_SVG_BYTES, or not SVG. `only_layers`: of the drawing's top groups, only those
    whose id begins so are drawn (OpenMoji's "line"); a drawing without one is refused too.
    """
    path = Path(path)
    try:
        data = path.read_bytes() if path.stat().st_size <= MAX_SVG_BYTES else None
    except OSError as error:
        raise ValueError(f"drawing {path} cannot be read: {error.strerror}") from error
    if data is None:
        raise ValueError(f"drawing {path} is larger than {MAX_SVG_BYTES} bytes")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"drawing {path} is not UTF-8 text") from None
    root = _refuse_references(path, text)
    if only_layers:
        text = _keep_layers(path, root, only_layers)
    import resvg_py  # a compiled package that only the builders need

    try:
        png = resvg_py.svg_to_bytes(
            svg_string=text, width=size, height=size, background="#ffffff", skip_system_fonts=True
        )
    except ValueError as error:
        raise ValueError(f"drawing {path} cannot be rendered: {error}") from error
    with Image.open(io.BytesIO(bytes(png)), formats=("PNG",)) as image:
        drawn = image.convert("RGB")
    square = Image.new("RGB", (size, size), "white")
    square.paste(drawn, ((size - drawn.width) // 2, (size - drawn.height) // 2))
    return square


def _refuse_references(path: Path, text: str) -> ElementTree.Element:
    if re.search(r"<!(DOCTYPE|ENTITY)", text, re.IGNORECASE):
        raise ValueError(f"drawing {path} declares a document type or entities, which are not read")
    try:
        root = ElementTree.fromstring(text)
    except (ElementTree.ParseError, ValueError) as error:
        raise ValueError(f"drawing {path} is not valid SVG: {error}") from None
    if _local(root.tag) != "svg":
        raise ValueError(f"drawing {path} is not SVG: its root is <{_local(root.tag)}>")
    for element in root.iter():
        if _local(element.tag) in _FORBIDDEN_ELEMENTS:
            raise ValueError(f"drawing {path} holds <{_local(element.tag)}>, which is not rendered")
        for name, value in element.attrib.items():
            outside = _local(name) == "href" and not value.strip().startswith("#")
            outside = outside or re.search(r"url\(\s*['\"]?\s*(?!#)[^'\"\s]", value, re.IGNORECASE) is not None
            if outside:
                raise ValueError(f"drawing {path} refers to {value!r}, outside itself")
    return root


def _keep_layers(path: Path, root: ElementTree.Element, start: str) -> str:
    groups = [child for child in root if _local(child.tag) == "g"]
    dropped = [group for group in groups if not group.get("id", "").startswith(start)]
    if len(dropped) == len(groups):
        raise ValueError(f"drawing {path} has no layer {start!r}")
    for group in dropped:
        root.remove(group)
    return ElementTree.tostring(root, encoding="unicode")


def _local(name: object) -> str:
    return str(name).rpartition("}")[2]

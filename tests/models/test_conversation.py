"""Laws of conversations: text stays text, an image is the same however it comes, and what is neither is refused."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from diptych.models.conversation import parse_conversation


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    """Half transparent, on its side by EXIF."""
    pixels = np.random.RandomState(0).randint(0, 255, (8, 8, 4), dtype=np.uint8)
    image = Image.fromarray(pixels)
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "cat.png", exif=exif)
    return tmp_path / "cat.png"


def parse(*content: Any) -> tuple[tuple[Any, ...], list[torch.Tensor]]:
    messages, pixels = parse_conversation([{"role": "user", "content": list(content)}], image_size=8)
    return messages[0].parts, pixels


def test_an_image_is_the_same_however_it_comes(picture: Path) -> None:
    data = base64.b64encode(picture.read_bytes()).decode()
    with Image.open(picture) as opened:
        given = [
            picture,
            str(picture),
            opened,
            {"type": "image", "image": opened},
            {"type": "image", "image": str(picture)},
            {"type": "image_url", "image_url": {"url": str(picture)}},
            {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}},
        ]
        parts, pixels = parse(*given)
    assert parts == tuple(range(len(given)))
    for other in pixels[1:]:
        assert torch.equal(other, pixels[0])


def test_what_is_said_to_be_text_is_text_whatever_files_there_are(
    picture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(picture.parent)
    assert parse({"type": "text", "text": "cat.png"}) == (("cat.png",), [])
    messages, pixels = parse_conversation([{"role": "user", "content": "cat.png"}], image_size=8)
    assert (messages[0].parts, pixels) == (("cat.png",), [])


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ([{"type": "image_url", "image_url": {"url": "https://a.b/c.png"}}], "is not fetched"),
        ([{"type": "image_url", "image_url": {"url": "data:image/png,abc"}}], "must be base64"),
        ([{"type": "image_url", "image_url": {"url": "data:image/png;base64,@@"}}], "is no base64"),
        ([{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}], "none of PNG"),
        ([{"type": "input_audio", "input_audio": {}}], "type 'input_audio' is not known"),
        ([{"type": "image"}], "type 'image' is not known"),
        ([7], "holds int"),
        (["a", {"type": "image", "image": "/nowhere.png"}], "/nowhere.png does not exist"),
    ],
)
def test_what_is_neither_text_nor_an_image_is_refused(content: list[Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        parse(*content)


@pytest.mark.parametrize("conversation", [[{"role": "user"}], [{"content": "a"}], ["Draw."]])
def test_a_message_must_be_whole(conversation: list[Any]) -> None:
    with pytest.raises(ValueError, match="must have a role and a content"):
        parse_conversation(conversation, image_size=8)


def test_a_user_must_have_spoken() -> None:
    with pytest.raises(ValueError, match="at least one user message"):
        parse_conversation([{"role": "system", "content": "Be kind."}], image_size=8)


def test_pillow_images_in_memory_are_put_on_white(picture: Path) -> None:
    clear = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    _, (pixels,) = parse(clear)
    assert torch.equal(pixels, torch.ones(3, 8, 8))
    buffer = io.BytesIO()
    clear.save(buffer, format="PNG")
    url = f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    _, (decoded,) = parse({"type": "image_url", "image_url": url})
    assert torch.equal(decoded, pixels)

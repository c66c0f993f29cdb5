"""`diptych generate`: an answer of texts and images is told in its own order, and its options are those that exist."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner

from diptych import cli
from diptych.models import checkpoint
from diptych.models.flow_decoder import FlowDenoiser
from diptych.models.stable_diffusion_decoder import StableDiffusionDenoiser


class Answering:
    """In place of a morph: answers what it is told to."""

    def __init__(self, parts: list[str | Image.Image]) -> None:
        self.parts = parts

    def generate(self, messages: Any, **options: Any) -> list[str | Image.Image]:
        del messages, options
        return self.parts


def generate(monkeypatch: pytest.MonkeyPatch, out: Path, *parts: str | Image.Image) -> list[str]:
    monkeypatch.setattr(checkpoint, "load_morph", lambda *_, **__: Answering(list(parts)))
    result = CliRunner().invoke(cli.app, ["generate", "morph", "Draw two.", "--out", str(out)])
    assert result.exit_code == 0, result.stderr
    return result.stdout.splitlines()


def picture(colour: str) -> Image.Image:
    return Image.new("RGB", (4, 4), colour)


def test_texts_and_images_are_told_in_the_order_of_the_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = ("First:", picture("red"), "and then:", picture("blue"), "Done.")
    first, second = "image-0.png", "image-1.png"
    told = generate(monkeypatch, tmp_path, *parts)
    assert told == ["First:", str(tmp_path / first), "and then:", str(tmp_path / second), "Done."]
    written = (tmp_path / "text.txt").read_text(encoding="utf-8")
    assert written.splitlines() == ["First:", first, "and then:", second, "Done."]
    colours = []
    for name in (first, second):
        with Image.open(tmp_path / name) as image:
            colours.append(image.getpixel((0, 0)))
    assert colours == [(255, 0, 0), (0, 0, 255)]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--temperature", "0.5"], "--temperature is of --do-sample"),
        (["--top-p", "0.5"], "--top-p is of --do-sample"),
        (["--num-images", "2", "--generation-mode", "text"], "--num-images is of drawings"),
    ],
)
def test_an_option_that_would_change_nothing_is_refused(options: list[str], said: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(cli.app, ["generate", "emoji-dual", "Draw.", "--out", str(tmp_path / "out"), *options])
    assert result.exit_code == 2
    assert said in result.stderr
    assert not (tmp_path / "out").exists()


def test_an_answer_of_one_kind_is_written_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert generate(monkeypatch, tmp_path / "drawn", picture("red")) == [str(tmp_path / "drawn" / "image-0.png")]
    assert not (tmp_path / "drawn" / "text.txt").exists()
    assert generate(monkeypatch, tmp_path / "said", "A cat.") == ["A cat."]
    assert (tmp_path / "said" / "text.txt").read_text(encoding="utf-8") == "A cat.\n"


def test_help_names_every_sampler() -> None:
    result = CliRunner().invoke(cli.app, ["generate", "--help"], env={"COLUMNS": "200", "TERM": "dumb"})
    assert result.exit_code == 0
    told = result.stdout[result.stdout.index("--sampler") : result.stdout.index("--negative-prompt")]
    for name in (*FlowDenoiser.samplers, *StableDiffusionDenoiser.samplers):
        assert name in told

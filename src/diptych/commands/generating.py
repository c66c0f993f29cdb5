"""`diptych generate`: draw from a prompt, or answer a question about images."""

from __future__ import annotations

import os
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer


class Mode(StrEnum):
    auto = "auto"
    text = "text"
    image = "image"


def generate(
    morph: Annotated[
        str, typer.Argument(metavar="MORPH", help="A folder written by train, a carried name, or a Hub id.")
    ],
    prompt: Annotated[str, typer.Argument(help="What to draw, or a question about the images.")],
    image: Annotated[
        list[Path] | None, typer.Option(help="An image of the prompt; may be given several times.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for image-0.png ... and text.txt.")] = Path("generated"),
    num_images: Annotated[int, typer.Option(min=1, help="How many images to draw.")] = 1,
    guidance_scale: Annotated[
        float | None, typer.Option(help="1: no guidance; left out: as the morph was trained to be sampled.")
    ] = None,
    num_inference_steps: Annotated[int | None, typer.Option(min=1, help="Denoising steps.")] = None,
    negative_prompt: Annotated[str, typer.Option(help="What to guide away from.")] = "",
    seed: Annotated[int, typer.Option(help="The same seed gives the same images.")] = 0,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Length of a text answer at most.")] = 64,
    generation_mode: Annotated[
        Mode, typer.Option(help="auto: text where an image is given, otherwise images.")
    ] = Mode.auto,
    language_model: Annotated[
        str | None, typer.Option(help="Where the base language model lies, if not where the morph says.")
    ] = None,
) -> None:
    """Draw images from a prompt; with --image, answer in text. Writes into --out, and prints the text."""
    if not prompt.strip():
        raise ValueError('the prompt is empty; say what to draw, such as "Draw a red apple in 3D style."')
    images = image or []
    for path in images:
        if not path.is_file():
            raise ValueError(f"--image {path} does not exist")
    _prepare(out)
    from diptych.models.checkpoint import load_morph

    loaded = load_morph(morph, language_model=language_model)
    content: list[Any] = [{"type": "text", "text": f"{prompt}\n" if images else prompt}, *images]
    parts = loaded.generate(
        [{"role": "user", "content": content}],
        generation_mode=generation_mode.value,
        num_images=num_images,
        guidance_scale=guidance_scale,
        num_inference_steps=num_inference_steps,
        negative_prompt=negative_prompt,
        seed=seed,
        max_new_tokens=max_new_tokens,
    )
    texts = [part for part in parts if isinstance(part, str)]
    pictures = [part for part in parts if not isinstance(part, str)]
    for number, picture in enumerate(pictures):
        path = out / f"image-{number}.png"
        picture.save(path)
        print(path)
    if texts:
        text = "\n".join(texts)
        (out / "text.txt").write_text(text + "\n", encoding="utf-8")
        print(text)


def _prepare(out: Path) -> None:
    """Finds out before minutes of work whether the folder can be written."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"--out {out} cannot be made: {error.strerror}; give another folder") from error
    if not os.access(out, os.W_OK):
        raise ValueError(f"--out {out} cannot be written to; give another folder")

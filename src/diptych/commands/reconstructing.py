"""`diptych reconstruct`: image encoder to pixel decoder, without the language model between them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer

from diptych.commands.output_folder import prepare_output

SHEET = "reconstructions.png"


def reconstruct(
    morph: Annotated[
        str, typer.Argument(metavar="MORPH", help="A pixel decoder, or a VPiT morph that has one: folder or Hub id.")
    ],
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="Images to encode and draw again.")],
    out: Annotated[Path, typer.Option(help=f"Folder for NAME-reconstructed.png and {SHEET}.")] = Path("reconstructed"),
    guidance_scale: Annotated[
        float | None, typer.Option(help="1: no guidance; left out: as the decoder was trained to be sampled.")
    ] = None,
    num_inference_steps: Annotated[int | None, typer.Option(min=1, help="Denoising steps.")] = None,
    seed: Annotated[int, typer.Option(help="The same seed gives the same images.")] = 0,
) -> None:
    """Draw images again from their visual tokens alone: what a pixel decoder can do, apart from the language model."""
    from diptych.data.contact_sheet import draw_image_grid
    from diptych.data.images import image_to_tensor, open_image, tensor_to_image

    opened = [open_image(path) for path in images]
    prepare_output(out)
    from diptych.models.pixel_decoder import load_pixel_decoder

    decoder = load_pixel_decoder(morph)
    pictures = decoder.reconstruct(
        opened, guidance_scale=guidance_scale, num_inference_steps=num_inference_steps, seed=seed
    )
    for name, picture in zip(_file_names(images), pictures, strict=True):
        picture.save(out / name)
        print(out / name)
    size = decoder.recipe.image_size
    real = [tensor_to_image(image_to_tensor(image, size)) for image in opened]
    pairs = [picture for pair in zip(real, pictures, strict=True) for picture in pair]
    captions = [text for path in images for text in (path.name, "reconstructed")]
    draw_image_grid(pairs, captions, columns=2 * min(4, len(images)), cell=max(128, size)).save(out / SHEET)
    print(out / SHEET)


def _file_names(images: Iterable[Path]) -> list[str]:
    """NAME-reconstructed.png; images of one name in several folders are numbered."""
    names: list[str] = []
    for path in images:
        name, number = f"{path.stem}-reconstructed.png", 2
        while name in names:
            name, number = f"{path.stem}-{number}-reconstructed.png", number + 1
        names.append(name)
    return names

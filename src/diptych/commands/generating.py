"""`diptych generate`: draw from a prompt, or answer a question about images."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from diptych.commands.morph_options import LanguageModel, PixelDecoderName, TrustRemoteCode
from diptych.commands.output_folder import prepare_output


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
    out: Annotated[
        Path, typer.Option(help="Folder for image-0.png ... and text.txt, which names them in their places.")
    ] = Path("generated"),
    num_images: Annotated[int, typer.Option(min=1, help="How many images to draw.")] = 1,
    guidance_scale: Annotated[
        float | None, typer.Option(help="1: no guidance; left out: as the morph was trained to be sampled.")
    ] = None,
    image_guidance_scale: Annotated[
        float, typer.Option(help="Of an edit: above 1 keeps closer to the images given. Needs a morph trained for it.")
    ] = 1.0,
    visual_guidance_scale: Annotated[
        float, typer.Option(help="Of a VPiT morph: guidance of its visual tokens. Needs a morph trained for it.")
    ] = 1.0,
    num_inference_steps: Annotated[int | None, typer.Option(min=1, help="Denoising steps.")] = None,
    sampler: Annotated[
        str | None,
        typer.Option(
            help="euler or heun; of a Stable Diffusion pixel decoder pndm, ddim, dpm or euler. Left out: as the morph "
            "was trained to be sampled, Stable Diffusion as its base is."
        ),
    ] = None,
    negative_prompt: Annotated[str, typer.Option(help="What to guide away from.")] = "",
    seed: Annotated[int, typer.Option(help="The same seed gives the same images.")] = 0,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Length of a text answer at most.")] = 64,
    do_sample: Annotated[
        bool, typer.Option("--do-sample", help="Draw text at random; otherwise the likeliest token is taken.")
    ] = False,
    temperature: Annotated[float, typer.Option(help="Of --do-sample: below 1 less random.")] = 1.0,
    top_p: Annotated[float, typer.Option(help="Of --do-sample: only tokens of this share of the probability.")] = 1.0,
    generation_mode: Annotated[
        Mode,
        typer.Option(
            help="auto: a VPiT morph decides itself; an X-Fusion morph answers in text where an image is given, "
            "otherwise in images."
        ),
    ] = Mode.auto,
    language_model: LanguageModel = None,
    trust_remote_code: TrustRemoteCode = False,
    pixel_decoder: PixelDecoderName = None,
) -> None:
    """Draw images from a prompt; with --image, answer in text. Writes into --out, and prints texts and images' paths in
    the order of the answer.

    With --image and --generation-mode image a morph that was trained to edit draws a changed image.
    """
    if not prompt.strip():
        raise ValueError('the prompt is empty; say what to draw, such as "Draw a red apple in 3D style."')
    if not do_sample and (temperature != 1 or top_p != 1):
        raise ValueError(
            f"{'--temperature' if temperature != 1 else '--top-p'} is of --do-sample; add that, or leave it out"
        )
    if num_images > 1 and generation_mode is Mode.text:
        raise ValueError("--num-images is of drawings, and --generation-mode text draws none; leave one of the two out")
    images = image or []
    for path in images:
        if not path.is_file():
            raise ValueError(f"--image {path} does not exist")
    prepare_output(out)
    from diptych.models.checkpoint import load_morph

    loaded = load_morph(
        morph, language_model=language_model, pixel_decoder=pixel_decoder, trust_remote_code=trust_remote_code
    )
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
        image_guidance_scale=image_guidance_scale,
        visual_guidance_scale=visual_guidance_scale,
        sampler=sampler,
        do_sample=do_sample,
        temperature=temperature,
        top_p=top_p,
    )
    lines: list[str] = []
    num_drawn = 0
    for part in parts:
        if isinstance(part, str):
            lines.append(part)
            print(part)
            continue
        name = f"image-{num_drawn}.png"
        num_drawn += 1
        part.save(out / name)
        lines.append(name)
        print(out / name)
    if len(lines) > num_drawn:
        (out / "text.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    if not parts:
        print("note: the answer is empty", file=sys.stderr)

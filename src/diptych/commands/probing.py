"""`diptych probe`: what a linear classifier reads off each layer of a morph's vision tower."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer


def probe(
    morph: Annotated[str, typer.Argument(metavar="MORPH", help="A morph of method xfusion: folder, name or Hub id.")],
    data: Annotated[Path, typer.Option(help="A built emoji set.")] = Path("data/emoji"),
    label: Annotated[str, typer.Option(help="What is told from an image: group, subgroup, style.")] = "group",
    noise: Annotated[float, typer.Option(min=0, max=1, help="Time that the latents are noised to; 0: clean.")] = 0.0,
    num: Annotated[int | None, typer.Option(min=50, help="So many images at most; a fifth is tested.")] = None,
    seed: Annotated[int, typer.Option(help="Of the split and the noise.")] = 0,
    out: Annotated[Path | None, typer.Option(help="A JSON file for the scores.")] = None,
) -> None:
    """Classify images linearly by the states behind every block of the vision tower, on concepts held out."""
    from rich.console import Console
    from rich.progress import Progress

    from diptych.evaluate.linear_probe import probe_emoji
    from diptych.models.checkpoint import load_morph

    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
    loaded = load_morph(morph)
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("images through the tower", total=None)
        scores = probe_emoji(
            loaded,
            data,
            label=label,
            noise=noise,
            num=num,
            seed=seed,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    some = next(iter(scores.values()))
    print(
        f"{label} of {some.num} images of concepts that the classifier never saw; to say what is commonest among the "
        f"others is right of {some.chance:.1%}"
    )
    for name, score in scores.items():
        low, high = score.interval
        print(f"  {name:<10} {score.value:6.1%}  ({low:.1%} to {high:.1%})")
    if out is not None:
        details = {"morph": morph, "data": str(data), "label": label, "noise": noise, "seed": seed}
        values = {name: score.as_dict() for name, score in scores.items()}
        out.write_text(json.dumps(details | {"scores": values}, indent=2) + "\n", encoding="utf-8")

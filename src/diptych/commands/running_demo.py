"""`diptych demo`: the main job at small scale, from nothing to a report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def demo(
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Settings of the recipe to change, such as seed=1."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the run, its report and its morph; left out: the recipe's.")
    ] = None,
    method: Annotated[str, typer.Option(help="Which method to train: xfusion or vpit.")] = "xfusion",
    minutes: Annotated[float | None, typer.Option(min=0.01, help="Training time; left out: the recipe's.")] = None,
    num_concepts: Annotated[int | None, typer.Option(min=2, help="How many emoji concepts.")] = None,
) -> None:
    """Teach SmolLM2 to draw and name emoji in minutes on two cores, and write a report. Resumes if stopped."""
    from diptych.studies.demo import run_demo

    raise typer.Exit(
        run_demo(out, method=method, minutes=minutes, num_concepts=num_concepts, overrides=overrides or [])
    )

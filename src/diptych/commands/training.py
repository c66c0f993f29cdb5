"""`diptych train` and `diptych inspect`: run a recipe, or say what it would cost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from diptych.config import Recipe as Settings

Recipe = Annotated[str, typer.Argument(metavar="RECIPE", help="A YAML file such as recipes/demo.yaml.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings to change, such as train.max_steps=100.")
]


def train(recipe: Recipe, overrides: Overrides = None) -> None:
    """Train what a recipe says. Ctrl-C saves and stops; train.resume_from_checkpoint=latest goes on from there.

    Several processes: torchrun --nproc-per-node 2 -m diptych train RECIPE
    """
    from diptych.config import load_recipe
    from diptych.stages import expand_stages

    stages = expand_stages(load_recipe(recipe, overrides or []))
    from diptych.distributed import free_memory, on_main, process_group

    with process_group():
        from diptych.commands.checking_stages import check_sources, check_stages

        if len(stages) == 1:  # before models are fetched for it; what else it needs is told as it is built
            on_main(lambda: check_sources(stages[0]), what="looking into the sources")
        else:
            on_main(lambda: check_stages(stages), what="looking for what the stages need")
        for stage in stages:
            exit_code = _train_one(stage)
            if exit_code:
                raise typer.Exit(exit_code)
            free_memory()  # before the next stage builds its model


def _train_one(recipe: Settings) -> int:
    """Gives the exit code. Nothing holds the model when it returns."""
    from diptych.distributed import main_first, on_main
    from diptych.models.registry import build_method
    from diptych.studies.training_record import train_with_record
    from diptych.train.checkpoint import refuse_overwriting

    if recipe.train.resume_from_checkpoint is None:  # what would be overwritten is told before anything is loaded
        folder = Path(recipe.output_dir) / "checkpoints"
        on_main(lambda: refuse_overwriting(folder), what=f"looking into {folder}")
    with main_first():  # the first to build fills the caches that the others then read
        method: Any = build_method(recipe)
    return train_with_record(method.recipe, method).exit_code


def inspect(
    recipe: Recipe,
    overrides: Overrides = None,
    assume: Annotated[
        float | None,
        typer.Option(
            "--gflops", help="Speed to reckon with, in GFLOP/s; left out: measured on this machine.", min=0.001
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="A JSON file to write the numbers into, one entry a stage.")] = None,
) -> None:
    """Say what a recipe costs: parameters and who trains, FLOPs per token by part, memory, expected time."""
    from diptych.config import load_recipe
    from diptych.stages import expand_stages

    stages = expand_stages(load_recipe(recipe, overrides or []))
    from diptych.models.accounts.recipe_account import account_recipe
    from diptych.models.accounts.run_account import measure_matmul_rate
    from diptych.models.checkpoint import check_start

    accounts = []
    for stage in stages:
        account = account_recipe(stage)
        settings = account.recipe
        check_start(settings)
        rate = assume * 1e9 if assume is not None else measure_matmul_rate(account.dtype)
        if len(stages) > 1:
            print(f"stage that writes into {settings.output_dir}")
        if settings.vision_tower != stage.vision_tower:
            chosen = settings.vision_tower
            other, asked = stage.vision_tower.match_to, stage.vision_tower.match
            design = "dual" if other is None else other.layer_design
            print(
                f"matched to the {asked} of a {design} tower: hidden_size {chosen.hidden_size}, intermediate_size "
                f"{chosen.intermediate_size}"
            )
        print(account.describe(rate, measured=assume is None))
        accounts.append({"recipe": settings.model_dump(mode="json"), **account.as_dict()})
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(accounts, indent=2) + "\n", encoding="utf-8")

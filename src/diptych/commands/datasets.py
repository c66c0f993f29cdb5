"""`diptych data`: build a data set, look at one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from diptych.commands.training import Overrides, Recipe

app = typer.Typer(help="Build data sets, and look at them.", no_args_is_help=True)
build_app = typer.Typer(help="Build a data set from embedded assets.", no_args_is_help=True)
app.add_typer(build_app, name="build")


@build_app.command("emoji")
def build_emoji(
    out: Annotated[Path, typer.Option(help="Folder to write to.")],
    num_concepts: Annotated[int | None, typer.Option(min=1, help="How many concepts; left out: all.")] = None,
    num_unseen: Annotated[int, typer.Option(min=0, help="Concepts that training never shows, to be tested on.")] = 0,
    prompt_kind: Annotated[
        list[str] | None, typer.Option(help="What prompts are made of: name, tags; may be given twice.")
    ] = None,
) -> None:
    """Emoji in two styles (Fluent 3D, OpenMoji flat) with names, tags and questions; some style of some is held out."""
    from diptych.backbones.assets import asset_path
    from diptych.data.builders.emoji import build_emoji as build

    with progress_bars() as report:
        built = build(
            out,
            openmoji_folder=asset_path("openmoji"),
            fluent_folder=asset_path("fluent-emoji-3d"),
            emojibase_folder=asset_path("emojibase-data"),
            num_concepts=num_concepts,
            num_unseen=num_unseen,
            prompt_kinds=tuple(prompt_kind or ["name"]),
            progress=report,
        )
    print(f"{built.summary()}; what is in it: {out / 'card.md'}")


@build_app.command("emoji-tasks")
def build_emoji_tasks(
    out: Annotated[Path, typer.Option(help="Folder to write to.")],
    emoji: Annotated[Path, typer.Option(help="A built emoji set.")] = Path("data/emoji"),
    num_samples: Annotated[int, typer.Option(min=1, help="Training samples of each task.")] = 4000,
) -> None:
    """Editing, painting, localisation and questions on scenes, made from a built emoji set; some concepts held out."""
    from diptych.data.builders.emoji_tasks import build_emoji_tasks as build

    with progress_bars() as report:
        built = build(out, emoji_folder=emoji, num_samples=num_samples, progress=report)
    print(f"{built.summary()}; what is in it: {out / 'card.md'}")


@contextmanager
def progress_bars() -> Iterator[Callable[[str, int, int], None]]:
    """A bar for each thing that is reported: what, how many done, of how many."""
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bars:
        tasks: dict[str, Any] = {}

        def report(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total)
            bars.update(tasks[what], completed=done)

        yield report


@app.command("show")
def show(
    what: Annotated[Path, typer.Argument(metavar="DIR|RECIPE", help="A folder with .jsonl files, or a recipe.")],
    num: Annotated[int, typer.Option(min=1, help="How many samples; with --tokens, of each source.")] = 8,
    out: Annotated[Path | None, typer.Option(help="The picture; left out: contact-sheet.png in DIR.")] = None,
    tokens: Annotated[
        bool, typer.Option("--tokens", help="Print the samples as tokens instead, those with loss marked.")
    ] = False,
) -> None:
    """Draw a contact sheet of samples, or print their tokens (--tokens, of a recipe), so that a person can look."""
    if tokens:
        from diptych.commands.checking_data import show_tokens
        from diptych.config import load_recipe

        show_tokens(load_recipe(what), num=num)
        return
    from diptych.data.contact_sheet import draw_folder_sheet, draw_recipe_sheet

    if what.suffix in (".yaml", ".yml"):
        from diptych.config import load_recipe

        sheet, path = draw_recipe_sheet(load_recipe(what).data, num), out or Path("contact-sheet.png")
    else:
        sheet, path = draw_folder_sheet(what, num), out or what / "contact-sheet.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path, format="PNG")
    print(path)


@app.command("validate")
def validate(
    recipe: Recipe,
    overrides: Overrides = None,
    held_out: Annotated[
        list[Path] | None,
        typer.Option(help="Samples that training must not show; left out: held_out* and unseen* beside the sources."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="A JSON file for the counts and problems.")] = None,
) -> None:
    """Read everything that a recipe would train on, and say what is wrong with it; exits with 2 if anything is."""
    from diptych.commands.checking_data import validate as check
    from diptych.config import load_recipe

    with progress_bars() as report:
        check(load_recipe(recipe, overrides or []), held_out=held_out or [], out=out, progress=report)

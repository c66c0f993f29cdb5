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
    from diptych.data.builders.emoji import build_emoji as build

    with progress_bars() as report:
        built = build(
            out,
            **_emoji_folders(),
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
    num_concepts: Annotated[int | None, typer.Option(min=1, help="How many concepts; left out: all.")] = None,
    held_out_fraction: Annotated[
        float, typer.Option(min=0, max=1, help="Share of them never trained on, between 0 and 1.")
    ] = 0.1,
) -> None:
    """Editing, painting, localisation, questions, naming, made from a built emoji set; some concepts held out."""
    from diptych.data.builders.emoji_tasks import build_emoji_tasks as build

    with progress_bars() as report:
        built = build(
            out,
            emoji_folder=emoji,
            num_samples=num_samples,
            num_concepts=num_concepts,
            held_out_fraction=held_out_fraction,
            progress=report,
        )
    print(f"{built.summary()}; what is in it: {out / 'card.md'}")


@build_app.command("emoji-scenes")
def build_emoji_scenes(
    out: Annotated[Path, typer.Option(help="Folder to write to.")],
    emoji: Annotated[Path, typer.Option(help="A built emoji set of all concepts.")] = Path("data/emoji"),
    num_samples: Annotated[int, typer.Option(min=0, help="Training samples.")] = 6000,
) -> None:
    """Scenes to be drawn from words: two things, several, in a colour, one beside another; some facts held out."""
    from diptych.data.builders.scene_prompts import build_emoji_scenes as build

    with progress_bars() as report:
        built = build(out, emoji_folder=emoji, num_samples=num_samples, progress=report)
    _tell(built)


_CLIP_ASSETS = tuple(f"fluent-emoji-anim-{number}" for number in range(1, 5))
Out = Annotated[Path, typer.Option(help="Folder to write to.")]
NumSamples = Annotated[int, typer.Option(min=1, help="Training samples; a tenth as many in each held-out file.")]
NumConcepts = Annotated[int, typer.Option(min=1, help="How many everyday concepts.")]
NumClips = Annotated[int, typer.Option(min=1, help="How many clips.")]
PerClip = Annotated[int, typer.Option(min=1, help="Samples tried at each clip.")]


def _gallery_source(num_concepts: int, report: Callable[[str, int, int], None]) -> Any:
    from diptych.data.builders.concept_gallery import GallerySource

    return GallerySource(**_emoji_folders(), num_concepts=num_concepts, progress=report)


def _emoji_folders() -> dict[str, Any]:
    from diptych.backbones.assets import asset_path
    from diptych.data.builders.emoji import PACKAGES

    return {argument: asset_path(name) for argument, name in PACKAGES.items()}


def _clip_source(num_clips: int, report: Callable[[str, int, int], None]) -> Any:
    from diptych.backbones.assets import asset_path
    from diptych.data.builders.clip_library import ClipSource

    folders = tuple(asset_path(name) for name in _CLIP_ASSETS)
    return ClipSource(folders, asset_path("emojibase-data"), num_clips=num_clips, progress=report)


def _build_of(source: Callable[..., Any], num: int, build: Callable[[Any], Any]) -> None:
    with progress_bars() as report:
        built = build(source(num, report))
    _tell(built)


def _tell(built: Any) -> None:
    print(f"{built.summary()}; what is in it: {built.folder / 'card.md'}")


@build_app.command("image-qa")
def build_image_qa(out: Out, num_samples: NumSamples = 4000, num_concepts: NumConcepts = 300) -> None:
    """Questions on emoji and scenes: names, kinds, keywords, counting, position."""
    from diptych.data.builders.image_qa import build_image_qa as build

    _build_of(_gallery_source, num_concepts, lambda source: build(out, source, num_samples=num_samples))


@build_app.command("generation")
def build_generation(out: Out, num_samples: NumSamples = 4000, num_concepts: NumConcepts = 300) -> None:
    """Emoji to be drawn from names and tags, in several wordings."""
    from diptych.data.builders.drawing_prompts import build_generation as build

    _build_of(_gallery_source, num_concepts, lambda source: build(out, source, num_samples=num_samples))


@build_app.command("visual-thinking")
def build_visual_thinking(out: Out, num_samples: NumSamples = 2000, num_concepts: NumConcepts = 300) -> None:
    """Scenes; the answer zooms in or draws boxes first."""
    from diptych.data.builders.visual_thinking import build_visual_thinking as build

    _build_of(_gallery_source, num_concepts, lambda source: build(out, source, num_samples=num_samples))


@build_app.command("image-to-image")
def build_image_to_image(out: Out, num_samples: NumSamples = 3000, num_concepts: NumConcepts = 300) -> None:
    """Pictures changed as asked: style, colour; add, move, remove."""
    from diptych.data.builders.image_to_image import build_image_to_image as build

    _build_of(_gallery_source, num_concepts, lambda source: build(out, source, num_samples=num_samples))


@build_app.command("text-only")
def build_text_only(out: Out, num_samples: NumSamples = 2000, num_concepts: NumConcepts = 300) -> None:
    """Instructions without pictures, made by rule."""
    from diptych.data.builders.text_instructions import build_text_instructions as build

    _build_of(_gallery_source, num_concepts, lambda source: build(out, source, num_samples=num_samples))


@build_app.command("video-qa")
def build_video_qa(out: Out, num_clips: NumClips = 200, per_clip: PerClip = 6) -> None:
    """Questions on clips of animated emoji: name, kind, what comes next."""
    from diptych.data.builders.video_qa import build_video_qa as build

    _build_of(_clip_source, num_clips, lambda source: build(out, source, samples_per_clip=per_clip))


@build_app.command("pure-video")
def build_pure_video(out: Out, num_clips: NumClips = 200, per_clip: PerClip = 6) -> None:
    """Clips of animated emoji: what comes later, before, between, in which order."""
    from diptych.data.builders.pure_video import build_pure_video as build

    _build_of(_clip_source, num_clips, lambda source: build(out, source, samples_per_clip=per_clip))


@build_app.command("easy-vqa")
def build_easy_vqa(out: Out) -> None:
    """easy-VQA: questions on one coloured shape, with its own test split."""
    from diptych.backbones.assets import asset_path, find_asset
    from diptych.data.builders.easy_vqa import build_easy_vqa as build

    version = find_asset("easy-vqa").version
    with progress_bars() as report:
        built = build(out, easy_vqa_folder=asset_path("easy-vqa"), version=version, progress=report)
    _tell(built)


@build_app.command("six-types")
def build_six_types(out: Out, num_concepts: NumConcepts = 300, num_clips: NumClips = 200) -> None:
    """All of MetaMorph's six data types and text, a set each, and six-types.yaml that mixes them."""
    from diptych.backbones.assets import asset_path
    from diptych.data.builders.six_types import FRAGMENT_NAME
    from diptych.data.builders.six_types import build_six_types as build

    with progress_bars() as report:
        every = build(
            out,
            gallery=_gallery_source(num_concepts, report),
            clips=_clip_source(num_clips, report),
            easy_vqa_folder=asset_path("easy-vqa"),
            progress=report,
        )
    for built in every:
        _tell(built)
    print(f"the data part of a recipe that mixes them: {out / FRAGMENT_NAME}")


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

        show_tokens(load_recipe(what, ["output_dir=unused"]), num=num)
        return
    from diptych.data.contact_sheet import draw_folder_sheet, draw_recipe_sheet

    if what.suffix in (".yaml", ".yml"):
        from diptych.config import load_recipe

        sheet = draw_recipe_sheet(load_recipe(what, ["output_dir=unused"]).data, num)
        path = out or Path("contact-sheet.png")
    else:
        sheet, path = draw_folder_sheet(what, num), out or what / "contact-sheet.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path, format="PNG")
    print(path)


@app.command("encode")
def encode(recipe: Recipe, overrides: Overrides = None) -> None:
    """Compute what no training changes (latents, features, frozen text), once, for all runs; goes on where it stopped.

    Several processes share the samples: torchrun --nproc-per-node 2 -m diptych data encode RECIPE
    """
    from diptych.commands.encoding_data import encode as run
    from diptych.config import load_recipe

    settings = load_recipe(recipe, overrides or [])
    with progress_bars() as report:
        run(settings, progress=report)


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
        settings = load_recipe(recipe, ["output_dir=unused", *(overrides or [])])  # a mixture alone names none
        check(settings, held_out=held_out or [], out=out, progress=report)

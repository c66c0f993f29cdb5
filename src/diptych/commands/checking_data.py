"""`diptych data validate` and the tokens of `diptych data show`: what a training would make of a recipe's data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diptych.config import Recipe
    from diptych.data.validation import SourceReport


def validate(recipe: Recipe, *, held_out: list[Path], out: Path | None, progress: Any) -> None:
    """Prints counts by source and problem. Raises ValueError, at the end, if there is any problem."""
    from diptych.data.held_out import open_held_out
    from diptych.data.sources import open_sources
    from diptych.data.validation import validate_sources
    from diptych.models.sample_tokens import stream_builder

    built = stream_builder(recipe)
    others = held_out or _held_out_beside(recipe)
    reports = validate_sources(
        open_sources(recipe.data),
        held_out=[source for path in others for source in open_held_out(path, recipe.data)],
        build_stream=None if built is None else built[0],
        progress=progress,
    )
    _print(reports)
    print(f"compared with held-out samples of: {', '.join(map(str, others))}" if others else "no held-out files given")
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps([report.as_dict() for report in reports], indent=2) + "\n", encoding="utf-8")
    bad = sum(report.num_bad for report in reports)
    if bad:
        total = sum(report.num_records for report in reports)
        raise ValueError(
            f"{bad} of {total} samples have a problem; correct them: training learns from those of kinds roles and "
            f"held out as they are, skips the others, and stops where these are more than data.max_bad_fraction "
            f"{recipe.data.max_bad_fraction:g} (of a thousand samples at least), or a hundred in a row"
        )


def show_tokens(recipe: Recipe, *, num: int) -> None:
    """Prints some samples of every source as the tokens that training makes of them; what carries loss is marked, and a
    sample of which none can be made is named. No image is opened: `validate` does that."""
    from diptych.data.sources import naming_sample, open_sources
    from diptych.models.sample_tokens import describe_tokens, stream_builder

    built = stream_builder(recipe)
    if built is None:
        raise ValueError(f"method {recipe.method} learns from images alone; there are no tokens to show")
    build, tokenizer = built
    for source in open_sources(recipe.data):
        for number in range(0, len(source), max(1, len(source) // num))[:num]:
            try:
                with naming_sample(source, number) as sample:
                    stream = build(sample)
            except ValueError as error:
                print(f"{error}: training skips it")
                continue
            print(f"{source.where(number)}: {len(stream)} tokens")
            for loss, text in describe_tokens(stream, tokenizer):
                print(f"  {'loss' if loss else '    '} | {text}")


def _held_out_beside(recipe: Recipe) -> list[Path]:
    """Files beside the sources whose names say that they are held out."""
    own = {Path(source.path).resolve() for source in recipe.data.sources}
    folders = dict.fromkeys(path.parent for path in sorted(own))
    names = ("held_out*.jsonl", "unseen*.jsonl")
    found = [path for folder in folders for name in names for path in sorted(folder.glob(name))]
    return [path for path in found if path not in own and path.stat().st_size]


def _print(reports: list[SourceReport]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("source", "records", "good", "images read", "drawn", "tokens", "with loss", "longest")
    for report in reports:
        numbers = (report.num_records, report.num_samples, report.context_images, report.target_images)
        tokens = (report.tokens, report.supervised_tokens, report.longest)
        table.add_row(report.name, *(f"{number:,}" for number in (*numbers, *tokens)))
    console = Console(width=None)
    console.print(table)
    for report in reports:
        if report.shared_images:
            console.print(f"{report.name}: {report.shared_images:,} of its images stand in held-out samples too")
        for kind, (count, examples) in sorted(report.problems.items()):
            console.print(f"{report.name}: {kind}: {count:,} samples", style="bold", highlight=False)
            for example in examples:
                console.print(f"  {example}", highlight=False, markup=False)

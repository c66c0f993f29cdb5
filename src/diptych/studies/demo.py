"""The main job: real pictures, a frozen LLM that learns to draw and to name them, and a page that shows how well."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import diptych
from diptych.backbones.assets import asset_path
from diptych.config import Recipe, load_recipe
from diptych.data.builders.emoji import build_emoji
from diptych.models.checkpoint import load_morph
from diptych.models.registry import build_method
from diptych.studies.demo_evaluation import evaluate_demo
from diptych.train.loop import run_training

Progress = Callable[[str, int, int], None]


def run_demo(
    out: str | Path = "runs/demo",
    *,
    minutes: float | None = None,
    num_concepts: int | None = None,
    overrides: Sequence[str] = (),
    asset_folders: dict[str, Path] | None = None,
) -> int:
    """Builds the data, trains, evaluates, writes `out`/report.html and `out`/scores.json. Returns the exit code.

    Whatever is there already is not done again: data, checkpoints (training resumes), a finished morph. Ctrl-C while
    training keeps what was learnt and gives 130. `asset_folders`: in place of the fetched openmoji, fluent-emoji-3d and
    emojibase-data packages.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    out, console = Path(out), Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())

    def with_bar(run: Callable[[Any], Any]) -> Any:
        with Progress(*columns, console=console, transient=True) as bars:
            tasks: dict[str, Any] = {}

            def report(what: str, done: int, total: int) -> None:
                if what not in tasks:
                    tasks[what] = bars.add_task(what, total=total)
                bars.update(tasks[what], completed=done, total=total)

            return run(report)

    console.print("[bold]1/3[/bold] the pictures")
    folders = asset_folders or {name: asset_path(name) for name in ("openmoji", "fluent-emoji-3d", "emojibase-data")}
    built = with_bar(
        lambda report: build_emoji(
            out / "data",
            openmoji_folder=folders["openmoji"],
            fluent_folder=folders["fluent-emoji-3d"],
            emojibase_folder=folders["emojibase-data"],
            num_concepts=num_concepts or 200,
            progress=report,
        )
    )
    console.print(built.summary())
    recipe = demo_recipe(out, minutes=minutes, overrides=overrides)

    console.print("[bold]2/3[/bold] training (Ctrl-C keeps what was learnt; the same command goes on)")
    finished = out / "training.json"
    if finished.is_file():
        console.print(f"already trained: {out / 'morph'}")
    else:
        result = run_training(recipe, build_method(recipe))
        if result.interrupted:
            console.print(f"stopped after step {result.step}, saved; run the same command again to go on")
            return result.exit_code
        summary = {
            "steps": result.step,
            "train_seconds": result.train_seconds,
            "samples_per_second": result.samples_per_second,
            "loader_wait": result.loader_wait,
        }
        _write(finished, json.dumps(summary, indent=2) + "\n")

    console.print("[bold]3/3[/bold] evaluation: every trained combination is drawn and named")
    training = json.loads(finished.read_text(encoding="utf-8"))
    morph = load_morph(out / "morph")
    scores, page = with_bar(lambda report: evaluate_demo(out, morph, recipe, training=training, progress=report))
    _write(out / "scores.json", json.dumps(scores, indent=2) + "\n")
    _write(out / "report.html", page)
    print(_summary(scores))
    print(f"report: {out / 'report.html'}")
    return 0


def demo_recipe(out: Path, *, minutes: float | None = None, overrides: Sequence[str] = ()) -> Recipe:
    """recipes/demo.yaml with the run's own folders; resumes where checkpoints lie."""
    sources = [
        {"path": str(out / "data" / "train_draw.jsonl"), "weight": 2},
        {"path": str(out / "data" / "train_read.jsonl"), "weight": 1},
    ]
    settings = [f"output_dir={json.dumps(str(out))}", f"data.sources={json.dumps(sources)}"]
    if minutes is not None:
        settings.append(f"train.max_train_minutes={minutes}")
    if any((out / "checkpoints").glob("step-*")):
        settings.append("train.resume_from_checkpoint=latest")
    return load_recipe(find_recipe("demo.yaml"), [*settings, *overrides])


def find_recipe(name: str) -> Path:
    """A recipe that comes with Diptych: inside the package, or beside it in a checkout."""
    package = Path(diptych.__file__).parent
    for root in (package / "recipes", package.parent.parent / "recipes"):
        if (root / name).is_file():
            return root / name
    raise ValueError(
        f"recipe {name} is not with this installation of Diptych; install it again, or run from a checkout"
    )


def _summary(scores: dict[str, Any]) -> str:
    lines = [
        f"drawn from its name, right concept first      {scores['retrieval_top1']:.1%} (chance {scores['chance']['retrieval_top1']:.1%})",
        f"... among the first five                      {scores['retrieval_top5']:.1%}",
        f"... in combinations never trained on, first   {scores['retrieval_held_out_top1']:.1%}",
        f"named exactly                                 {scores['naming_exact']:.1%}",
        f"... in combinations never trained on          {scores['naming_held_out']:.1%}",
        f"text-only logits, difference to the base LLM  {scores['language_max_abs_diff']:g}",
        f"trained for                                   {scores['train_seconds'] / 60:.1f} minutes",
    ]
    return "\n".join(lines)


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)

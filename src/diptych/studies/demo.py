"""The main job: real images, an LLM that learns to draw and to name them, and a page that shows how well."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

import diptych
from diptych.backbones.assets import asset_path
from diptych.backbones.language import LanguageModel
from diptych.backbones.weight_hash import hash_folder
from diptych.config import Recipe, load_recipe
from diptych.data.builders.emoji import PACKAGES, build_emoji
from diptych.evaluate.report import format_share, render_report
from diptych.models.accounts.width_matching import match_widths
from diptych.models.checkpoint import load_morph
from diptych.models.registry import build_method
from diptych.studies.demo_evaluation import Evaluation, collect_scores, evaluate_demo
from diptych.studies.demo_report import build_report, score_rows
from diptych.studies.stage_display import StageDisplay
from diptych.studies.training_record import RECORD, train_with_record
from diptych.train.durable import replace_file
from diptych.train.log import read_log
from diptych.train.progress import format_seconds

NUM_CONCEPTS = 200
NUM_UNSEEN = {"xfusion": 0, "vpit": 20}
"""Concepts more that training never shows, of each method that the demo knows."""
GO_ON = "the same command goes on from here"


def run_demo(
    out: str | Path | None = None,
    *,
    method: str = "xfusion",
    minutes: float | None = None,
    num_concepts: int | None = None,
    overrides: Sequence[str] = (),
    asset_folders: Mapping[str, Path] | None = None,
    encoder: Any = None,
) -> int:
    """Builds the data, trains, evaluates, writes `out`/report.html and `out`/scores.json. Returns the exit code.

    Whatever is there already is not done again: data, checkpoints (training resumes), a morph that was trained to its
    end with the same settings. Ctrl-C keeps what was learnt and gives 130. `out`: None is the method's recipe's own
    folder. `overrides`: `key=value` of the recipe.
    `asset_folders`: in place of the fetched packages, by their names. `encoder`: in place of EfficientNet-Lite0.
    Raises ValueError for whatever the user can mend.
    """
    recipe = demo_recipe(out, method=method, minutes=minutes, overrides=overrides)
    out = Path(recipe.output_dir)
    display = StageDisplay(num_stages=3)
    try:
        return _run(out, recipe, display, num_concepts or NUM_CONCEPTS, asset_folders, encoder)
    except KeyboardInterrupt:
        display.say(f"stopped; what was done is kept in {out}, and {GO_ON}")
        return 130


def _run(
    out: Path,
    recipe: Recipe,
    display: StageDisplay,
    num_concepts: int,
    asset_folders: Mapping[str, Path] | None,
    encoder: Any,
) -> int:
    display.stage(f"images: {num_concepts} concepts in two styles")
    folders: dict[str, Any] = {
        argument: asset_folders[name] if asset_folders else asset_path(name) for argument, name in PACKAGES.items()
    }
    with display.progress() as progress:
        built = build_emoji(
            out / "data",
            **folders,
            num_concepts=num_concepts,
            num_unseen=NUM_UNSEEN[recipe.method],
            progress=progress,
        )
    display.say(built.summary())
    recipe = match_widths(recipe)

    limit = recipe.train.max_train_minutes
    display.stage(f"training: {f'{limit:g} minutes' if limit else f'{recipe.train.max_steps} steps'} at most")
    language = None
    if _is_trained(out, recipe):
        display.say(f"already trained: {out / 'morph'}")
    else:
        display.say(f"Ctrl-C keeps what was learnt; {GO_ON}")
        exit_code, language = _train(out, recipe, display)
        if exit_code:
            return exit_code

    display.stage("evaluation: every combination of concept and style is drawn and named")
    if _is_evaluated(out, recipe):
        display.say("already evaluated; delete scores.json to do it again")
        print(f"report: {out / 'report.html'}")
        return 0
    training = json.loads((out / RECORD).read_text(encoding="utf-8"))
    morph = load_morph(out / "morph", language_model=language, trust_remote_code=recipe.trust_remote_code)
    with display.progress() as progress:
        evaluation = evaluate_demo(out / "data", morph, recipe, progress=progress, encoder=encoder)
    hashes = {"morph": hash_folder(out / "morph"), **morph.frozen_hashes()}
    scores = collect_scores(evaluation, recipe, training=training, hashes=hashes)
    report = build_report(out, evaluation, recipe, scores, read_log(out / "log.jsonl"))
    replace_file(out / "report.html", render_report(report).encode())
    replace_file(out / "scores.json", (json.dumps(scores, indent=2, allow_nan=False) + "\n").encode())
    _print_scores(display, evaluation, scores)
    print(f"report: {out / 'report.html'}")
    return 0


def demo_recipe(
    out: str | Path | None = None,
    *,
    method: str = "xfusion",
    minutes: float | None = None,
    overrides: Sequence[str] = (),
) -> Recipe:
    """The method's demo recipe with the run's own folders; resumes where checkpoints lie. Errors: see `load_recipe`."""
    if method not in NUM_UNSEEN:
        raise ValueError(f"there is no method {method!r}; the demo knows: {', '.join(NUM_UNSEEN)}")
    path = find_recipe("demo.yaml" if method == "xfusion" else f"demo-{method}.yaml")
    plain = load_recipe(path)
    out = Path(out or plain.output_dir)
    sources = [source.model_dump(mode="json") for source in plain.data.sources]
    for source in sources:
        if Path(source["path"]).is_relative_to(plain.output_dir):
            source["path"] = str(out / Path(source["path"]).relative_to(plain.output_dir))
    settings = [
        f"output_dir={json.dumps(str(out))}",
        f"data.sources={json.dumps(sources)}",
        "train.resume_from_checkpoint=latest",
    ]
    if minutes is not None:
        settings.append(f"train.max_train_minutes={minutes}")
    return load_recipe(path, [*settings, *overrides])


def find_recipe(name: str) -> Path:
    """A recipe that comes with Diptych: inside the package, or beside it in a checkout."""
    package = Path(diptych.__file__).parent
    for root in (package / "recipes", package.parent.parent / "recipes"):
        if (root / name).is_file():
            return root / name
    raise ValueError(
        f"recipe {name} is not with this installation of Diptych; install it again, or run from a checkout"
    )


def _is_trained(out: Path, recipe: Recipe) -> bool:
    """Whether training came to its end here, with what decides over it. With other settings it goes on."""
    if not (out / RECORD).is_file() or not (out / "morph" / "config.json").is_file():
        return False
    try:
        trained = dict(json.loads((out / RECORD).read_text(encoding="utf-8"))["recipe"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{out / RECORD} is damaged ({error}); delete it and run again") from error
    asked = recipe.model_dump(mode="json")
    return {**trained, "sample": None} == {**asked, "sample": None}


def _is_evaluated(out: Path, recipe: Recipe) -> bool:
    """Whether scores and report of this very morph, drawn with these settings, are there."""
    if not (out / "report.html").is_file() or not (out / "scores.json").is_file():
        return False
    try:
        scores = json.loads((out / "scores.json").read_text(encoding="utf-8"))
        evaluated, drawn_with = scores["hashes"]["morph"], scores["recipe"]["sample"]
    except (ValueError, KeyError, TypeError):
        return False  # damaged: written anew
    return evaluated == hash_folder(out / "morph") and drawn_with == recipe.sample.model_dump(mode="json")


def _train(out: Path, recipe: Recipe, display: StageDisplay) -> tuple[int, LanguageModel | None]:
    """Gives the exit code and the language model beside which was trained, so that it is this one that is checked."""
    method: Any = build_method(recipe)
    result = train_with_record(recipe, method)
    if result.interrupted:
        learnt = f"step {result.step}, {format_seconds(result.train_seconds)} of training"
        display.say(f"stopped; what was learnt ({learnt}) is kept in {out}, and {GO_ON}")
        return result.exit_code, None
    # VPiT trains the language model itself, so that this one is not the base any more.
    return 0, method.morph.language if recipe.method == "xfusion" else None


def _print_scores(display: StageDisplay, evaluation: Evaluation, scores: Mapping[str, Any]) -> None:
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    table.add_column()
    for name in ("reached", "n", "chance", "goal"):
        table.add_column(name, justify="right")
    if "trained" in evaluation.visual_tokens:
        cosine, goal = evaluation.visual_tokens["trained"].cosine.value, evaluation.goals["free_running_cosine"]
        table.add_row("Visual tokens, free running: cosine to the real ones", f"{cosine:.3f}", "", "", f"{goal:g}")
    for row in score_rows(evaluation, only_headlines=True):
        goal = "" if row.goal is None else f"{100 * row.goal:.0f}%"
        table.add_row(row.name, format_share(row.score.value), str(row.score.num), format_share(row.score.chance), goal)
    difference, goal = f"{scores['language_max_abs_diff']:g}", "0" if evaluation.keeps_language else ""
    table.add_row("Text-only logits: difference to the base LLM", difference, "", "", goal)
    table.add_row("Training", format_seconds(scores["train_seconds"]))
    display.print_out(table)

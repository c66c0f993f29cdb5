"""What the demo's page shows: which scores, which images, which words."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from PIL import Image

from diptych.config import Recipe
from diptych.data.builders.data_card import read_card
from diptych.data.builders.emoji import STYLE_WORDS
from diptych.data.images import image_to_tensor, tensor_to_image
from diptych.evaluate.curve_figures import Curve
from diptych.evaluate.emoji_gallery import BATCH_SIZE, ENCODER, Combination
from diptych.evaluate.naming import is_named
from diptych.evaluate.report import Answer, Drawing, Report, ScoreRow, TableSection, format_share
from diptych.evaluate.scores import Mean, Score
from diptych.studies.demo_evaluation import QUESTION, Evaluation, Outcome
from diptych.studies.run_files import open_grids
from diptych.studies.visual_token_evaluation import KINDS
from diptych.train.progress import format_seconds

NUM_DRAWINGS, NUM_ANSWERS, NUM_GRIDS = 48, 32, 6
HEADLINES = {
    "visual_top1": "Visual tokens, free running: right concept first",
    "retrieval_top1": "Drawing: right concept first",
    "retrieval_top5": "Drawing: right concept among the first five",
    "naming_exact": "Reading: exact name",
    "retrieval_held_out_top1": "Drawing held-out combinations: right concept first",
    "naming_held_out": "Reading held-out images: exact name",
}
OTHERS = {
    "retrieval_held_out_top5": "Drawing held-out combinations: among the first five",
    "style_right": "Drawing: style right",
    "style_right_held_out": "Drawing held-out combinations: style right",
}
CURVES = {
    "visual": ("Drawing: 1 - cosine of visual tokens", "loss", True),
    "flow": ("Drawing: flow-matching loss", "loss", False),
    "ce": ("Reading: cross-entropy of the answers", "nats per token", True),
}
TITLES = {
    "xfusion": "A frozen language model learns to draw and to read",
    "vpit": "A language model learns to predict images as it predicts words",
}
Pair = tuple[Combination, Outcome]


def build_report(
    out: Path, evaluation: Evaluation, recipe: Recipe, scores: Mapping[str, Any], log_rows: Sequence[Mapping[str, Any]]
) -> Report:
    """The report of the demo in the folder `out`."""
    num_concepts, size = evaluation.num_concepts, recipe.image_size
    trained = random.Random(0).sample(pairs := evaluation.pairs(held_out=False), len(pairs))
    held_out = random.Random(0).sample(pairs := evaluation.pairs(held_out=True), len(pairs))
    minutes, keeps = format_seconds(scores["train_seconds"]), evaluation.keeps_language
    return Report(
        title=TITLES[evaluation.method],
        summary=(
            f"{recipe.language_model}, {num_concepts} concepts in two styles, {minutes} of training on "
            f"{scores['trained_on']['device']}, {scores['trained_on']['cores']} cores. First the scores, then what it "
            f"drew and said, and {'the proof that its language is as it was' if keeps else 'how far its words moved'}."
        ),
        scores=score_rows(evaluation),
        language=evaluation.language,
        keeps_language=keeps,
        tables=_visual_tokens(evaluation),
        protocol=(
            "Drawing: each prompt is drawn once, and the image compared with the real images of all "
            f"{num_concepts} concepts in the same style, at {size} pixels, by the cosine of {ENCODER} features. Style "
            "right: the nearest real image of either style has the style that was asked for. Reading: the answer to "
            f"“{QUESTION}” is the exact name, but for case, punctuation and articles. Held-out combinations were never "
            "trained on. Intervals are Wilson's. The goals are for 200 concepts on two cores."
        ),
        question=QUESTION,
        drawings=[_drawing(pair, size) for pair in _whole_concepts(trained, NUM_DRAWINGS)],
        held_out_drawings=[_drawing(pair, size) for pair in held_out[:NUM_DRAWINGS]],
        answers=[_answer(pair, size) for pair in _with_mistakes(trained)],
        held_out_answers=[_answer(pair, size) for pair in held_out[:NUM_DRAWINGS]],
        curves=_curves(log_rows) + _measured(log_rows),
        grids=open_grids(out, NUM_GRIDS),
        facts=_facts(evaluation, recipe, scores),
        settings=yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True),
        licences=[
            f"{entry.source} {entry.version}, {entry.licence}, {entry.origin}: {entry.used_for}."
            for entry in read_card(out / "data").licences
        ],
    )


def score_rows(evaluation: Evaluation, *, only_headlines: bool = False) -> list[ScoreRow]:
    """The table of scores, headlines first, then each style alone."""
    table = evaluation.table
    rows = [
        ScoreRow(name, table[key], evaluation.goals.get(key), True) for key, name in HEADLINES.items() if key in table
    ]
    if only_headlines:
        return rows
    rows += [ScoreRow(name, table[key]) for key, name in OTHERS.items() if key in table]
    for style in sorted({combination.style for combination in evaluation.combinations}):
        for key, name in HEADLINES.items():
            if f"{key}_{style}" in table:
                rows.append(ScoreRow(f"{name}, {STYLE_WORDS.get(style, style)} style", table[f"{key}_{style}"]))
    return rows


def _drawing(pair: Pair, size: int) -> Drawing:
    combination, outcome = pair
    return Drawing(combination.prompt, outcome.drawn, _as_shown(combination, size), outcome.rank)


def _answer(pair: Pair, size: int) -> Answer:
    combination, outcome = pair
    right = is_named(outcome.answer, combination.concept)
    return Answer(_as_shown(combination, size), outcome.answer, combination.concept, right)


def _as_shown(combination: Combination, size: int) -> Image.Image:
    """The real image as the morph is shown it."""
    return tensor_to_image(image_to_tensor(combination.real, size))


def _whole_concepts(pairs: Sequence[Pair], num: int) -> list[Pair]:
    """About `num` pairs: concepts that are there in every style first, their styles side by side, then the others."""
    by_concept: dict[str, list[Pair]] = {}
    for pair in pairs:
        by_concept.setdefault(pair[0].concept, []).append(pair)
    num_styles = len({pair[0].style for pair in pairs})
    groups = [sorted(group, key=lambda pair: pair[0].style) for group in by_concept.values()]
    groups.sort(key=lambda group: len(group) < num_styles)
    return [pair for group in groups for pair in group][:num]


def _with_mistakes(pairs: Sequence[Pair]) -> list[Pair]:
    """The first NUM_ANSWERS, and then mistakes among the rest: where they are few, none is hidden."""
    mistakes = [pair for pair in pairs[NUM_ANSWERS:] if not is_named(pair[1].answer, pair[0].concept)]
    return [*pairs[:NUM_ANSWERS], *mistakes[: NUM_ANSWERS // 2]]


def _curves(log_rows: Sequence[Mapping[str, Any]]) -> list[Curve]:
    found = dict.fromkeys(name for row in log_rows for name in row["losses"])
    curves = []
    for name in sorted(found, key=lambda name: list(CURVES).index(name) if name in CURVES else len(CURVES)):
        title, label, is_log = CURVES.get(name, (name, "loss", False))
        points = [(row["train_seconds"] / 60, row["losses"][name]) for row in log_rows if name in row["losses"]]
        curves.append(Curve(title, label, {"": points}, is_log))
    speed = [(row["train_seconds"] / 60, row["samples_per_second"]) for row in log_rows]
    return [*curves, Curve("Speed of training", "samples per second", {"": speed})] if log_rows else []


def _measured(log_rows: Sequence[Mapping[str, Any]]) -> list[Curve]:
    """What the method measured beside its losses."""
    points = [
        (row["train_seconds"] / 60, row["measures"]["free_running_cosine"])
        for row in log_rows
        if "free_running_cosine" in row.get("measures", {})
    ]
    return [Curve("Drawing: free-running cosine, training prompts", "cosine", {"": points})] if points else []


def _visual_tokens(evaluation: Evaluation) -> list[TableSection]:
    rows = [
        [
            KINDS[kind],
            _mean_with_interval(score.cosine),
            _with_interval(score.top1),
            _with_interval(score.top5),
            f"{score.top1.num:,}",
            f"{format_share(score.top1.chance)}, {format_share(score.top5.chance)}",
        ]
        for kind, score in evaluation.visual_tokens.items()
    ]
    if not rows:
        return []
    words = (
        "Each visual token is predicted from the prompt and from what the recipe shows of those predicted before it, "
        "never from real ones. Cosine: to the real picture's visual tokens. "
        "First, and among the first five: of all real pictures of the style, by the same cosine. What was trained on "
        "is memory; the other rows are what it makes of requests that it never met."
    )
    columns = [
        "prompts",
        "cosine (95% interval)",
        "right first (95% interval)",
        "among five (95% interval)",
        "n",
        "chance",
    ]
    return [TableSection("Visual tokens, before any pixel", columns, rows, words)]


def _mean_with_interval(mean: Mean) -> str:
    low, high = mean.interval
    return f"{mean.value:.3f} ({low:.3f} to {high:.3f})"


def _with_interval(score: Score) -> str:
    low, high = score.interval
    return f"{format_share(score.value)} ({format_share(low)} to {format_share(high)})"


def _facts(evaluation: Evaluation, recipe: Recipe, scores: Mapping[str, Any]) -> dict[str, str]:
    sampling, machine, trained_on = evaluation.sampling, scores["machine"], scores["trained_on"]
    facts = {
        "training": f"{scores['steps']:,} steps in {format_seconds(scores['train_seconds'])}",
        "speed of training": f"{scores['samples_per_second']:.1f} samples per second, "
        f"{scores['loader_wait']:.2%} of the time waiting for data",
        "speed of drawing": f"{evaluation.speed['drawn_images_per_second']:.2f} images per second, "
        f"{sampling.num_inference_steps} {sampling.sampler} steps, guidance {sampling.guidance_scale:g}, "
        f"batches of {BATCH_SIZE}",
        "speed of reading": f"{evaluation.speed['answers_per_second']:.1f} answers per second",
        "machine": ", ".join(f"{value}" if key == "device" else f"{key} {value}" for key, value in machine.items()),
    }
    if trained_on != machine:
        facts["trained on"] = ", ".join(f"{key} {value}" for key, value in trained_on.items())
    hashes = {f"hash of {name.replace('_', ' ')}": value for name, value in scores["hashes"].items()}
    return facts | hashes | {"seeds": f"training {recipe.seed}, drawing {sampling.seed} and on, one for each batch"}

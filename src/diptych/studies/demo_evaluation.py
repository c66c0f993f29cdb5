"""Scores and page of the demo: every trained and every held-out combination is drawn from its name, and named."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from PIL import Image
from torch import Tensor

from diptych.backbones.language import load_language_model
from diptych.backbones.vision import load_image_encoder
from diptych.config import Recipe
from diptych.data.formats import Sample, read_samples
from diptych.data.images import image_to_tensor, open_image
from diptych.evaluate.language_check import check_language
from diptych.evaluate.machine import describe_machine
from diptych.evaluate.naming import ask_about_images, is_named
from diptych.evaluate.report import Answer, Drawing, Report, ScoreRow, render_report
from diptych.evaluate.retrieval import embed_images, retrieval_ranks, retrieval_score
from diptych.evaluate.scores import Score, share
from diptych.train.log import read_log

Progress = Callable[[str, int, int], None]
GOALS = {"retrieval_top1": 0.75, "retrieval_top5": 0.92, "naming_exact": 0.95}
NUM_SHOWN = 48


@dataclass(frozen=True)
class Combination:
    """One concept in one style: its prompt and its real picture."""

    concept: str
    style: str
    prompt: str
    real: Image.Image
    held_out: bool


@dataclass(frozen=True)
class Outcome:
    """What the morph made of a combination."""

    drawn: Image.Image
    rank: int
    answer: str


def evaluate_demo(
    out: Path, morph: Any, recipe: Recipe, *, training: dict[str, Any], progress: Progress, encoder: Any = None
) -> tuple[dict[str, Any], str]:
    """Scores (the contents of scores.json) and the page. `encoder`: what judges drawings; None: EfficientNet-Lite0."""
    combinations = read_combinations(out / "data")
    encoder = encoder or load_image_encoder("efficientnet-lite0")
    drawn = _draw(morph, combinations, progress)
    ranks = _rank(encoder, combinations, drawn)
    question = "\nWhat is this?"
    answers = ask_about_images(
        morph,
        [c.real for c in combinations],
        question,
        progress=lambda done, total: progress("asking about pictures", done, total),
    )
    outcomes = [Outcome(*made) for made in zip(drawn, ranks, answers, strict=True)]
    check = check_language(morph, load_language_model(recipe.language_model))
    table = score_outcomes(combinations, outcomes)
    scores: dict[str, Any] = {name: score.value for name, score in table.items()}
    scores |= {
        "language_max_abs_diff": check.max_abs_diff,
        "language_same_weights": check.same_weights,
        "train_seconds": training["train_seconds"],
        "samples_per_second": training["samples_per_second"],
        "loader_wait": training["loader_wait"],
        "steps": training["steps"],
        "num_concepts": len({c.concept for c in combinations}),
        "chance": {name: score.chance for name, score in table.items()},
        "details": {name: score.as_dict() for name, score in table.items()},
        "goals": GOALS,
        "sampling": recipe.sample.model_dump(mode="json", exclude={"prompts"}),
        "hashes": morph.frozen_hashes(),
        "machine": describe_machine(),
    }
    return scores, _page(out, recipe, combinations, outcomes, table, scores)


def read_combinations(data: Path) -> list[Combination]:
    """Trained combinations, then held-out ones, of a built emoji set."""
    combinations = []
    for name in ("train_draw.jsonl", "held_out_draw.jsonl"):
        if (data / name).is_file() and (data / name).stat().st_size:
            combinations += [_combination(data, sample) for sample in read_samples(data / name)]
    return combinations


def score_outcomes(combinations: list[Combination], outcomes: list[Outcome]) -> dict[str, Score]:
    """Retrieval within the gallery of real pictures of the prompt's style; naming among all concepts."""
    galleries = {style: sum(c.style == style for c in combinations) for style in {c.style for c in combinations}}
    size = min(galleries.values())
    num_concepts = len({c.concept for c in combinations})
    pairs = list(zip(combinations, outcomes, strict=True))
    trained = [(c, o) for c, o in pairs if not c.held_out]
    held_out = [(c, o) for c, o in pairs if c.held_out]
    table: dict[str, Score] = {}
    for suffix, chosen in (("", trained), ("_held_out", held_out)):
        if not chosen:
            continue
        ranks = [o.rank for _, o in chosen]
        named = share([is_named(o.answer, c.concept) for c, o in chosen], chance=1 / num_concepts)
        table[f"retrieval{suffix}_top1"] = retrieval_score(ranks, top=1, gallery_size=size)
        table[f"retrieval{suffix}_top5"] = retrieval_score(ranks, top=5, gallery_size=size)
        table["naming_held_out" if suffix else "naming_exact"] = named
    for style in sorted(galleries):
        ranks = [o.rank for c, o in trained if c.style == style]
        if ranks:
            table[f"retrieval_top1_{style}"] = retrieval_score(ranks, top=1, gallery_size=galleries[style])
    return table


def _combination(data: Path, sample: Sample) -> Combination:
    prompt = "".join(part for part in sample.messages[0].parts if isinstance(part, str))
    real = open_image(sample.images[0], root=data)
    meta = sample.meta
    return Combination(meta["concept"], meta["style"], prompt, real, bool(meta["held_out"]))


def _draw(morph: Any, combinations: list[Combination], progress: Progress) -> list[Image.Image]:
    drawn: list[Image.Image] = []
    for start in range(0, len(combinations), 40):
        prompts = [[{"role": "user", "content": c.prompt}] for c in combinations[start : start + 40]]
        drawn += [answer[0] for answer in morph.generate_batch(prompts, generation_mode="image", seed=0)]
        progress("drawing every combination", len(drawn), len(combinations))
    return drawn


def _rank(encoder: Any, combinations: list[Combination], drawn: list[Image.Image]) -> list[int]:
    ranks = [0] * len(combinations)
    for style in sorted({c.style for c in combinations}):
        rows = [i for i, c in enumerate(combinations) if c.style == style]
        gallery = embed_images(encoder, _pixels([combinations[i].real for i in rows]))
        mine = embed_images(encoder, _pixels([drawn[i] for i in rows]))
        for row, rank in zip(rows, retrieval_ranks(mine, gallery, range(len(rows))), strict=True):
            ranks[row] = rank
    return ranks


def _pixels(images: list[Image.Image], size: int = 128) -> Tensor:
    return torch.stack([image_to_tensor(image, size) for image in images])


def _page(
    out: Path,
    recipe: Recipe,
    combinations: list[Combination],
    outcomes: list[Outcome],
    table: dict[str, Score],
    scores: dict[str, Any],
) -> str:
    pairs = list(zip(combinations, outcomes, strict=True))
    shuffled = random.Random(0).sample(pairs, len(pairs))
    trained = [pair for pair in shuffled if not pair[0].held_out][:NUM_SHOWN]
    held_out = [pair for pair in shuffled if pair[0].held_out][:NUM_SHOWN]
    rows = read_log(out / "log.jsonl")
    minutes = [row["train_seconds"] / 60 for row in rows]
    losses = {
        "images (flow)": [
            (m, r["losses"]["flow"]) for m, r in zip(minutes, rows, strict=True) if "flow" in r["losses"]
        ],
        "text (cross-entropy)": [
            (m, r["losses"]["ce"]) for m, r in zip(minutes, rows, strict=True) if "ce" in r["losses"]
        ],
    }
    speed = {"training": [(m, r["samples_per_second"]) for m, r in zip(minutes, rows, strict=True)]}
    grids = sorted((out / "samples").glob("step-*.png"))
    chosen = [grids[i] for i in sorted({0, len(grids) // 3, 2 * len(grids) // 3, len(grids) - 1})] if grids else []
    machine = scores["machine"]
    facts = {
        "trained": f"{scores['steps']} steps in {scores['train_seconds'] / 60:.1f} minutes",
        "language model": f"{recipe.language_model}, frozen, hash {scores['hashes']['language_model'][:16]}",
        "waiting for data": f"{scores['loader_wait']:.2%} of the time",
    } | machine
    return render_report(
        Report(
            title="A frozen language model learns to draw and to read",
            lead=f"{scores['num_concepts']} concepts in two styles, {scores['train_seconds'] / 60:.1f} minutes of training on {machine['device']}.",
            scores=_score_rows(table, scores),
            drawings=[_drawing(*pair) for pair in trained],
            held_out_drawings=[_drawing(*pair) for pair in held_out],
            answers=[_answer(*pair) for pair in trained[: NUM_SHOWN // 2]],
            held_out_answers=[_answer(*pair) for pair in held_out[: NUM_SHOWN // 2]],
            losses=losses,
            speed=speed,
            grids=[(path.stem, Image.open(path).convert("RGB")) for path in chosen],
            facts=facts,
            settings=yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False),
        )
    )


NAMES = {
    "retrieval_top1": "drawn from its name: right concept first",
    "retrieval_top5": "drawn from its name: right concept among the first five",
    "retrieval_held_out_top1": "... combinations never trained on, first",
    "retrieval_held_out_top5": "... combinations never trained on, first five",
    "naming_exact": "named exactly",
    "naming_held_out": "... pictures of combinations never trained on",
}


def _score_rows(table: dict[str, Score], scores: dict[str, Any]) -> list[ScoreRow]:
    rows = []
    for name, score in table.items():
        low, high = score.interval
        goal = GOALS.get(name)
        rows.append(
            ScoreRow(
                name=NAMES.get(name, name.replace("_", " ")),
                value=f"{score.value:.1%}",
                detail=f"n = {score.num}, 95% interval {low:.1%} to {high:.1%}, chance {score.chance:.1%}",
                goal="" if goal is None else f"at least {goal:.0%}",
                met=None if goal is None else score.value >= goal,
            )
        )
    difference = scores["language_max_abs_diff"]
    rows.append(
        ScoreRow(
            name="text-only logits: largest difference to the base LLM",
            value=f"{difference:g}",
            detail="over 32 prompts, base LLM loaded afresh; weights "
            + ("bit for bit the same" if scores["language_same_weights"] else "NOT the same"),
            goal="exactly 0",
            met=difference == 0 and scores["language_same_weights"],
        )
    )
    return rows


def _drawing(combination: Combination, outcome: Outcome) -> Drawing:
    return Drawing(combination.prompt, outcome.drawn, combination.real, outcome.rank == 0)


def _answer(combination: Combination, outcome: Outcome) -> Answer:
    right = is_named(outcome.answer, combination.concept)
    return Answer("What is this?", combination.real, outcome.answer, combination.concept, right)

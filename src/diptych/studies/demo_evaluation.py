"""Scores of the demo: every trained and every held-out combination is drawn from its name, and named."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from diptych.backbones.language import load_language_model
from diptych.backbones.vision import load_image_encoder
from diptych.config import Recipe
from diptych.data.builders.emoji import QUESTIONS
from diptych.evaluate.answering import Sampling, answer_in_images
from diptych.evaluate.emoji_gallery import (
    BATCH_SIZE,
    ENCODER,
    Combination,
    compare_with_gallery,
    read_combinations,
)
from diptych.evaluate.language_check import LanguageCheck, check_language
from diptych.evaluate.machine import describe_machine
from diptych.evaluate.naming import ask_about_images, is_named
from diptych.evaluate.retrieval import retrieval_score
from diptych.evaluate.scores import Score, share
from diptych.evaluate.suite import Progress
from diptych.models.accounts.recipe_account import account_recipe
from diptych.settings import SampleConfig
from diptych.studies.visual_token_evaluation import VisualScore, evaluate_visual_tokens

QUESTION = QUESTIONS[0]
GOALS = {
    "xfusion": {"retrieval_top1": 0.75, "retrieval_top5": 0.92, "naming_exact": 0.95},
    "vpit": {"free_running_cosine": 0.95, "visual_top1": 0.95, "naming_exact": 0.95},
}
"""For 200 concepts, and 12 (X-Fusion) or 20 (VPiT) minutes of training on two cores."""
_PROMISED = ("retrieval_top1", "retrieval_top5", "naming_exact", "naming_held_out", "retrieval_held_out_top1")


@dataclass(frozen=True)
class Outcome:
    """What the morph made of a combination: what it drew, the place (0 is first) of the right concept among the real
    images of the style, whether the nearest real image of any style has that style, and what it called the real one."""

    drawn: Image.Image
    rank: int
    is_style_right: bool
    answer: str


@dataclass(frozen=True)
class Evaluation:
    """All outcomes, in the order of the combinations; their scores by name; the language check; speeds; how the images
    were sampled. VPiT's: visual tokens before any pixel, by kind of request."""

    method: str
    num_concepts: int
    combinations: list[Combination]
    outcomes: list[Outcome]
    table: dict[str, Score]
    language: LanguageCheck
    speed: dict[str, float]
    sampling: SampleConfig
    visual_tokens: dict[str, VisualScore] = field(default_factory=dict)

    @property
    def goals(self) -> dict[str, float]:
        return GOALS[self.method]

    @property
    def keeps_language(self) -> bool:
        """Whether the method promises that the language model stays as it was."""
        return self.method == "xfusion"

    def pairs(self, *, held_out: bool) -> list[tuple[Combination, Outcome]]:
        both = zip(self.combinations, self.outcomes, strict=True)
        return [(combination, outcome) for combination, outcome in both if combination.held_out == held_out]


def evaluate_demo(
    data: Path,
    morph: Any,
    recipe: Recipe,
    *,
    progress: Progress,
    encoder: Any = None,
    num: int | None = None,
    seed: int = 0,
) -> Evaluation:
    """Draws and asks with a morph, over the emoji set in the folder `data`.

    `encoder`: what judges drawings; None: EfficientNet-Lite0. `num`: so many of the trained combinations at most, and
    of the held-out ones, drawn at random by `seed`; the gallery is always whole. Raises ValueError if the data set is
    damaged, and for a VPiT morph without a pixel decoder.
    """
    gallery = read_combinations(data)
    combinations = choose_combinations(gallery, num, seed)
    encoder = encoder or load_image_encoder(ENCODER)
    visual_tokens = (
        evaluate_visual_tokens(data, morph, progress=progress, num=num, seed=seed) if recipe.method == "vpit" else {}
    )
    sampling = _sampling(morph, recipe)
    start = time.perf_counter()
    drawn = _draw(morph, combinations, sampling, progress)
    drawing_seconds = time.perf_counter() - start
    start = time.perf_counter()
    answers = ask_about_images(
        morph,
        [c.real for c in combinations],
        QUESTION,
        batch_size=BATCH_SIZE,
        progress=lambda done, total: progress("asking about every image", done, total),
    )
    speed = {
        "drawn_images_per_second": len(drawn) / drawing_seconds,
        "answers_per_second": len(answers) / (time.perf_counter() - start),
    }
    ranks, styles = compare_with_gallery(
        encoder, gallery, combinations, drawn, size=recipe.image_size, progress=progress
    )
    outcomes = [Outcome(*made) for made in zip(drawn, ranks, styles, answers, strict=True)]
    progress("comparing with the base language model", 0, 1)
    check = check_language(morph, load_language_model(recipe.language_model, dtype=morph.language_model.dtype))
    progress("comparing with the base language model", 1, 1)
    num_concepts = len({combination.concept for combination in gallery})
    table = score_outcomes(combinations, outcomes, num_concepts=num_concepts)
    for kind, score in visual_tokens.items():
        suffix = "" if kind == "trained" else f"_{kind}"
        table |= {f"visual_top1{suffix}": score.top1, f"visual_top5{suffix}": score.top5}
    return Evaluation(recipe.method, num_concepts, combinations, outcomes, table, check, speed, sampling, visual_tokens)


def score_outcomes(combinations: list[Combination], outcomes: list[Outcome], *, num_concepts: int) -> dict[str, Score]:
    """Retrieval within the gallery of all real images of the prompt's style; naming among all concepts.

    Scores of held-out combinations are missing where there are none.
    """
    styles = sorted({c.style for c in combinations})
    pairs = list(zip(combinations, outcomes, strict=True))
    table: dict[str, Score] = {}
    for suffix, held_out in (("", False), ("_held_out", True)):
        for style in (None, *styles):
            chosen = [(c, o) for c, o in pairs if c.held_out == held_out and style in (None, c.style)]
            if not chosen:
                continue
            end = f"_{style}" if style else ""
            ranks = [o.rank for _, o in chosen]
            for top in (1, 5):
                score = retrieval_score(ranks, top=top, gallery_size=num_concepts)
                table[f"retrieval{suffix}_top{top}{end}"] = score
            named = [is_named(o.answer, c.concept) for c, o in chosen]
            table[("naming_held_out" if held_out else "naming_exact") + end] = share(named, chance=1 / num_concepts)
            if not style:
                right = [o.is_style_right for _, o in chosen]
                table[f"style_right{suffix}"] = share(right, chance=1 / len(styles))
    return table


def collect_scores(
    evaluation: Evaluation, recipe: Recipe, *, training: dict[str, Any], hashes: dict[str, str]
) -> dict[str, Any]:
    """The contents of scores.json: each score as a plain number (null: nothing was counted), then with n, chance and
    interval, then what it was measured with and what it costs (as `diptych inspect` says). `training`: how training
    went; `hashes`: of morph and frozen parts."""
    table, visual, machine = evaluation.table, evaluation.visual_tokens, describe_machine()
    return {
        **dict.fromkeys(_PROMISED),
        **{name: score.value for name, score in table.items()},
        "language_max_abs_diff": evaluation.language.max_abs_diff,
        "language_same_weights": evaluation.language.same_weights,
        "train_seconds": training["train_seconds"],
        "samples_per_second": training["samples_per_second"],
        "loader_wait": training["loader_wait"],
        "steps": training["steps"],
        **evaluation.speed,
        "num_concepts": evaluation.num_concepts,
        "chance": {name: score.chance for name, score in table.items()},
        "details": {name: score.as_dict() for name, score in table.items()},
        **({"free_running_cosine": visual["trained"].cosine.value} if "trained" in visual else {}),
        "visual_tokens": {
            kind: {"cosine": score.cosine.as_dict(), "top1": score.top1.as_dict(), "top5": score.top5.as_dict()}
            for kind, score in visual.items()
        },
        "goals": evaluation.goals,
        "seed": recipe.seed,
        "sampling": evaluation.sampling.model_dump(mode="json", exclude={"prompts"}) | {"batch_size": BATCH_SIZE},
        "prompt_set": "every combination of concept and style, by name",
        "image_encoder": ENCODER,
        "dtype": recipe.dtype,
        "hashes": hashes,
        "machine": machine,
        "trained_on": training.get("machine", machine),
        "costs": account_recipe(recipe).as_dict(),
        "recipe": recipe.model_dump(mode="json"),
    }


def _sampling(morph: Any, recipe: Recipe) -> SampleConfig:
    """As the recipe says, which need not be as the morph was saved; VPiT's images are sampled by its pixel decoder."""
    if recipe.method == "xfusion":
        return recipe.sample
    if morph.pixel_decoder is None:
        raise ValueError("the demo shows drawn images, and this morph has no pixel decoder; set vpit.pixel_decoder")
    return morph.pixel_decoder.recipe.sample


def _draw(morph: Any, combinations: list[Combination], sampling: SampleConfig, progress: Progress) -> list[Image.Image]:
    drawn: list[Image.Image] = []
    asked = Sampling(sampling.guidance_scale, sampling.num_inference_steps, sampling.sampler, sampling.seed)
    for start in range(0, len(combinations), BATCH_SIZE):
        batch = combinations[start : start + BATCH_SIZE]
        prompts = [[{"role": "user", "content": c.prompt}] for c in batch]
        drawn += answer_in_images(morph, prompts, asked, ids=[f"{c.style}/{c.concept}" for c in batch])
        progress("drawing every combination", len(drawn), len(combinations))
    return drawn


def choose_combinations(combinations: list[Combination], num: int | None, seed: int) -> list[Combination]:
    """So many trained and so many held-out ones at most, at random; None: all."""
    if num is None:
        return combinations
    chosen: list[Combination] = []
    for held_out in (False, True):
        group = [combination for combination in combinations if combination.held_out == held_out]
        chosen += random.Random(seed).sample(group, min(num, len(group)))
    return chosen

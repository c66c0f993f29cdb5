"""Fewer steps, or Heun's: what drawings of a trained X-Fusion morph lose by them, and what they cost.

    python bench/sampler_steps.py emoji-dual data/emoji --num 200

Every sampler draws the same trained combinations from the same noise, with the guidance of the morph's recipe, both of
whose prompts share an evaluation. A drawing is judged as in bench/emoji_scores.py: whether, among all real images of
its style, that of its concept is the nearest.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from diptych.backbones.vision import load_image_encoder
from diptych.diffusion.sampler import SAMPLERS
from diptych.evaluate.emoji_gallery import (
    BATCH_SIZE,
    ENCODER,
    Combination,
    compare_with_gallery,
    read_combinations,
)
from diptych.evaluate.retrieval import retrieval_score
from diptych.models.checkpoint import load_morph
from diptych.studies.demo_evaluation import choose_combinations
from paired import print_table

CONFIGURATIONS = ("euler:30", "euler:20", "euler:10", "euler:5", "euler:3", "heun:15", "heun:10", "heun:5", "heun:3")


def draw(
    morph: Any, combinations: list[Combination], sampler: str, num_steps: int
) -> tuple[list[Image.Image], float, float]:
    """Drawings, network evaluations for each, and seconds for each."""
    calls, denoise = [0], morph.model.denoise

    def counted(*args: Any) -> Any:
        calls[0] += 1
        return denoise(*args)

    morph.model.denoise = counted
    drawn: list[Image.Image] = []
    start = time.perf_counter()
    starts = range(0, len(combinations), BATCH_SIZE)
    try:
        for seed, first in enumerate(starts):
            prompts = [[{"role": "user", "content": c.prompt}] for c in combinations[first : first + BATCH_SIZE]]
            options: dict[str, Any] = {"num_inference_steps": num_steps, "sampler": sampler, "seed": seed}
            drawn += [answer[0] for answer in morph.generate_batch(prompts, generation_mode="image", **options)]
    finally:
        del morph.model.denoise
    return drawn, calls[0] / len(starts), (time.perf_counter() - start) / len(drawn)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("morph")
    parser.add_argument("data", type=Path)
    parser.add_argument("--num", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0, help="of which combinations are drawn")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--samplers", nargs="+", default=CONFIGURATIONS, metavar="NAME:STEPS")
    options = parser.parse_args()
    chosen = [(name, int(steps)) for name, _, steps in (one.partition(":") for one in options.samplers)]
    if unknown := {name for name, _ in chosen} - SAMPLERS.keys():
        parser.error(f"unknown sampler {', '.join(sorted(unknown))}; choose of: {', '.join(SAMPLERS)}")
    torch.set_num_threads(options.threads)
    morph = load_morph(options.morph)
    if morph.recipe.method != "xfusion":
        parser.error(f"{options.morph} is of method {morph.recipe.method}; give a morph of xfusion")
    gallery = read_combinations(options.data)
    combinations = choose_combinations([c for c in gallery if not c.held_out], options.num, options.seed)
    draw(morph, combinations[:BATCH_SIZE], "euler", 1)  # nothing is measured cold
    made = []
    for name, steps in chosen:
        made.append(draw(morph, combinations, name, steps))
        print(f"{name}, {steps} steps: {made[-1][2]:.2f} s an image", file=sys.stderr, flush=True)
    ranks, _ = compare_with_gallery(
        load_image_encoder(ENCODER),
        gallery,
        combinations * len(made),
        [image for drawn, *_ in made for image in drawn],
        size=morph.recipe.image_size,
        progress=lambda what, done, total: None,
    )
    num_concepts = len({c.concept for c in gallery})
    rows = []
    for number, ((name, steps), (drawn, evaluations, seconds)) in enumerate(zip(chosen, made, strict=True)):
        own = ranks[number * len(drawn) : (number + 1) * len(drawn)]
        first, five = (retrieval_score(own, top=top, gallery_size=num_concepts) for top in (1, 5))
        low, high = first.interval
        told = f"{first.value:.1%} ({low:.1%} to {high:.1%})"
        rows.append([name, str(steps), f"{evaluations:g}", told, f"{five.value:.1%}", f"{seconds:.3f}"])
    scale = morph.recipe.sample.guidance_scale
    title = f"{options.morph}, {len(combinations)} trained combinations, guidance {scale:g}"
    columns = ["sampler", "steps", "network evaluations", "right first (95%)", "among five", "seconds an image"]
    print_table(title, columns, rows)


if __name__ == "__main__":
    main()

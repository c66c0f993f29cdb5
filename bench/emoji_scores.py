"""Scores of a trained morph over a built emoji set: what docs/benchmarks.md says of recipes/emoji-dual.yaml.

    python bench/emoji_scores.py emoji-dual data/emoji --num 600

Draws from names and asks about images as the demo's report does (its protocol: docs/benchmarks.md), for `--num` trained
and as many held-out combinations at most, chosen by `--seed`, among all real images of the style.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch

from diptych.models.accounts.recipe_account import account_recipe
from diptych.models.checkpoint import load_morph
from diptych.studies.demo_evaluation import evaluate_demo
from paired import print_table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("morph")
    parser.add_argument("data", type=Path)
    parser.add_argument("--num", type=int, default=600)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="a JSON file for the scores, and a folder beside it for the images")
    options = parser.parse_args()
    torch.set_num_threads(2)
    morph = load_morph(options.morph)
    told: dict[str, int] = {}

    def progress(what: str, done: int, total: int) -> None:
        if 10 * done // max(1, total) > told.get(what, 0):
            told[what] = 10 * done // max(1, total)
            print(f"{what}: {done} of {total}", file=sys.stderr, flush=True)

    found = evaluate_demo(options.data, morph, morph.recipe, progress=progress, num=options.num, seed=options.seed)
    rows = []
    for name, score in found.table.items():
        low, high = score.interval
        share = f"{score.value:.1%}"
        rows.append([name, share, f"{low:.1%} to {high:.1%}", str(score.num), f"{score.chance:.2%}"])
    for kind, score in found.visual_tokens.items():
        low, high = score.cosine.interval
        name = f"visual tokens, {kind}: cosine"
        rows.append([name, f"{score.cosine.value:.3f}", f"{low:.3f} to {high:.3f}", str(score.cosine.num), ""])
    rows.append(["text-only logits, largest difference", f"{found.language.max_abs_diff:g}", "", "", ""])
    rows += [[name, f"{speed:.2f}", "", "", ""] for name, speed in found.speed.items()]
    print_table(f"{options.morph} over {options.data}", ["score", "value", "95%", "n", "chance"], rows)
    if options.out is not None:
        scores = {name: score.as_dict() for name, score in found.table.items()}
        details = {
            "scores": scores,
            "cosines": {kind: score.cosine.as_dict() for kind, score in found.visual_tokens.items()},
            "language_max_abs_diff": found.language.max_abs_diff,
            "language_same_weights": found.language.same_weights,
            "speed": found.speed,
            "sampling": found.sampling.model_dump(mode="json", exclude={"prompts"}),
            "num": options.num,
            "seed": options.seed,
            "costs": account_recipe(morph.recipe).as_dict(),
            "hashes": morph.frozen_hashes(),
        }
        options.out.write_text(json.dumps(details, indent=2) + "\n", encoding="utf-8")
        folder = options.out.with_suffix("")
        folder.mkdir(exist_ok=True)
        for number, (combination, outcome) in enumerate(zip(found.combinations, found.outcomes, strict=True)):
            kind = "held-out" if combination.held_out else "trained"
            name = f"{kind}-{number:04d}-{combination.style}-{combination.concept.replace(' ', '_').replace('/', '_')}"
            outcome.drawn.save(folder / f"{name}.png")


if __name__ == "__main__":
    main()

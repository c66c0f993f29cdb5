"""Scores of a morph on the tasks made from emoji: what docs/benchmarks.md says of recipes/emoji-tasks.yaml.

python bench/emoji_task_scores.py runs/emoji-tasks/morph data/emoji-tasks --num 200 --out tasks.png
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from diptych.backbones.vision import load_image_encoder
from diptych.data.contact_sheet import draw_image_grid
from diptych.evaluate.emoji_task_scores import score_tasks
from diptych.models.checkpoint import load_morph
from paired import print_table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("morph")
    parser.add_argument("data", type=Path)
    parser.add_argument("--split", default="held_out", choices=("train", "test", "held_out"))
    parser.add_argument("--num", type=int, default=200)
    parser.add_argument("--guidance-scale", type=float)
    parser.add_argument("--image-guidance-scale", type=float, default=1.0)
    parser.add_argument("--out", type=Path, help="a picture of some edits: shown, drawn, right")
    options = parser.parse_args()
    torch.set_num_threads(2)
    found = score_tasks(
        load_morph(options.morph),
        options.data,
        load_image_encoder("efficientnet-lite0"),
        split=options.split,
        num=options.num,
        guidance_scale=options.guidance_scale,
        image_guidance_scale=options.image_guidance_scale,
        progress=lambda what, done, total: print(f"{what}: {done} of {total}", file=sys.stderr, flush=True),
    )
    rows = []
    for name, score in found.shares.items():
        low, high = score.interval
        rows.append([name, f"{score.value:.1%}", f"{low:.1%} to {high:.1%}", str(score.num), f"{score.chance:.1%}"])
    for name, (value, nothing) in found.means.items():
        rows.append([name, f"{value:.2f}", "", "", "-" if nothing is None else f"{nothing:.2f}"])
    print_table(f"{options.morph}, {options.split}", ["score", "value", "95%", "n", "chance, or doing nothing"], rows)
    if options.out is not None:
        some = found.pictures[:: max(1, len(found.pictures) // 24)][:24]
        pictures = [picture for _, three in some for picture in three]
        captions = [text for request, _ in some for text in (request, "drawn", "right")]
        draw_image_grid(pictures, captions, columns=6, cell=128).save(options.out)


if __name__ == "__main__":
    main()

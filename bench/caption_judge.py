"""The carried judge of captions: trained, and scored on concepts that it learnt and on those held out of its training.

python bench/caption_judge.py train data/emoji --out runs/emoji-captions
python bench/caption_judge.py score data/emoji

Both want: diptych data build emoji --out data/emoji. What the frozen encoders say of changed pictures and of texts is
kept in OUT/encoded.safetensors: another training there with other --num-steps takes a minute.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from diptych.backbones.caption_judge import CARRIED, CaptionJudge
from diptych.backbones.sentence_encoder import load_sentence_encoder
from diptych.backbones.vision import load_image_encoder
from diptych.data.images import image_to_tensor, open_image, tensor_to_image
from diptych.evaluate.caption_scoring import CaptionScorer, measure_judge
from diptych.evaluate.emoji_gallery import ENCODER
from diptych.evaluate.machine import describe_machine
from diptych.evaluate.picture_judge import PictureJudge
from diptych.studies.caption_judge_training import (
    STYLES,
    CaptionedConcept,
    FittingTexts,
    caption,
    change_pictures,
    collect_texts,
    read_captioned,
    train_caption_judge,
)
from paired import print_table
from scene_detector import AUTOENCODER, round_trip

IMAGE_SIZE = 64
DROPOUT = 0.3
NUM_CHANGED = 4
"""Changed copies of each picture."""
NOISE = 0.3
"""On the latents of pictures that are scored as drawings would be."""
ENCODED = "encoded.safetensors"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("train", "score"))
    parser.add_argument("data", type=Path, help="the emoji set")
    parser.add_argument("--out", type=Path, default=Path("runs/emoji-captions"))
    parser.add_argument("--judge", type=Path, default=CARRIED)
    parser.add_argument("--num-steps", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    concepts = read_captioned(options.data)
    if options.what == "score":
        tell(score(CaptionScorer(options.judge), concepts))
        return
    machine, started = describe_machine(), time.monotonic()
    settings = {"num_steps": options.num_steps, "seed": options.seed, "num_changed": NUM_CHANGED, "dropout": DROPOUT}
    texts = collect_texts(concepts)
    encoded = encode(concepts, texts, options.out / ENCODED, seed=options.seed)
    encoding = time.monotonic() - started
    torch.manual_seed(options.seed)
    judge = CaptionJudge(
        image_size=IMAGE_SIZE,
        image_encoder=load_image_encoder(ENCODER).hash,
        sentence_encoder=load_sentence_encoder().hash,
        dropout=DROPOUT,
    )
    train_caption_judge(
        judge,
        concepts,
        encoded["pictures"].float(),
        texts,
        encoded["texts"],
        num_steps=options.num_steps,
        seed=options.seed,
        progress=report,
    )
    training = time.monotonic() - started - encoding
    judge.save(options.out)
    found = score(CaptionScorer(options.out), concepts)
    minutes = {"encoding": round(encoding / 60, 1), "training": round(training / 60, 1)}
    run = {"settings": settings, "minutes": minutes, "machine": machine, "scores": found}
    (options.out / "run.json").write_text(json.dumps(run, indent=1) + "\n", encoding="utf-8")
    tell(found)


def encode(concepts: Sequence[CaptionedConcept], texts: FittingTexts, kept: Path, *, seed: int) -> dict[str, Tensor]:
    """`pictures` [K, styles, C, F] as they are and changed, in bfloat16; `texts` [T, D]."""
    wanted = {"changed": NUM_CHANGED, "seed": seed, "texts": texts.texts}
    hashed = torch.frombuffer(bytearray(hashlib.sha256(json.dumps(wanted).encode()).digest()), dtype=torch.uint8)
    if kept.is_file() and torch.equal((found := load_file(kept))["made_of"], hashed):
        return found
    files = [concept.files[style] for style in STYLES for concept in concepts]
    copies = [PictureJudge().embed_files(files, size=IMAGE_SIZE, progress=report_progress).bfloat16()]
    encoder = load_image_encoder(ENCODER, dtype=torch.bfloat16, batch_size=8)  # twice as fast, and as good for training
    change, generator = round_trip(seed), torch.Generator().manual_seed(seed)
    for number in range(NUM_CHANGED):
        parts: list[Tensor] = []
        for start in range(0, len(files), 32):
            changed = change_pictures(read_pictures(files[start : start + 32]), generator, change)
            parts.append(encoder.pooled(changed).bfloat16())
            report_progress(f"changed pictures, copy {number + 1}", start, len(files))
        copies.append(torch.cat(parts))
    pictures = torch.stack([copy.view(len(STYLES), len(concepts), -1) for copy in copies])
    made = {"pictures": pictures, "texts": load_sentence_encoder().embed(texts.texts), "made_of": hashed}
    kept.parent.mkdir(parents=True, exist_ok=True)
    save_file(made, kept)
    return made


def read_pictures(files: Sequence[Path]) -> Tensor:
    return torch.stack([image_to_tensor(open_image(file), IMAGE_SIZE) for file in files])


def score(judge: CaptionScorer, concepts: Sequence[CaptionedConcept]) -> dict[str, dict[str, float]]:
    """`measure_judge`, the mean of both styles: of held-out concepts, and of as many that were learnt, among as many
    pictures; of both among all concepts; of the first two through the autoencoder."""
    held_out = [concept for concept in concepts if concept.held_out]
    learnt = sorted((c for c in concepts if not c.held_out), key=lambda c: hashlib.sha256(c.name.encode()).digest())
    groups = {"held out": held_out, "learnt": learnt[: len(held_out)], "all": concepts}
    change = round_trip(seed=1)

    def draw(files: Sequence[Path]) -> Tensor:
        drawn = change(read_pictures(files), NOISE)
        return judge.place_pictures([tensor_to_image(image) for image in drawn])

    def measure(own: Sequence[CaptionedConcept], place: Callable[[Sequence[Path]], Tensor]) -> dict[str, float]:
        by_style = [
            measure_judge(
                place([concept.files[style] for concept in own]),
                judge.place_captions([caption(concept.name, style) for concept in own]),
            )
            for style in STYLES
        ]
        return {name: sum(found[name] for found in by_style) / len(by_style) for name in by_style[0]}

    found = {
        name: measure(own, lambda files: judge.place_files(files, report_progress)) for name, own in groups.items()
    }
    drawn = {
        f"{name}, through {AUTOENCODER}, noise of {NOISE}": measure(groups[name], draw) for name in list(groups)[:2]
    }
    return found | drawn


def tell(found: Mapping[str, Mapping[str, float]]) -> None:
    shares, scores = ("first", "among_five", "chance", "told_apart"), ("score_of_right", "score_of_others")
    rows = [
        [name, *(f"{s[key]:.1%}" for key in shares), *(f"{s[key]:.2f}" for key in scores), str(int(s["num"]))]
        for name, s in found.items()
    ]
    heads = ["concepts", "right picture first", "among five", "chance of first", "right caption above another"]
    print_table("judge of captions", [*heads, "score of right", "of others", "pictures a style"], rows)


def report(step: int, told: Mapping[str, float]) -> None:
    if step % 20 == 0:
        numbers = ", ".join(f"{name} {value:.3f}" for name, value in told.items())
        print(f"step {step}: {numbers}", file=sys.stderr, flush=True)


def report_progress(what: str, done: int, total: int) -> None:
    if done % 512 == 0:
        print(f"{what}: {done} of {total}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()

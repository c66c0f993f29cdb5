"""The carried detector of emoji scenes: trained, and scored by what it says of real scenes of the held-out prompts.

python bench/scene_detector.py train data/emoji data/emoji-scenes --out runs/emoji-detector
python bench/scene_detector.py score data/emoji-scenes

Both want: diptych data build emoji --out data/emoji && diptych data build emoji-scenes --out data/emoji-scenes
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from diptych.backbones.autoencoder import load_autoencoder
from diptych.backbones.scene_detector import CARRIED, SceneDetector, load_scene_detector
from diptych.data.builders.concept_words import things_in
from diptych.data.builders.emoji_scenes import HUES
from diptych.data.builders.scene_prompts import ASKED, COLOURED, THINGS, all_facts, read_pictures
from diptych.data.images import image_to_tensor, open_image, tensor_to_image
from diptych.data.samples import read_samples
from diptych.evaluate.machine import describe_machine
from diptych.evaluate.scene_judging import measure_detector
from diptych.studies.detector_training import RoundTrip, ScenePainter, train_detector
from paired import print_table

AUTOENCODER = "emoji-tiny"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("train", "score"))
    parser.add_argument("data", type=Path, nargs="+", help="train: the emoji set and the scenes; score: the scenes")
    parser.add_argument("--out", type=Path, default=Path("runs/emoji-detector"))
    parser.add_argument("--detector", type=Path, default=CARRIED)
    parser.add_argument("--num-steps", type=int, default=1500)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.what == "score":
        tell(score(load_scene_detector(options.detector), options.data[0]))
        return
    if len(options.data) != 2:
        parser.error("train takes two folders: the emoji set, and the scenes")
    emoji, scenes = options.data
    machine = describe_machine()
    settings = {"num_steps": options.num_steps, "seed": options.seed}
    torch.manual_seed(options.seed)
    painter = ScenePainter(
        SceneDetector(THINGS, tuple(HUES)),
        pictures={key: _small(picture) for key, picture in read_pictures(emoji, THINGS).items()},
        others=other_pictures(emoji),
        facts=all_facts(),
        coloured=COLOURED,
    )
    started = time.monotonic()
    train_detector(painter, **settings, round_trip=round_trip(options.seed), progress=report)
    minutes = (time.monotonic() - started) / 60
    painter.detector.save(options.out)
    found = score(load_scene_detector(options.out), scenes)
    run = {"settings": settings, "minutes": round(minutes, 1), "machine": machine, "scores": found}
    (options.out / "run.json").write_text(json.dumps(run, indent=1) + "\n", encoding="utf-8")
    tell(found)


def other_pictures(emoji: Path) -> list[Image.Image]:
    """Of all emoji, in both styles, whose names share no word with a thing's."""
    words = {word for thing in THINGS for word in things_in(thing)}
    entries = json.loads((emoji / "concepts.json").read_text(encoding="utf-8"))
    files = [file for e in entries if not words & set(things_in(e["name"])) for file in e["images"].values()]
    return [_small(open_image(emoji / file)) for file in files]


def round_trip(seed: int) -> RoundTrip:
    """Through the embedded autoencoder."""
    autoencoder, generator = load_autoencoder(AUTOENCODER), torch.Generator().manual_seed(seed)

    def change(images: Tensor, strength: float) -> Tensor:
        latents = autoencoder.encode(images)
        return autoencoder.decode(latents + strength * torch.randn(latents.shape, generator=generator))

    return change


def score(detector: SceneDetector, scenes: Path) -> dict[str, dict[str, dict[str, float]]]:
    """`measure_detector` of what the suite asks for: scenes as they are, and drawn by the autoencoder."""
    samples = [sample for split in ASKED for sample in read_samples(scenes / f"{split}.jsonl")]
    real = [open_image(scenes / sample.images[0]) for sample in samples]
    change = round_trip(1)
    found = {"real": measure_detector(detector, samples, real)}
    for strength in (0.0, 0.3):
        drawn: list[Image.Image] = []
        for start in range(0, len(real), 64):
            images = torch.stack([image_to_tensor(image, detector.image_size) for image in real[start : start + 64]])
            drawn += [tensor_to_image(image) for image in change(images, strength)]
        name = f"through {AUTOENCODER}" + (f", noise of {strength} on latents" if strength else "")
        found[name] = measure_detector(detector, samples, drawn)
    return found


def tell(found: Mapping[str, Mapping[str, Mapping[str, float]]]) -> None:
    for scenes, kinds in found.items():
        rows = [
            [kind, f"{s['own']:.1%}", f"{s['seen']:.1%}", f"{s['false_alarms']:.2%}", str(s["num_scenes"])]
            for kind, s in kinds.items()
        ]
        print_table(scenes, ["kind", "own request", "seen where true", "false alarms", "scenes"], rows)


def report(step: int, told: Mapping[str, float]) -> None:
    if step % 20 == 0:
        numbers = ", ".join(f"{name} {value:.3f}" for name, value in told.items())
        print(f"step {step}: {numbers}", file=sys.stderr, flush=True)


def _small(picture: Image.Image) -> Image.Image:
    return picture.resize((64, 64), Image.Resampling.LANCZOS)


if __name__ == "__main__":
    main()

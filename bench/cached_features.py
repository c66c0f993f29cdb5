"""P8: a VPiT training step that encodes its images, against one that reads their features from the cache on disk.

    diptych data build emoji --out data/emoji && python bench/cached_features.py data/emoji

Both sides start with nothing in memory, as the first step that sees an image does. The limit is what the encoder costs
beside a step: 1 + encoder / step.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from diptych.backbones.vision import load_image_encoder
from diptych.data.samples import read_samples
from diptych.models.encoded_images import EncodedImages, image_features
from diptych.sequence import ImageSpan, Sequence, TextSpan
from paired import measure_ratio, print_table
from smollm2 import END, START, build_model, random_text, train_step

TEXT = 24


def read_features(features: EncodedImages, images: list[str]) -> list[torch.Tensor]:
    features.prepare(images)
    return [features.load(image) for image in images]


def streams(images: list[torch.Tensor], text: list[tuple[int, ...]]) -> list[Sequence]:
    """Each image drawn after a request."""
    ends = [TextSpan((token,), (True,)) for token in (START, END)]
    return [
        Sequence((TextSpan(words, (False,) * TEXT), ends[0], ImageSpan(image, len(image), True), ends[1]), draw=draw)
        for draw, (image, words) in enumerate(zip(images, text, strict=True))
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--pairs", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(2)
    samples = read_samples(options.data / "train_draw.jsonl")[: options.images]
    images = [str(options.data / sample.images[0]) for sample in samples]
    text = [random_text(TEXT) for _ in images]
    model, encoder = build_model().train(), load_image_encoder("vit-s14-focus", image_size=options.image_size)

    def encoded(cache_dir: Path | None) -> list[torch.Tensor]:
        return read_features(image_features(encoder, model.num_image_tokens, cache_dir=cache_dir), images)

    def step(made: list[torch.Tensor]) -> float:
        return train_step(model, streams(made, text))

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        filling = image_features(encoder, model.num_image_tokens, cache_dir=folder)
        kept = read_features(filling, images)
        filling.flush()
        again = encoded(folder)
        difference = max(float((a - b).abs().max()) for a, b in zip(encoded(None), again, strict=True))
        ratio = measure_ratio(lambda: step(encoded(None)), lambda: step(encoded(folder)), pairs=options.pairs, warm=1)
        alone, only = seconds(lambda: encoded(None), options.pairs), seconds(lambda: step(kept), options.pairs)
        reading = seconds(lambda: encoded(folder), options.pairs)
        losses = step(again), step(encoded(None))
    limit = 1 + alone / only
    rows = [
        ["online / cached features", f"{ratio.median:.3f} ({ratio.low:.3f}-{ratio.high:.3f})", f"limit {limit:.3f}"],
        ["share of the limit", f"{ratio.median / limit:.1%}", "goal 90%"],
        ["each side", f"{ratio.slow_seconds:.2f} / {ratio.fast_seconds:.2f} s", f"step alone {only:.2f} s"],
        ["encoder; reading the cache", f"{alone:.3f}; {reading:.3f} s", f"{len(images)} images"],
        ["largest difference of features; of the loss", f"{difference:.1e}; {abs(losses[0] - losses[1]):.1e}", ""],
    ]
    print_table("P8: cached features", ["what", "measured", "beside"], rows)


def seconds(run: Callable[[], object], times: int) -> float:
    taken = []
    for _ in range(times):
        start = time.perf_counter()
        run()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


if __name__ == "__main__":
    main()

"""P3: a training step's time for a token, padded, grouped by length and packed, on the mixture of the six data types.

    diptych data build six-types --out data/six-types && python bench/packing.py data/six-types

All three run one VPiT model of SmolLM2-135M's shape on the same samples with the same loss. Padded: batches in the
mixture's order, every layer sees the padding, as in a plain Hugging Face model. Grouped: the same, after each 50
batches' samples were sorted by length (transformers' `group_by_length`). Packed: `train.packing_length`, only the
attention sees rows. Images are random visual tokens, as many as there would be: encoders are not part of the figure.
"""

from __future__ import annotations

import argparse
import random
import statistics
from collections.abc import Callable
from pathlib import Path

import torch
import yaml

from diptych.backbones.language import load_tokenizer
from diptych.data.mixture import Mixture
from diptych.data.packing import Packer
from diptych.data.sources import open_sources
from diptych.data.tokenize import build_sequence
from diptych.data_settings import DataConfig
from diptych.nn.row_attention import longest_by_rows
from diptych.sequence import Sequence
from paired import measure_ratio, print_table
from smollm2 import END, START, build_model, random_features, train_step

GROUP = 50
"""Batches that are sorted together; transformers' own number."""


def read_streams(folder: Path, count: int, num_tokens: int) -> list[Sequence]:
    """The first `count` draws of the mixture as sequences; images are random visual tokens."""
    data = DataConfig.model_validate(yaml.safe_load((folder / "six-types.yaml").read_text())["data"])
    sources = open_sources(data)
    mixture = Mixture(tuple(map(len, sources)), tuple(source.weight for source in data.sources), seed=0)
    tokenizer = load_tokenizer("smollm2-135m-instruct")
    streams = []
    for draw in range(count):
        _, source, index = mixture.pick(draw)
        streams.append(
            build_sequence(
                sources[source][index],
                tokenizer=tokenizer,
                template="plain",
                load_image=lambda _: random_features()[:num_tokens],
                num_image_tokens=num_tokens,
                draw=draw,
                max_length=data.max_length,
                boundary_ids=(START, END),
            )
        )
    return streams


def in_batches(streams: list[Sequence], size: int) -> list[list[Sequence]]:
    return [streams[first : first + size] for first in range(0, len(streams) - size + 1, size)]


def grouped(streams: list[Sequence], size: int) -> list[list[Sequence]]:
    batches = []
    for first in range(0, len(streams), GROUP * size):
        batches += in_batches(sorted(streams[first : first + GROUP * size], key=len, reverse=True), size)
    return batches


def packed(streams: list[Sequence], length: int) -> list[list[Sequence]]:
    """Packs from one pass over the streams."""
    packer = Packer(lambda draw: (draw, 0, draw), lambda pick: len(streams[pick[2] % len(streams)]), length=length)
    packs: list[list[Sequence]] = []
    while packer.state.next_draw < len(streams):
        packs.append([streams[index % len(streams)] for _, _, index in packer.next_pack().picks])
    return packs


def share_filled(batches: list[list[Sequence]]) -> float:
    """Tokens over places, where every row is as long as the batch's longest."""
    places = sum(len(batch) * max(map(len, batch)) for batch in batches)
    return tokens_in(batches) / places


def tokens_in(batches: list[list[Sequence]]) -> int:
    return sum(len(stream) for batch in batches for stream in batch)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--samples", type=int, default=4096)
    parser.add_argument("--image-tokens", type=int, default=16)
    parser.add_argument("--steps", type=int, default=6, help="batches of each kind that are timed, drawn at random")
    parser.add_argument("--pairs", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(2)
    streams = read_streams(options.data, options.samples, options.image_tokens)
    lengths = [len(stream) for stream in streams]
    length = round(options.batch * statistics.mean(lengths))
    plans = {
        "padded": in_batches(streams, options.batch),
        "grouped": grouped(streams, options.batch),
        "packed": packed(streams, length),
    }
    model = build_model().train()
    longest = longest_by_rows(model.decoder)
    draw = random.Random(0)
    chosen = {name: draw.sample(plan, options.steps) for name, plan in plans.items()}

    def run(name: str) -> Callable[[], list[float]]:
        own = longest if name == "packed" else 0
        return lambda: [train_step(model, batch, longest_by_rows=own) for batch in chosen[name]]

    tokens = {name: tokens_in(plan) for name, plan in chosen.items()}
    own_fill = tokens_in(plans["packed"]) / (len(plans["packed"]) * length)
    rows = []
    for name in ("padded", "grouped"):
        ratio = measure_ratio(run(name), run("packed"), pairs=options.pairs, warm=1)
        scale = tokens["packed"] / tokens[name]
        rows.append(
            [
                f"{name} / packed, time for a token",
                f"{ratio.median * scale:.2f} ({ratio.low * scale:.2f}-{ratio.high * scale:.2f})",
                f"{share_filled(plans[name]):.1%} filled",
                f"{1e3 * ratio.slow_seconds / tokens[name]:.2f} / {1e3 * ratio.fast_seconds / tokens['packed']:.2f} ms",
            ]
        )
    rows.append(
        [f"packs of {length} from a buffer of 256", f"{own_fill:.2%} filled", "", f"{len(plans['packed'])} packs"]
    )
    print(f"{len(streams)} samples of {min(lengths)} to {max(lengths)} tokens")
    print_table("P3: packing", ["what", "ratio", "places filled", "each side"], rows)


if __name__ == "__main__":
    main()

"""P6 and VPiT's other ratios, on a model of SmolLM2-135M's shape: visual tokens cached against recomputed, eight
conversations at once against one by one, and a training step against the plain Hugging Face model's."""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from diptych.models.interleaved_decoding import decode_interleaved
from diptych.models.vpit import VPiT, build_rows, find_supervision
from diptych.models.vpit_training import VPiTBatch, vpit_losses
from diptych.sequence import IGNORE_INDEX, Sequence, pack
from diptych.settings import VPiTConfig
from paired import measure_ratio, print_table
from smollm2 import NUM_TOKENS, START, build_model, drawing, prompt, reading

PROMPT, MANY = 128, 8


def draw(model: VPiT, prompts: list[Sequence]) -> Tensor:
    """Visual tokens [B, n, F], cached, all prompts at once."""
    answers = decode_interleaved(model, prompts, stops=set(), max_new_tokens=1, generation_mode="image")
    return torch.stack([pieces[-1] for pieces in answers])  # type: ignore[misc]


@torch.no_grad()
def draw_recomputing(model: VPiT, request: Sequence) -> Tensor:
    """As the released code does: the whole prefix again for every visual token. One conversation."""
    batch = pack([request])
    start = torch.tensor([START])
    ids = torch.cat((batch.token_ids, start))
    embeddings = model.embed(ids, torch.zeros(len(ids), dtype=torch.bool), None)[None]
    made: list[Tensor] = []
    for _ in range(NUM_TOKENS):
        decoder: Any = model.decoder
        state = decoder(inputs_embeds=embeddings, use_cache=False).last_hidden_state[:, -1]
        made.append(model.visual_head(state))
        embeddings = torch.cat((embeddings, model.connector(made[-1])[:, None]), dim=1)
    return torch.stack(made, dim=1)


def memory_bandwidth() -> float:
    """Bytes per second of a matrix times a vector, the matrix far larger than the caches: the median of many."""
    matrix, vector = torch.randn(16384, 4096), torch.randn(4096)
    seconds = []
    for _ in range(30):
        start = time.perf_counter()
        torch.mv(matrix, vector)
        seconds.append(time.perf_counter() - start)
    return 4 * matrix.numel() / statistics.median(seconds)


def training_steps(model: VPiT, *, num_samples: int) -> tuple[Callable[[], float], Callable[[], float]]:
    """(ours, Hugging Face's): loss and gradients of the same tokens, half of the samples drawings."""
    streams = [(drawing if k % 2 else reading)(64, draw=k) for k in range(num_samples)]
    batch = pack(streams, image_predicts_text=True)
    rows = build_rows(batch)
    own = VPiTBatch(batch, rows, find_supervision(batch, START), batch.images)
    length = rows.index.shape[1]
    with torch.no_grad():
        packed = model.embed(batch.token_ids, batch.is_image, batch.images)
    embeddings = packed[rows.index].requires_grad_()
    labels = torch.full((num_samples, length), IGNORE_INDEX)
    # The plain head knows no boundary tokens: they stand for some word, at the same cost.
    labels[rows.row, rows.column] = torch.where(batch.labels >= START, 5, batch.labels)
    mask = torch.zeros(num_samples, length, dtype=torch.long)
    mask[rows.row, rows.column] = 1
    language: Any = model.language_model

    def step(loss: Tensor) -> float:
        loss.backward()
        for parameter in model.parameters():
            parameter.grad = None
        return loss.item()

    def ours() -> float:
        losses = vpit_losses(model, own, VPiTConfig())
        return step(torch.stack([loss.total / loss.count for loss in losses.values()]).sum())

    def theirs() -> float:
        return step(language(inputs_embeds=embeddings, attention_mask=mask, labels=labels, use_cache=False).loss)

    return ours, theirs


def measure(*, pairs: int) -> list[list[str]]:
    model = build_model()
    one = prompt(PROMPT)
    cached, again = draw(model, [one]), draw_recomputing(model, one)
    difference = float((cached - again).abs().max())
    if difference > 1e-5:
        raise ValueError(f"cached and recomputed visual tokens differ by {difference}; they must be equal")
    ratio = measure_ratio(lambda: draw_recomputing(model, one), lambda: draw(model, [one]), pairs=pairs, warm=0)
    weights = 4 * sum(p.numel() for layer in model.decoder.layers for p in layer.parameters())
    weights += 4 * sum(p.numel() for part in (model.connector, model.visual_head) for p in part.parameters())
    share = weights * NUM_TOKENS / ratio.fast_seconds / memory_bandwidth()
    rows = [
        [
            f"P6 {NUM_TOKENS} visual tokens after {PROMPT}, recomputed / cached",
            ">= 7",
            f"{ratio.median:.2f} ({ratio.low:.2f}-{ratio.high:.2f})",
            f"{ratio.slow_seconds:.2f} / {ratio.fast_seconds:.2f} s; max difference {difference:.0e}",
        ],
        ["P6 share of the matrix-vector bandwidth", ">= 75%", f"{share:.0%}", f"{weights / 1e6:.0f} MB a token"],
    ]
    # Unequal lengths, of the same mean.
    many = [prompt(PROMPT + 8 * k) for k in range(-MANY // 2, MANY // 2)]
    together, alone = draw(model, many), torch.cat([draw(model, [p]) for p in many])
    difference = float((together - alone).abs().max())
    if difference > 1e-5:
        raise ValueError(f"in a batch and one by one, visual tokens differ by {difference}; they must be equal")
    ratio = measure_ratio(
        lambda: [draw(model, [p]) for p in many], lambda: draw(model, many), pairs=max(3, pairs // 2), warm=0
    )
    rows.append(
        [
            f"{MANY} conversations, one by one / at once, unequal prompts",
            ">= 4",
            f"{ratio.median:.2f} ({ratio.low:.2f}-{ratio.high:.2f})",
            f"{ratio.slow_seconds:.2f} / {ratio.fast_seconds:.2f} s; max difference {difference:.0e}",
        ]
    )
    model.train().requires_grad_()
    ours, theirs = training_steps(model, num_samples=8)
    ratio = measure_ratio(ours, theirs, pairs=pairs, warm=1)
    rows.append(
        [
            "training step, ours / Hugging Face's with the same embeddings",
            "<= 1.05",
            f"{ratio.median:.3f} ({ratio.low:.3f}-{ratio.high:.3f})",
            f"{ratio.slow_seconds:.2f} / {ratio.fast_seconds:.2f} s",
        ]
    )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(2)
    rows = measure(pairs=options.pairs)
    print_table("VPiT, two threads", ["what", "goal", "measured, median (quartiles)", "each side"], rows)


if __name__ == "__main__":
    main()

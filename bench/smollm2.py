"""A VPiT model of SmolLM2-135M's shape with random weights: what VPiT's benchmarks run on, nothing fetched."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from diptych.backbones.tiny_language import build_tiny_language_model
from diptych.models.vpit import VPiT, build_rows, find_supervision
from diptych.models.vpit_training import VPiTBatch, vpit_losses
from diptych.sequence import ImageSpan, Sequence, TextSpan, pack
from diptych.settings import VPiTConfig

VOCABULARY, FEATURE_DIM, NUM_TOKENS = 49152, 384, 64
START, END = VOCABULARY, VOCABULARY + 1


def build_model() -> VPiT:
    torch.manual_seed(0)
    language = build_tiny_language_model(
        "llama",
        vocab_size=VOCABULARY,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        initializer_range=0.02,
    )
    model = VPiT(
        language.model,
        feature_dim=FEATURE_DIM,
        num_image_tokens=NUM_TOKENS,
        token_ids=(START, END),
        connector="mlp2x_gelu",
    )
    return model.eval()


def random_text(length: int) -> tuple[int, ...]:
    return tuple(torch.randint(3, VOCABULARY, (length,)).tolist())


def random_features() -> Tensor:
    return normalize(torch.randn(NUM_TOKENS, FEATURE_DIM), dim=-1)


def prompt(length: int) -> Sequence:
    return Sequence((TextSpan(random_text(length), (False,) * length),))


def drawing(length: int, *, draw: int) -> Sequence:
    """A request of `length` tokens, then an image as the answer."""
    ends = [TextSpan((token,), (True,)) for token in (START, END)]
    target = ImageSpan(random_features(), NUM_TOKENS, is_target=True)
    return Sequence((*prompt(length).spans, ends[0], target, ends[1]), draw=draw)


def reading(length: int, *, draw: int) -> Sequence:
    """An image, a question, an answer of a quarter of `length`."""
    ends = [TextSpan((token,), (False,)) for token in (START, END)]
    answer = length // 4
    flags = (False,) * (length - answer) + (True,) * answer
    image = ImageSpan(random_features(), NUM_TOKENS, is_target=False)
    return Sequence((ends[0], image, ends[1], TextSpan(random_text(length), flags)), draw=draw)


def train_step(model: VPiT, streams: list[Sequence], *, longest_by_rows: int = 0) -> float:
    """The loss of the streams as one micro-batch; its gradients are made and dropped."""
    batch = pack(streams, image_predicts_text=True)
    rows, supervision = build_rows(batch, longest_by_rows=longest_by_rows), find_supervision(batch, START)
    config = VPiTConfig(image_encoder="none")
    losses = vpit_losses(model, VPiTBatch(batch, rows, supervision, batch.images), config)
    total = torch.stack([loss.total / max(1.0, loss.count) for loss in losses.values()]).sum()
    total.backward()
    for parameter in model.parameters():
        parameter.grad = None
    return total.item()

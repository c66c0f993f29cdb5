"""How soon 'Is there ...?' is learnt over frozen features and frozen words, by how the words meet the patches.

python bench/finding.py data/emoji-tasks --num-samples 50000

The answer is one number for each patch, and the largest is the picture's, so that no language model has to be trained
through: what differs is the meeting alone. Small networks of the same width see the same samples in the same order.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from pathlib import Path

import torch
from torch import Tensor, nn

from diptych.backbones.language import load_language_model
from diptych.backbones.vision import load_image_encoder
from diptych.data.images import image_to_tensor, open_image
from diptych.data.samples import Sample, read_samples
from diptych.nn.connector import reduce_tokens
from diptych.nn.heads import TextMatcher
from diptych.nn.towers.tower_parts import WidthMap
from paired import print_table

PATCHES, WIDTH, BATCH, LAYER = 16, 256, 48, 18
MEETINGS = ("attention", "added", "modulation", "product")


class Finder(nn.Module):
    """`meeting`: attention over words and patches, or pooled words added to patches, scaling them, or multiplied."""

    def __init__(self, meeting: str, *, feature_dim: int, text_width: int) -> None:
        super().__init__()
        self.meeting = meeting
        self.image_in = nn.Linear(feature_dim, WIDTH)
        self.position = nn.Parameter(torch.randn(PATCHES, WIDTH) * 0.02)
        self.text_in = WidthMap(text_width, WIDTH)
        self.matcher = TextMatcher(WIDTH, seen=feature_dim)
        self.scales = nn.ModuleList(nn.Linear(WIDTH, 2 * WIDTH) for _ in range(2))
        options = {"dim_feedforward": 3 * WIDTH, "dropout": 0.0, "batch_first": True, "norm_first": True}
        depth = 6 if meeting == "attention" else 2
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(WIDTH, 4, activation="gelu", **options) for _ in range(depth)
        )
        self.out = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 1))

    def forward(self, features: Tensor, words: Tensor, is_word: Tensor) -> Tensor:
        """Features [I, n, F], words [I, L, D] of which `is_word` [I, L] are there -> how much it is there [I]."""
        x, words = self.image_in(features) + self.position, self.text_in(words)
        pooled = (words * is_word[..., None]).sum(1) / is_word.sum(1, keepdim=True).sqrt()
        left_out = None
        if self.meeting == "attention":
            x = torch.cat((x, words), dim=1)
            left_out = torch.cat((is_word.new_zeros(len(x), PATCHES), ~is_word), dim=1)
        elif self.meeting == "added":
            x = x + pooled[:, None]
        elif self.meeting == "product":
            x = x + self.matcher(features, pooled)
        for number, layer in enumerate(self.layers):
            if self.meeting == "modulation":
                shift, scale = self.scales[number](pooled)[:, None].chunk(2, dim=-1)
                x = nn.functional.layer_norm(x, (WIDTH,)) * (1 + scale) + shift
            x = layer(x, src_key_padding_mask=left_out)
        return self.out(x[:, :PATCHES]).amax(dim=1)[:, 0]


def is_there(data: Path, split: str) -> list[Sample]:
    return [one for one in read_samples(data / f"{split}_ask.jsonl") if one.meta["kind"] == "exists"]


@torch.no_grad()
def encode(data: Path, samples: list[Sample]) -> tuple[Tensor, Tensor]:
    """Features [I, n, F] of size about 1, and which answers are yes [I]."""
    encoder = load_image_encoder("efficientnet-lite0", image_size=128)
    own, found = encoder.preprocessing, []
    for start in range(0, len(samples), 50):
        pictures = [open_image(data / sample.images[0]) for sample in samples[start : start + 50]]
        sized = [image_to_tensor(one, own.image_size, fit="crop", interpolation=own.interpolation) for one in pictures]
        found.append(reduce_tokens(encoder.features(torch.stack(sized)), PATCHES))
    features = torch.cat(found)
    says_yes = torch.tensor([float(sample.messages[1].parts[0] == "yes") for sample in samples])
    return features * features.shape[-1] ** 0.5, says_yes


@torch.no_grad()
def read_words(samples: list[Sample]) -> tuple[Tensor, Tensor]:
    """States [I, L, D] of each request before the layer where the tower begins, and which of them are there [I, L]."""
    language = load_language_model("smollm2-135m-instruct")
    states: dict[str, Tensor] = {}
    for sample in samples:
        request = str(sample.messages[0].parts[0])
        if request not in states:
            ids = language.tokenizer(request, return_tensors="pt").input_ids
            states[request] = language.model.model(ids, output_hidden_states=True).hidden_states[LAYER][0].float()
    rows = [states[str(sample.messages[0].parts[0])] for sample in samples]
    padded = nn.utils.rnn.pad_sequence(rows, batch_first=True)
    lengths = torch.tensor([len(row) for row in rows])
    return padded, torch.arange(padded.shape[1]) < lengths[:, None]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--num-samples", type=int, default=50000, help="that each network is trained on, with repeats")
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    args = parser.parse_args()
    splits = {split: is_there(args.data, split) for split in ("train", "test")}
    pictures = {split: encode(args.data, samples) for split, samples in splits.items()}
    words, is_word = read_words([*splits["train"], *splits["test"]])
    count = len(splits["train"])
    (features, truth), (shown, true) = pictures["train"], pictures["test"]
    rows = []
    for meeting in MEETINGS:
        torch.manual_seed(0)
        order = random.Random(0)
        net = Finder(meeting, feature_dim=features.shape[-1], text_width=words.shape[-1])
        net.text_in.standardise(words[:count][is_word[:count]])
        optimizer = torch.optim.AdamW(net.parameters(), lr=args.learning_rate, weight_decay=0.01)
        began, recent = time.perf_counter(), []
        for step in range(args.num_samples // BATCH):
            picks = order.sample(range(count), BATCH)
            told = net(features[picks], words[picks], is_word[picks])
            loss = nn.functional.binary_cross_entropy_with_logits(told, truth[picks])
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimizer.step()
            recent = [*recent[-99:], loss.item()]
            if step % 100 == 99:
                print(f"{meeting}: step {step + 1}, loss {sum(recent) / len(recent):.3f}", file=sys.stderr)
        with torch.no_grad():
            right = ((net(shown, words[count:], is_word[count:]) > 0) == (true > 0.5)).float().mean()
        spent = time.perf_counter() - began
        rows.append([meeting, f"{sum(recent) / len(recent):.3f}", f"{float(right):.1%}", f"{spent:.0f}"])
    print_table(
        "Finding by words", ["words meet patches by", "loss, last 100 steps", f"right of {len(true)}", "s"], rows
    )


if __name__ == "__main__":
    main()

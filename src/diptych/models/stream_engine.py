"""A language model fed with embeddings token by token, many conversations at once: what VPiT's decoding stands on."""

from __future__ import annotations

import inspect
from collections.abc import Sequence as Many
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from diptych.models.vpit import VPiT
from diptych.nn.decode_layer import LayerCache, decode_layer
from diptych.nn.layer_parts import ROUTABLE_FAMILIES, rotary
from diptych.sequence import Sequence, TextSpan, pack


def start_engine(model: VPiT, prompts: Many[Sequence]) -> CachedEngine | RecomputingEngine:
    """Runs the prompts: `hidden` [B, D] are their final states, `step` runs one more token, `keep` drops rows."""
    if model.decoder not in _CACHES_WELL:
        _CACHES_WELL[model.decoder] = _same_as_recomputed(model)
    return CachedEngine(model, prompts) if _CACHES_WELL[model.decoder] else RecomputingEngine(model, prompts)


_CACHES_WELL: WeakKeyDictionary[Any, bool] = WeakKeyDictionary()
"""Decoders whose cache was tried."""


def _same_as_recomputed(model: VPiT) -> bool:
    """Whether a decoder's cache gives what running everything again does: over two rows, one more token for both,
    and one for the row that is kept. Whatever it raises, a cache that cannot do it is none."""
    decoder = model.decoder
    if "past_key_values" not in inspect.signature(decoder.forward).parameters:
        return False
    prompts = [Sequence((TextSpan(tuple(range(length)), (False,) * length),)) for length in (3, 2)]
    inputs = model.language_model.get_input_embeddings()(torch.tensor([[1, 2]], device=decoder.device))[0]
    states, modes = [], [(module, module.training) for module in decoder.modules()]
    decoder.eval()
    try:
        for kind in (CachedEngine, RecomputingEngine):
            engine = kind(model, prompts)
            own = [engine.hidden, engine.step(inputs)]
            engine.keep([1])
            states.append(torch.cat((*own, engine.step(inputs[:1]))).float())
    except Exception:  # noqa: BLE001 - each family's cache fails in its own way
        return False
    finally:
        for module, mode in modes:
            module.training = mode
    cached, recomputed = states
    tolerance = 1e-3 if inputs.dtype == torch.float32 else 0.05
    return bool((cached - recomputed).norm() <= tolerance * recomputed.norm())


class CachedEngine:
    """The language model with its keys and values, over left-padded rows.

    The prompts go through the language model's own forward. So do the tokens that follow, unless its family's layers
    are known part by part: then `decode_layer` runs them, the same numbers in fewer operations.
    """

    def __init__(self, model: VPiT, prompts: Many[Sequence]) -> None:
        from transformers import DynamicCache

        self.decoder: Any = model.decoder
        device = next(model.connector.parameters()).device
        batch = pack(prompts).to(device)
        embeddings = model.embed(batch.token_ids, batch.is_image, batch.images if batch.num_images else None)
        lengths = torch.bincount(batch.sample_ids, minlength=len(prompts))
        longest = int(lengths.max())
        column = batch.positions + (longest - lengths)[batch.sample_ids]
        inputs = embeddings.new_zeros(len(prompts), longest, embeddings.shape[-1])
        inputs[batch.sample_ids, column] = embeddings
        self.mask = torch.zeros(len(prompts), longest, dtype=torch.long, device=device)
        self.mask[batch.sample_ids, column] = 1
        self.positions = lengths
        self.cache: Any = DynamicCache(config=self.decoder.config)
        self.takes_positions = "position_ids" in inspect.signature(self.decoder.forward).parameters
        self.hidden = self._run(inputs, (self.mask.cumsum(1) - 1).clamp_min(0))
        self.layers = self._take_over()

    def step(self, inputs: Tensor) -> Tensor:
        """One more token for every row: embeddings [B, D] -> final states [B, D]."""
        if self.layers is not None:
            rope = rotary(self.decoder.rotary_emb, self.positions, inputs.dtype)
            for layer, cache in zip(self.decoder.layers, self.layers, strict=True):
                inputs = decode_layer(layer, inputs, rope, cache)
            hidden = self.decoder.norm(inputs)
        else:
            self.mask = torch.cat((self.mask, self.mask.new_ones(len(inputs), 1)), dim=1)
            hidden = self._run(inputs[:, None], self.positions[:, None])
        self.positions = self.positions + 1
        return hidden

    def keep(self, rows: list[int]) -> None:
        """Only these rows go on."""
        index = torch.tensor(rows, device=self.mask.device)
        self.mask, self.positions = self.mask[index], self.positions[index]
        if self.layers is None:
            self.cache.batch_select_indices(index)
        for cache in self.layers or ():
            cache.keep(index)

    def _run(self, inputs: Tensor, positions: Tensor) -> Tensor:
        options = {"position_ids": positions} if self.takes_positions else {}
        mask = None if bool(self.mask.all()) else self.mask
        output = self.decoder(
            inputs_embeds=inputs, attention_mask=mask, past_key_values=self.cache, use_cache=True, **options
        )
        return output.last_hidden_state[:, -1]

    def _take_over(self) -> list[LayerCache] | None:
        """The prompts' keys and values by layer; None if the layers are not known, or one of them forgets."""
        from transformers.cache_utils import DynamicLayer

        known = self.decoder.config.model_type in ROUTABLE_FAMILIES
        if not known or any(type(layer) is not DynamicLayer for layer in self.cache.layers):
            return None
        mask = None if bool(self.mask.all()) else self.mask.bool()
        layers = [LayerCache(layer.keys, layer.values, mask) for layer in self.cache.layers]
        self.cache = None
        return layers


class RecomputingEngine:
    """For a language model whose past is not keys and values (Mamba, RWKV): each step runs all of every row again."""

    def __init__(self, model: VPiT, prompts: Many[Sequence]) -> None:
        self.decoder: Any = model.decoder
        batch = pack(prompts).to(next(model.connector.parameters()).device)
        embeddings = model.embed(batch.token_ids, batch.is_image, batch.images if batch.num_images else None)
        self.rows = list(embeddings.split(torch.bincount(batch.sample_ids, minlength=len(prompts)).tolist()))
        self.hidden = self._run()

    def step(self, inputs: Tensor) -> Tensor:
        """One more token for every row: embeddings [B, D] -> final states [B, D]."""
        self.rows = [torch.cat((row, own[None])) for row, own in zip(self.rows, inputs, strict=True)]
        return self._run()

    def keep(self, rows: list[int]) -> None:
        """Only these rows go on."""
        self.rows = [self.rows[index] for index in rows]

    def _run(self) -> Tensor:
        """Of copies: a decoder may scale its inputs in place (CTRL)."""
        runs = [self.decoder(inputs_embeds=row[None].clone(), use_cache=False) for row in self.rows]
        return torch.cat([run.last_hidden_state[:, -1] for run in runs])

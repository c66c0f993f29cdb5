"""X-Fusion's other layer designs (section 3): X-Fuse, gated tower, dual projection, single tower.

In each of them text behind an image, or an image, goes through more than one tower's layer, or through one attention
that both share. A block stands beside one layer of the language model, which it is handed and does not own, and does
all that happens at that depth, so that its weights are needed in its own `forward` alone.

All of it happens at or behind an image. Text before the first image is the frozen language model's own in every design
but the single tower; so text alone never meets a block, and the language guarantee holds.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from diptych.nn.attention import Groups, attend
from diptych.nn.decode_layer import LayerCache, decode_layer
from diptych.nn.heads import modulate
from diptych.nn.layer_parts import (
    Rope,
    attention_input,
    attention_output,
    mlp_input,
    mlp_output,
    project_key_value,
    project_query,
)
from diptych.nn.towers.tower_parts import KeyValue, Modulation, WidthMap

Gates = tuple[Tensor, ...]


@dataclass(frozen=True)
class Tokens:
    """A run of tokens of one kind: states [N, w] (text: the language model's width; image: the tower's image width),
    rotations for each tower, whom they meet (None: they are only read), and, of images, their time embeddings [I, dt].
    """

    states: Tensor
    text_rope: Rope
    vision_rope: Rope
    groups: Groups | None = None
    time: Tensor | None = None
    is_image: bool = False


@dataclass(frozen=True)
class KeyValues:
    """What a layer has read: by the language model's layer, by the block's own; None where that one read nothing."""

    text: KeyValue | None = None
    vision: KeyValue | None = None


@dataclass(frozen=True)
class Segment:
    """Tokens as one layer sees them: `layer` makes their queries, keys, values and MLP; `states` are of its width."""

    layer: Any
    states: Tensor
    rope: Rope
    groups: Groups | None
    gates: Gates | None = None


def run_segments(
    segments: Sequence[Segment], before: KeyValue | None = None
) -> tuple[list[Tensor | None], KeyValue | None]:
    """One attention over all segments, keys in their order behind `before`; each layer's MLP on its own tokens.

    Gives new states of the segments that have groups, None for the others, and the keys and values of everything.
    """
    normed, parts = [], [] if before is None else [before]
    for segment in segments:
        x = attention_input(segment.layer, segment.states)
        if segment.gates is not None:
            x = modulate(x, shift=segment.gates[0], scale=segment.gates[1])
        normed.append(x)
        parts.append(project_key_value(segment.layer, x, segment.rope))
    if not parts:
        return [], None
    key, value = torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])
    outs: list[Tensor | None] = []
    for segment, x in zip(segments, normed, strict=True):
        if segment.groups is None:
            outs.append(None)
            continue
        layer, gates = segment.layer, segment.gates
        query = project_query(layer, x, segment.rope)
        attended = attention_output(layer, attend(query, key, value, segment.groups, scaling=layer.self_attn.scaling))
        states = segment.states + (attended if gates is None else modulate(attended, gate=gates[2]))
        y = mlp_input(layer, states)
        if gates is None:
            outs.append(states + mlp_output(layer, y))
        else:
            y = modulate(y, shift=gates[3], scale=gates[4])
            outs.append(states + modulate(mlp_output(layer, y), gate=gates[5]))
    return outs, (key, value)


@dataclass
class DecodeCaches:
    """Of one layer: as the language model's layer reads, and as the block's own does (None: it reads nothing)."""

    text: LayerCache
    vision: LayerCache | None = None


class FusedBlock(nn.Module, ABC):
    """Base of the blocks here: `layer` is trained, of width d; `text_width` is the language model's D.

    reads_text_keys: whether an image, too, reads what the language model's layer makes of its keys.
    """

    reads_text_keys = True

    def __init__(self, layer: nn.Module, *, width: int, text_width: int, image_width: int, adaln: bool) -> None:
        super().__init__()
        self.layer = layer
        self.modulation = Modulation(width, image_width) if adaln else None
        narrow = width != text_width
        self.text_in = WidthMap(text_width, width) if narrow else None
        self.image_out = WidthMap(width, text_width) if narrow else None

    def _gates(self, tokens: Tokens) -> Gates | None:
        """Time modulates image tokens alone."""
        return self.modulation(tokens.time) if self.modulation is not None and tokens.time is not None else None

    def _into(self, states: Tensor) -> Tensor:
        return states if self.text_in is None else self.text_in(states)

    def _out_of(self, states: Tensor) -> Tensor:
        return states if self.image_out is None else self.image_out(states)

    @abstractmethod
    def forward(
        self, text_layer: nn.Module, tokens: Sequence[Tokens], before: KeyValues | None = None
    ) -> tuple[list[Tensor], KeyValues]:
        """New states of each run of tokens (those that are only read: as they were), and what was read.

        `tokens` stand in the order of the keys; `before`: what was read earlier, in front of them.
        """

    @abstractmethod
    def decode(
        self, text_layer: nn.Module, states: Tensor, text_rope: Rope, vision_rope: Rope, caches: DecodeCaches
    ) -> Tensor:
        """One more text token of every sample behind an image: states [B, D] -> [B, D]."""


class GatedBlock(FusedBlock):
    """H = H_txt + gamma * H_gate: the frozen layer and a trained copy on the same input; gamma starts at 0.

    Applied to images and to text behind one. A narrower trained layer stands between two maps.
    """

    def __init__(self, layer: nn.Module, **settings: Any) -> None:
        super().__init__(layer, **settings)
        self.gamma = nn.Parameter(torch.zeros(1))  # FSDP2 divides no scalar

    def forward(
        self, text_layer: nn.Module, tokens: Sequence[Tokens], before: KeyValues | None = None
    ) -> tuple[list[Tensor], KeyValues]:
        before = before or KeyValues()
        frozen, text = run_segments([Segment(text_layer, t.states, t.text_rope, t.groups) for t in tokens], before.text)
        own = [Segment(self.layer, self._into(t.states), t.vision_rope, t.groups, self._gates(t)) for t in tokens]
        trained, vision = run_segments(own, before.vision)
        outs = [
            t.states if a is None or b is None else a + self.gamma * self._out_of(b)
            for t, a, b in zip(tokens, frozen, trained, strict=True)
        ]
        return outs, KeyValues(text, vision)

    def decode(
        self, text_layer: nn.Module, states: Tensor, text_rope: Rope, vision_rope: Rope, caches: DecodeCaches
    ) -> Tensor:
        assert caches.vision is not None
        frozen = decode_layer(text_layer, states, text_rope, caches.text)
        trained = decode_layer(self.layer, self._into(states), vision_rope, caches.vision)
        return frozen + self.gamma * self._out_of(trained)


class ProjectionBlock(FusedBlock):
    """Dual projection (LMFusion): norms, projections and MLP of each modality's own, around one joint attention.

    The trained layer may be narrower, but its heads are the language model's in number and size.
    """

    def __init__(self, layer: nn.Module, **settings: Any) -> None:
        super().__init__(layer, **settings)
        self.text_in = self.image_out = None  # nothing is mapped: what meets is queries, keys and values

    def forward(
        self, text_layer: nn.Module, tokens: Sequence[Tokens], before: KeyValues | None = None
    ) -> tuple[list[Tensor], KeyValues]:
        segments = [
            Segment(self.layer if t.is_image else text_layer, t.states, t.text_rope, t.groups, self._gates(t))
            for t in tokens
        ]
        outs, joint = run_segments(segments, before.text if before else None)
        return [t.states if out is None else out for t, out in zip(tokens, outs, strict=True)], KeyValues(joint)

    def decode(
        self, text_layer: nn.Module, states: Tensor, text_rope: Rope, vision_rope: Rope, caches: DecodeCaches
    ) -> Tensor:
        del vision_rope
        return decode_layer(text_layer, states, text_rope, caches.text)


class SingleBlock(FusedBlock):
    """The language model's own layer, trained, for every token (Transfusion from an LLM). Language is not kept."""

    def forward(
        self, text_layer: nn.Module, tokens: Sequence[Tokens], before: KeyValues | None = None
    ) -> tuple[list[Tensor], KeyValues]:
        segments = [Segment(self.layer, t.states, t.text_rope, t.groups, self._gates(t)) for t in tokens]
        outs, read = run_segments(segments, before.text if before else None)
        return [t.states if out is None else out for t, out in zip(tokens, outs, strict=True)], KeyValues(read)

    def decode(
        self, text_layer: nn.Module, states: Tensor, text_rope: Rope, vision_rope: Rope, caches: DecodeCaches
    ) -> Tensor:
        del text_layer, vision_rope
        return decode_layer(self.layer, states, text_rope, caches.text)


class FuseBlock(FusedBlock):
    """The dual tower with X-Fuse: text (or images, or both) also go through the other tower's layer.

    out = alpha * own tower + beta * other tower, alpha starting at 1 and beta at 0. Where widths differ, linear maps
    align them (X-Fuse-proj).
    """

    def __init__(self, layer: nn.Module, *, x_fuse: Literal["text", "image", "both"], **settings: Any) -> None:
        super().__init__(layer, **settings)
        self.fuses_text, self.fuses_image = x_fuse in ("text", "both"), x_fuse in ("image", "both")
        self.reads_text_keys = self.fuses_image
        width, text_width = settings["width"], settings["text_width"]
        narrow = width != text_width
        self.text_mix = nn.Parameter(torch.tensor([1.0, 0.0])) if self.fuses_text else None
        self.image_mix = nn.Parameter(torch.tensor([1.0, 0.0])) if self.fuses_image else None
        self.text_back = WidthMap(width, text_width) if narrow and self.fuses_text else None
        self.image_back = WidthMap(text_width, width) if narrow and self.fuses_image else None

    def forward(
        self, text_layer: nn.Module, tokens: Sequence[Tokens], before: KeyValues | None = None
    ) -> tuple[list[Tensor], KeyValues]:
        before = before or KeyValues()
        of_text: list[Tensor | None] = [None] * len(tokens)
        text = None
        if self.reads_text_keys or any(t.groups is not None and not t.is_image for t in tokens):
            in_text = [
                Segment(
                    text_layer,
                    self._out_of(t.states) if t.is_image else t.states,
                    t.text_rope,
                    t.groups if self.fuses_image or not t.is_image else None,
                )
                for t in tokens
            ]
            of_text, text = run_segments(in_text, before.text)
        in_vision = [
            Segment(
                self.layer,
                t.states if t.is_image else self._into(t.states),
                t.vision_rope,
                t.groups if self.fuses_text or t.is_image else None,
                self._gates(t),
            )
            for t in tokens
        ]
        of_vision, vision = run_segments(in_vision, before.vision)
        outs = [
            t.states if t.groups is None else self._merge(t, a, b)
            for t, a, b in zip(tokens, of_text, of_vision, strict=True)
        ]
        return outs, KeyValues(text, vision)

    def _merge(self, tokens: Tokens, of_text: Tensor | None, of_vision: Tensor | None) -> Tensor:
        if tokens.is_image:
            assert of_vision is not None
            if self.image_mix is None or of_text is None:
                return of_vision
            other = of_text if self.image_back is None else self.image_back(of_text)
            return self.image_mix[0] * of_vision + self.image_mix[1] * other
        assert of_text is not None
        if self.text_mix is None or of_vision is None:
            return of_text
        other = of_vision if self.text_back is None else self.text_back(of_vision)
        return self.text_mix[0] * of_text + self.text_mix[1] * other

    def decode(
        self, text_layer: nn.Module, states: Tensor, text_rope: Rope, vision_rope: Rope, caches: DecodeCaches
    ) -> Tensor:
        own = decode_layer(text_layer, states, text_rope, caches.text)
        if self.text_mix is None:
            return own
        assert caches.vision is not None
        other = decode_layer(self.layer, self._into(states), vision_rope, caches.vision)
        other = other if self.text_back is None else self.text_back(other)
        return self.text_mix[0] * own + self.text_mix[1] * other

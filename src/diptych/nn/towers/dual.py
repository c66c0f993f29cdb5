"""The dual tower's trained half (X-Fusion section 3, "Dual Tower"): complete layers for image tokens.

Each block makes its own keys and values for all tokens, text included, and queries for image tokens alone. The
exact routing: a block never computes what would be thrown away. Blocks may be copies of the language model's layers
(symmetric) or fewer and narrower ones of the same class (asymmetric), with a norm and a linear map where widths meet.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from diptych.nn.attention import Groups, attend
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


class VisionBlock(nn.Module):
    """One layer of the vision tower, standing beside one layer of the language model.

    `layer`: a Hugging Face decoder layer of width d; `text_width`: the language model's D.
    """

    def __init__(self, layer: nn.Module, *, width: int, text_width: int, adaln: bool) -> None:
        super().__init__()
        self.layer = layer
        self.text_in = WidthMap(text_width, width) if width != text_width else None
        self.image_out = WidthMap(width, text_width) if width != text_width else None
        self.modulation = Modulation(width) if adaln else None

    def text_key_value(self, text: Tensor, rope: Rope) -> KeyValue:
        """Text states [N, D] -> this tower's own keys and values of them."""
        x = text if self.text_in is None else self.text_in(text)
        return project_key_value(self.layer, attention_input(self.layer, x), rope)

    def for_text(self, image: Tensor) -> Tensor:
        """Image states [N, d] as the text tower's layer reads them: [N, D]."""
        return image if self.image_out is None else self.image_out(image)

    def forward(
        self,
        image: Tensor | None,
        *,
        image_rope: Rope | None = None,
        time: Tensor | None = None,
        groups: Groups | None = None,
        text: Tensor | None = None,
        text_rope: Rope | None = None,
        before: KeyValue | None = None,
        read: Tensor | None = None,
    ) -> tuple[Tensor | None, KeyValue | None, Tensor | None]:
        """Returns (new image states [N, d], keys and values of all that was given, image states for the text tower).

        image [N, d]: states of image tokens, `time` [I, d] the time embedding of each image. text [Nt, D]: text that
        the image reads; `before`: keys and values computed earlier, in front of both. groups: who meets whom; None:
        no image queries (the states are then read, and this block's own output is not needed). read: rows of
        `image` that live text reads; None: none.
        """
        layer: Any = self.layer
        parts = [] if before is None else [before]
        if text is not None and text.shape[0]:
            assert text_rope is not None
            parts.append(self.text_key_value(text, text_rope))
        for_text = None
        x = gates = None
        if image is not None and image.shape[0]:
            assert image_rope is not None
            for_text = None if read is None else self.for_text(image[read])
            gates = self.modulation(time) if self.modulation is not None else None
            x = attention_input(layer, image)
            if gates is not None:
                x = modulate(x, shift=gates[0], scale=gates[1])
            parts.append(project_key_value(layer, x, image_rope))
        key_value = (torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts])) if parts else None
        if image is None or x is None or groups is None:
            return image, key_value, for_text
        assert key_value is not None
        assert image_rope is not None
        attended = attend(project_query(layer, x, image_rope), *key_value, groups, scaling=layer.self_attn.scaling)
        out = attention_output(layer, attended)
        image = image + (out if gates is None else modulate(out, gate=gates[2]))
        x = mlp_input(layer, image)
        if gates is None:
            return image + mlp_output(layer, x), key_value, for_text
        x = modulate(x, shift=gates[3], scale=gates[4])
        return image + modulate(mlp_output(layer, x), gate=gates[5]), key_value, for_text

"""One stream of text and image spans, and many of them packed into a batch.

Axis legend used across the project: N tokens of a packed batch, S samples, I images, n tokens of one
image, D width of the language model, d width of the vision tower, C h w a latent's axes.
"""

from __future__ import annotations

from collections.abc import Sequence as Many
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

IGNORE_INDEX = -100
TEXT = -1
"""Value of `Batch.image_ids` at text positions."""


@dataclass(frozen=True)
class TextSpan:
    """Text tokens; `loss[i]` says whether token i is to be predicted (by the token before it)."""

    token_ids: tuple[int, ...]
    loss: tuple[bool, ...]

    def __post_init__(self) -> None:
        if len(self.token_ids) != len(self.loss):
            raise ValueError(f"a text span has {len(self.token_ids)} tokens but {len(self.loss)} loss flags")

    def __len__(self) -> int:
        return len(self.token_ids)


@dataclass(frozen=True)
class ImageSpan:
    """One image of `num_tokens` positions. A target image is noised and denoised; a context image is clean.

    `source`: the file that it was read from, where that is known. is_copy: it is the image before it once more, clean,
    and stands at the same positions, so that what follows stands where it does when one image is there.
    """

    image: Tensor
    num_tokens: int
    is_target: bool
    source: str = ""
    is_copy: bool = False

    def __len__(self) -> int:
        return self.num_tokens


@dataclass(frozen=True)
class Sequence:
    """One sample as a stream. `draw` is its index in the run's stream of samples; its noise derives from it."""

    spans: tuple[TextSpan | ImageSpan, ...]
    draw: int = 0

    def __len__(self) -> int:
        return sum(len(span) for span in self.spans)

    @property
    def images(self) -> tuple[ImageSpan, ...]:
        return tuple(span for span in self.spans if isinstance(span, ImageSpan))


@dataclass(frozen=True)
class Batch:
    """Packed samples: one 1-D stream of N tokens without padding; positions restart with each sample.

    token_ids [N] (0 where an image stands), labels [N] (the token that this position must predict, or IGNORE_INDEX),
    positions [N] (a copy's are those of the image before it), sample_ids [N] (0..S-1), image_ids [N] (0..I-1, TEXT at
    text), images [I, ...] (latents or features), image_is_target [I] bool, image_samples [I] (the sample of each
    image), draws: S ints.
    """

    token_ids: Tensor
    labels: Tensor
    positions: Tensor
    sample_ids: Tensor
    image_ids: Tensor
    images: Tensor
    image_is_target: Tensor
    image_samples: Tensor
    draws: tuple[int, ...] = field(default=())

    @property
    def num_samples(self) -> int:
        return len(self.draws)

    @property
    def num_images(self) -> int:
        return self.image_is_target.numel()

    @property
    def is_image(self) -> Tensor:
        return self.image_ids != TEXT

    def to(self, device: torch.device | str) -> Batch:
        moved = {name: value.to(device) for name, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, **moved)


def pack(sequences: Many[Sequence], *, image_predicts_text: bool = False) -> Batch:
    """Packs samples end to end. A label is set only where the token before it, in the same sample, is text.

    image_predicts_text: an image token predicts the text behind it too (VPiT: the last one, `<image_end>`).
    Images of one batch must have one shape. Raises ValueError if not, or if there is nothing to pack.
    """
    if not sequences:
        raise ValueError("nothing to pack: the list of sequences is empty")
    token_ids: list[int] = []
    labels: list[int] = []
    positions: list[int] = []
    sample_ids: list[int] = []
    image_ids: list[int] = []
    images: list[Tensor] = []
    is_target: list[bool] = []
    image_samples: list[int] = []
    for sample, sequence in enumerate(sequences):
        start, position = len(token_ids), 0
        for span in sequence.spans:
            if isinstance(span, ImageSpan) and span.is_copy:
                position -= span.num_tokens
            positions += range(position, position + len(span))
            position += len(span)
            if isinstance(span, TextSpan):
                for token, supervised in zip(span.token_ids, span.loss, strict=True):
                    here = len(token_ids)
                    if supervised and here > start and (image_predicts_text or image_ids[here - 1] == TEXT):
                        labels[here - 1] = token
                    token_ids.append(token)
                    labels.append(IGNORE_INDEX)
                    image_ids.append(TEXT)
            else:
                token_ids += [0] * span.num_tokens
                labels += [IGNORE_INDEX] * span.num_tokens
                image_ids += [len(images)] * span.num_tokens
                images.append(span.image)
                is_target.append(span.is_target)
                image_samples.append(sample)
        sample_ids += [sample] * (len(token_ids) - start)
    shapes = {tuple(image.shape) for image in images}
    if len(shapes) > 1:
        raise ValueError(f"images of one batch must have one shape, found {sorted(shapes)}; set one image_size")
    long = torch.long
    return Batch(
        token_ids=torch.tensor(token_ids, dtype=long),
        labels=torch.tensor(labels, dtype=long),
        positions=torch.tensor(positions, dtype=long),
        sample_ids=torch.tensor(sample_ids, dtype=long),
        image_ids=torch.tensor(image_ids, dtype=long),
        images=torch.stack(images) if images else torch.zeros(0),
        image_is_target=torch.tensor(is_target, dtype=torch.bool),
        image_samples=torch.tensor(image_samples, dtype=long),
        draws=tuple(sequence.draw for sequence in sequences),
    )

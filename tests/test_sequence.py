"""Laws of the packed stream."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given

from diptych.sequence import IGNORE_INDEX, TEXT, ImageSpan, Sequence, TextSpan, pack
from tiny_xfusion import build_streams, build_xfusion, sequences

MODEL = build_xfusion()


@given(shapes=sequences())
def test_every_span_lands_in_its_place_in_order(shapes: list[list[tuple[str, int]]]) -> None:
    streams = build_streams(shapes, MODEL)
    batch = pack(streams)
    row = number = 0
    for sample, stream in enumerate(streams):
        start = row
        for span in stream.spans:
            here = slice(row, row + len(span))
            if isinstance(span, TextSpan):
                assert batch.token_ids[here].tolist() == list(span.token_ids)
                assert (batch.image_ids[here] == TEXT).all()
            else:
                assert (batch.image_ids[here] == number).all()
                assert torch.equal(batch.images[number], span.image)
                assert bool(batch.image_is_target[number]) == span.is_target
                assert int(batch.image_samples[number]) == sample
                number += 1
            row += len(span)
        assert batch.positions[start:row].tolist() == list(range(row - start))
        assert (batch.sample_ids[start:row] == sample).all()
    assert (row, number) == (batch.token_ids.numel(), batch.num_images)
    assert batch.draws == tuple(s.draw for s in streams)


@given(shapes=sequences())
def test_a_label_is_the_next_supervised_text_token_of_the_same_sample_and_only_text_predicts(
    shapes: list[list[tuple[str, int]]],
) -> None:
    streams = build_streams(shapes, MODEL)
    batch = pack(streams)
    flags: list[bool] = []
    for stream in streams:
        for span in stream.spans:
            flags += span.loss if isinstance(span, TextSpan) else [False] * len(span)
    for row, label in enumerate(batch.labels.tolist()):
        last = row + 1 == len(flags) or batch.sample_ids[row] != batch.sample_ids[row + 1]
        predicts = not last and flags[row + 1] and batch.image_ids[row] == TEXT
        assert label == (int(batch.token_ids[row + 1]) if predicts else IGNORE_INDEX)


def test_packing_nothing_and_images_of_two_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="nothing to pack"):
        pack([])
    spans = (ImageSpan(torch.zeros(4, 4, 4), 4, True), ImageSpan(torch.zeros(4, 8, 8), 4, True))
    with pytest.raises(ValueError, match="one shape"):
        pack([Sequence(spans)])


def test_a_span_refuses_a_count_mismatch_and_names_both_counts() -> None:
    with pytest.raises(ValueError, match="3 tokens but 2 loss flags"):
        TextSpan((1, 2, 3), (True, False))

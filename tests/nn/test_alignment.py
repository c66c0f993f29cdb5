"""Laws of alignment: 1 - cos, nothing lost at the features themselves, the encoder's features never moved."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cosine_similarity, normalize

from diptych.nn.alignment import AlignmentHead, alignment_loss


def test_the_loss_is_the_sum_of_one_minus_cosine() -> None:
    predicted, features = torch.randn(2, 4, 6), torch.randn(2, 4, 6)
    expected = (1 - cosine_similarity(predicted, features, dim=-1)).sum()
    unit = normalize(features, dim=-1)
    torch.testing.assert_close(alignment_loss(normalize(predicted, dim=-1), unit), expected)
    torch.testing.assert_close(alignment_loss(unit, unit), torch.zeros(()), atol=1e-5, rtol=0)


def test_features_get_no_gradient() -> None:
    predicted, features = torch.randn(3, 6, requires_grad=True), torch.randn(3, 6, requires_grad=True)
    alignment_loss(normalize(predicted, dim=-1), features).backward()
    assert predicted.grad is not None
    assert features.grad is None


@pytest.mark.parametrize(
    ("projector", "parameters"), [("linear", 8 * 6 + 6), ("mlp3", 8 * 32 + 32 + 32 * 32 + 32 + 32 * 6 + 6)]
)
def test_projectors_have_the_size_that_their_name_says(projector: str, parameters: int) -> None:
    head = AlignmentHead(8, 6, projector=projector)
    assert sum(p.numel() for p in head.parameters()) == parameters
    torch.testing.assert_close(head(torch.randn(5, 8)).norm(dim=-1), torch.ones(5))


def test_an_unknown_projector_is_refused() -> None:
    with pytest.raises(ValueError, match=r"unknown projector 'mlp9'; choose one of: linear, mlp3"):
        AlignmentHead(8, 6, projector="mlp9")

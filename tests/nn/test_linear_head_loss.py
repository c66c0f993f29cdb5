"""The loss of a head that is one matrix equals the plain one, in value and gradients."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import cross_entropy

from diptych.nn.linear_head_loss import linear_head_cross_entropy

WIDTH, VOCABULARY = 6, 11


def plain_logits(
    states: Tensor, weight: Tensor, bias: Tensor | None, rows: Tensor | None, row_ids: tuple[int, ...]
) -> Tensor:
    logits = states @ weight.T
    if bias is not None:
        logits = logits + bias
    if rows is None:
        return logits
    size = max(len(weight), *(i + 1 for i in row_ids))
    columns = list(torch.nn.functional.pad(logits, (0, size - len(weight)), value=-torch.inf).unbind(1))
    for i, row in zip(row_ids, rows, strict=True):
        columns[i] = states @ row
    return torch.stack(columns, dim=1)


def problem(num: int, *, has_bias: bool, row_ids: tuple[int, ...], seed: int = 0) -> tuple[Tensor | None, ...]:
    generator = torch.Generator().manual_seed(seed)
    shapes = ((num, WIDTH), (VOCABULARY, WIDTH), (VOCABULARY,), (len(row_ids), WIDTH))
    wanted = (True, True, has_bias, bool(row_ids))
    made = [
        torch.randn(s, generator=generator, requires_grad=True) if w else None
        for s, w in zip(shapes, wanted, strict=True)
    ]
    words = [*range(VOCABULARY), *(i for i in row_ids if i >= VOCABULARY)]
    labels = torch.tensor(words)[torch.randint(len(words), (num,), generator=generator)]
    return (made[0], labels, *made[1:])


@settings(max_examples=60, deadline=None)
@given(
    num=st.integers(0, 40),
    chunk_size=st.integers(1, 50),
    scale=st.floats(0.1, 3.0),
    seed=st.integers(0, 1000),
    has_bias=st.booleans(),
    row_ids=st.sampled_from([(), (VOCABULARY, VOCABULARY + 1), (3, 7), (2, VOCABULARY + 4)]),
)
def test_values_and_gradients_are_the_plain_ones(
    num: int, chunk_size: int, scale: float, seed: int, has_bias: bool, row_ids: tuple[int, ...]
) -> None:
    states, labels, *parts = problem(num, has_bias=has_bias, row_ids=row_ids, seed=seed)
    assert states is not None
    assert labels is not None
    wanted = [tensor for tensor in (states, *parts) if tensor is not None]
    plain = cross_entropy(plain_logits(states, *parts, row_ids), labels, reduction="sum")  # type: ignore[arg-type]
    expected = torch.autograd.grad(scale * plain, wanted)
    ours = linear_head_cross_entropy(states, labels, *parts, row_ids, chunk_size=chunk_size)  # type: ignore[arg-type]
    torch.testing.assert_close(ours, plain, atol=1e-4, rtol=1e-5)
    for a, b in zip(torch.autograd.grad(scale * ours, wanted), expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("frozen", ["states", "weight", "rows", "all"])
def test_only_what_needs_gradients_gets_them(frozen: str) -> None:
    states, labels, weight, _, rows = problem(9, has_bias=False, row_ids=(3, 12))
    named = {"states": states, "weight": weight, "rows": rows}
    for name, tensor in named.items():
        assert tensor is not None
        tensor.requires_grad_(frozen not in (name, "all"))
    loss = linear_head_cross_entropy(states, labels, weight, None, rows, (3, 12), chunk_size=4)  # type: ignore[arg-type]
    assert loss.requires_grad == (frozen != "all")
    if loss.requires_grad:
        loss.backward()
    for name, tensor in named.items():
        assert tensor is not None
        assert (tensor.grad is None) == (frozen in (name, "all"))


def test_large_logits_stay_finite() -> None:
    states, labels, weight, *_ = problem(9, has_bias=False, row_ids=())
    assert states is not None
    assert weight is not None
    loss = linear_head_cross_entropy(1e3 * states, labels, weight)  # type: ignore[arg-type]
    torch.testing.assert_close(loss, cross_entropy(1e3 * states @ weight.T, labels, reduction="sum"))  # type: ignore[arg-type]


def test_a_gradient_is_taken_once_and_said_to_be() -> None:
    states, labels, weight, *_ = problem(9, has_bias=False, row_ids=())
    loss = linear_head_cross_entropy(states, labels, weight)  # type: ignore[arg-type]
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="taken already"):
        loss.backward()


def test_under_autocast_the_products_are_in_its_format_and_the_loss_in_float32() -> None:
    states, labels, weight, *_ = problem(33, has_bias=False, row_ids=())
    assert states is not None
    assert weight is not None
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = linear_head_cross_entropy(states, labels, weight, chunk_size=8)  # type: ignore[arg-type]
        plain = cross_entropy((states @ weight.T).float(), labels, reduction="sum")  # type: ignore[arg-type]
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, plain, atol=1e-3, rtol=1e-4)
    found = torch.autograd.grad(loss, [states, weight])
    for a, b in zip(found, torch.autograd.grad(plain, [states, weight]), strict=True):
        assert a.dtype == torch.float32
        torch.testing.assert_close(a, b, atol=0.05, rtol=0.05)

"""Chunked cross-entropy equals the plain one, in value and gradients, and never makes all logits at once."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from diptych.nn.chunked_loss import chunked_cross_entropy

WIDTH, VOCABULARY = 6, 11


def problem(num: int, *, seed: int = 0) -> tuple[Tensor, Tensor, nn.Linear]:
    generator = torch.Generator().manual_seed(seed)
    states = torch.randn(num, WIDTH, generator=generator, requires_grad=True)
    labels = torch.randint(VOCABULARY, (num,), generator=generator)
    head = nn.Linear(WIDTH, VOCABULARY)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return states, labels, head


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 40), st.integers(1, 50), st.floats(0.1, 3.0), st.integers(0, 1000))
def test_values_and_gradients_are_the_plain_ones(num: int, chunk_size: int, scale: float, seed: int) -> None:
    states, labels, head = problem(num, seed=seed)
    parameters = list(head.parameters())
    plain = cross_entropy(head(states), labels, reduction="sum")
    expected = torch.autograd.grad(scale * plain, [states, *parameters])
    chunked = chunked_cross_entropy(states, labels, head, parameters, chunk_size=chunk_size)
    torch.testing.assert_close(chunked, plain, atol=1e-4, rtol=1e-5)
    found = torch.autograd.grad(scale * chunked, [states, *parameters])
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-5)


def test_no_more_than_a_chunk_of_logits_exists_at_a_time() -> None:
    states, labels, head = problem(100)
    shapes: list[int] = []

    def watched(chunk: Tensor) -> Tensor:
        shapes.append(len(chunk))
        return head(chunk)

    chunked_cross_entropy(states, labels, watched, list(head.parameters()), chunk_size=16).backward()
    assert shapes == [16] * 6 + [4]


@pytest.mark.parametrize("frozen", ["states", "head", "all"])
def test_only_what_needs_gradients_gets_them(frozen: str) -> None:
    states, labels, head = problem(9)
    states = states.detach() if frozen in ("states", "all") else states
    head.requires_grad_(frozen not in ("head", "all"))
    loss = chunked_cross_entropy(states, labels, head, list(head.parameters()), chunk_size=4)
    torch.testing.assert_close(loss, cross_entropy(head(states), labels, reduction="sum"))
    assert loss.requires_grad == (frozen != "all")
    if loss.requires_grad:
        loss.backward()
    assert (states.grad is None) == (frozen in ("states", "all"))
    assert (head.weight.grad is None) == (frozen in ("head", "all"))


def test_a_parameter_named_twice_counts_once() -> None:
    states, labels, head = problem(9)
    once = chunked_cross_entropy(states, labels, head, [head.weight, head.bias], chunk_size=4)
    (expected,) = torch.autograd.grad(once, [head.weight])
    twice = chunked_cross_entropy(states, labels, head, [head.weight, head.bias, head.weight], chunk_size=4)
    (found,) = torch.autograd.grad(twice, [head.weight])
    assert torch.equal(found, expected)


def test_no_tokens_give_no_loss() -> None:
    states, labels, head = problem(0)
    loss = chunked_cross_entropy(states, labels, head, list(head.parameters()))
    assert loss.item() == 0.0
    loss.backward()
    assert head.weight.grad is not None
    assert not bool(head.weight.grad.any())


def test_without_gradients_it_is_just_the_loss() -> None:
    states, labels, head = problem(9)
    with torch.no_grad():
        loss = chunked_cross_entropy(states, labels, head, list(head.parameters()), chunk_size=2)
    assert not loss.requires_grad
    torch.testing.assert_close(loss, cross_entropy(head(states), labels, reduction="sum").detach())


def test_under_autocast_the_loss_stays_in_float32() -> None:
    states, labels, head = problem(33)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = chunked_cross_entropy(states, labels, head, list(head.parameters()), chunk_size=8)
        plain = cross_entropy(head(states).float(), labels, reduction="sum")
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, plain, atol=1e-3, rtol=1e-4)
    loss.backward()
    assert states.grad is not None
    assert bool(torch.isfinite(states.grad).all())

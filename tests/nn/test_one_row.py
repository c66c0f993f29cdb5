"""Laws of one-row products: the same numbers, whatever the shape, and nothing is left behind."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from diptych.nn.one_row import one_row_products, plain_linears


@pytest.mark.parametrize("shape", [(1, 6), (1, 1, 6), (6,), (3, 6), (2, 3, 6), (0, 6)])
@pytest.mark.parametrize("bias", [True, False])
def test_the_numbers_are_those_of_the_plain_layer(shape: tuple[int, ...], bias: bool) -> None:
    model = nn.Sequential(nn.Linear(6, 5, bias=bias), nn.GELU(), nn.Linear(5, 4, bias=bias))
    x = torch.randn(shape)
    expected = model(x)
    with one_row_products(plain_linears(model)):
        found = model(x)
    assert found.shape == expected.shape
    torch.testing.assert_close(found, expected)


def test_nothing_is_left_behind() -> None:
    layer = nn.Linear(6, 5)
    assert plain_linears(nn.Sequential(layer, nn.GELU())) == [layer]
    with pytest.raises(KeyError), one_row_products([layer]), one_row_products([layer]):
        raise KeyError
    assert "forward" not in layer.__dict__


def test_under_autocast_products_are_in_its_format() -> None:
    layer = nn.Linear(6, 5)
    with torch.autocast("cpu", dtype=torch.bfloat16), one_row_products([layer]):
        assert layer(torch.randn(1, 6)).dtype == torch.bfloat16

"""Laws of the language check: 0 for an untouched model, and no touch so small that it is missed."""

from __future__ import annotations

import pytest
import torch

from diptych.evaluate.language_check import NUM_QUICK, PROMPTS, check_language
from tiny_xfusion import build_language, build_tiny_morph


def test_an_untouched_model_differs_by_exactly_0() -> None:
    check = check_language(build_tiny_morph(), build_language())
    assert check.max_abs_diff == 0
    assert check.same_weights
    assert check.num_prompts == NUM_QUICK == 32
    assert len(PROMPTS) == len(set(PROMPTS)) == 256
    assert check.num_logits > 0


def test_the_smallest_change_of_one_weight_is_seen() -> None:
    morph = build_tiny_morph()
    weight = morph.language_model.model.layers[1].mlp.up_proj.weight
    with torch.no_grad():
        weight[0, 0] = torch.nextafter(weight[0, 0], torch.tensor(9.0))
    assert not check_language(morph, build_language()).same_weights


def test_a_real_change_moves_the_logits() -> None:
    morph = build_tiny_morph()
    with torch.no_grad():
        morph.language_model.model.norm.weight.mul_(1.01)
    assert check_language(morph, build_language()).max_abs_diff > 0


def test_logits_that_are_not_finite_do_not_pass_as_equal() -> None:
    morph = build_tiny_morph()
    with torch.no_grad():
        morph.language_model.model.norm.weight[0] = float("nan")
    with pytest.raises(ValueError, match="not finite"):
        check_language(morph, build_language())


def test_a_model_is_not_compared_with_itself() -> None:
    morph = build_tiny_morph()
    with pytest.raises(ValueError, match="afresh"):
        check_language(morph, morph.language)

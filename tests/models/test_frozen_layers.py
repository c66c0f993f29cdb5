"""Frozen means cached, in VPiT: kept states give the losses, gradients and generation of states computed anew."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from diptych.models.vpit import build_rows, find_supervision, shown_tokens
from diptych.models.vpit_training import VPiTTraining
from diptych.sequence import ImageSpan, Sequence, pack
from tiny_vpit import NUM_TOKENS, build_training, build_vpit, vpit_recipe, write_emblems
from tiny_xfusion import text

PICKS = [(0, 0, 0), (1, 1, 1), (2, 0, 2)]
CACHED: dict[str, Any] = {
    "first_trained_layer": 1,
    "cached_forms": 2,
    "train_parts": ("visual_head", "boundary_tokens", "language_model"),
    "visual_input_dropout": 0.5,
    "visual_input_noise": 0.2,
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_emblems(tmp_path_factory.mktemp("emblems"))


def training(data: Path, family: str = "llama", **vpit: Any) -> VPiTTraining:
    return build_training(vpit_recipe("nowhere", data, vpit=CACHED | vpit), family)


def total(method: VPiTTraining, batch: Any) -> Tensor:
    return torch.stack([loss.total for loss in method(batch).values()]).sum()


@pytest.mark.parametrize("family", ["llama", "qwen3", "olmo2", "mistral"])
def test_kept_states_give_the_losses_and_gradients_of_the_whole_model(data: Path, family: str) -> None:
    method = training(data, family)
    results = []
    for frozen in (method.frozen_layers, method.frozen_layers, None):
        method.frozen_layers = frozen
        method.zero_grad(set_to_none=True)
        loss = total(method, method.build_batch(PICKS, seed=0))
        loss.backward()
        results.append((loss.detach(), {n: p.grad for n, p in method.model.named_parameters() if p.grad is not None}))
    assert results[0][1].keys() == method.trainable_parameters().keys()
    for kept, gradients in results[:2]:
        torch.testing.assert_close(kept, results[2][0])
        torch.testing.assert_close(gradients, results[2][1], atol=1e-5, rtol=1e-4)


def test_each_form_is_computed_once_and_training_leaves_what_is_kept_true(data: Path) -> None:
    method = training(data)
    assert method.frozen_layers is not None
    trained = method.trainable_parameters()
    assert not [name for name in trained if name.startswith("connector") or name == "boundary_tokens.input"]
    assert "boundary_tokens.output" in trained
    optimizer = torch.optim.AdamW(trained.values(), lr=1e-2)
    for step in range(12):
        total(method, method.build_batch([(9 * step + i, s, k) for i, s, k in PICKS], seed=0)).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert method.frozen_layers.num_computed <= 2 * len(PICKS)
    batch = method.build_batch(PICKS, seed=0)
    kept = method.frozen_layers.final_states(batch.batch, batch.rows, batch.inputs, batch.keys)
    torch.testing.assert_close(kept, method.model.states(batch.batch, batch.rows, batch.inputs))


def test_what_is_kept_has_a_bound_and_the_losses_are_the_same_beyond_it(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The states of about two samples, where a batch has three: what went is computed again."""
    everything = training(data)
    most = 2 * max(everything.num_tokens(pick, seed=0) for pick in PICKS) * 32 * 4  # width, bytes of a number
    monkeypatch.setattr("diptych.models.frozen_layers.STATE_BYTES_KEPT", most)
    little = training(data)
    assert everything.frozen_layers is not None
    assert little.frozen_layers is not None
    seen: set[Any] = set()
    for step in range(6):
        picks = [(9 * step + i, s, k) for i, s, k in (*PICKS, PICKS[0])]
        first, second = (method.build_batch(picks, seed=0) for method in (everything, little))
        seen |= set(first.keys)
        torch.testing.assert_close(total(little, second), total(everything, first))
        assert 0 < little.frozen_layers.num_bytes_kept <= most
    assert little.frozen_layers.num_computed > everything.frozen_layers.num_computed == len(seen)


def test_forms_differ_and_are_the_same_again(data: Path) -> None:
    method = training(data, cached_forms=3)
    seen: dict[Any, Tensor] = {}
    for draw in range(30):
        batch = method.build_batch([(draw, 0, 0)], seed=0)
        torch.testing.assert_close(batch.inputs, seen.setdefault(batch.keys, batch.inputs), rtol=0, atol=0)
    assert len(seen) == 3
    assert len({tuple(inputs.flatten().tolist()) for inputs in seen.values()}) == 3


def test_what_would_change_the_kept_states_is_refused(data: Path) -> None:
    with pytest.raises(ValueError, match="first_trained_layer above 0"):
        training(data, first_trained_layer=0)
    with pytest.raises(ValueError, match="no connector"):
        training(data, train_parts=("connector", "language_model"))


def test_generation_hides_as_many_visual_tokens_as_training() -> None:
    """What free running predicts, the whole sequence predicts when it is fed the same predictions, hidden alike."""
    morph = build_vpit(vpit={"visual_input_dropout": 0.5})
    shown = shown_tokens(NUM_TOKENS, 0.5)
    assert int(shown.sum()) == NUM_TOKENS // 2
    (generated,) = morph.answer([[{"role": "user", "content": "Draw it."}]], generation_mode="image")[0]
    assert isinstance(generated, Tensor)
    (alone,) = build_vpit(vpit={"visual_input_dropout": 1.0}).answer(
        [[{"role": "user", "content": "Draw it."}]], generation_mode="image"
    )[0]
    ids = morph.tokenizer.apply_chat_template(
        [{"role": "user", "content": "Draw it."}], add_generation_prompt=True, return_dict=False
    )
    start, _ = morph.model.boundary_tokens.token_ids
    whole = pack([Sequence((text(*ids), text(start, loss=True), ImageSpan(generated, NUM_TOKENS, is_target=True)))])
    states = morph.model.states(whole, build_rows(whole), generated[None] * shown[:, None])
    predicted = morph.model.visual_head(states[find_supervision(whole, start).visual])
    torch.testing.assert_close(predicted, generated, atol=1e-5, rtol=1e-5)
    assert isinstance(alone, Tensor)
    assert not torch.equal(generated, alone)
    assert shown_tokens(NUM_TOKENS, 0.0).all()
    assert not shown_tokens(NUM_TOKENS, 1.0).any()

"""Laws of frozen text: cached equals fresh, and what is kept is not computed again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from diptych.data.tensor_cache import TensorCache
from diptych.models.text_states import FrozenText
from diptych.models.xfusion import XFusion
from diptych.nn.visibility import build_plan
from diptych.sequence import Sequence, pack
from tiny_xfusion import build_language, build_streams, build_xfusion, image, text

SHAPES = [
    [("text", 3), ("target", 1)],
    [("text", 2), ("context", 1), ("text", 2), ("answer", 4)],
    [("target", 1), ("text", 2), ("target", 1), ("context", 1), ("answer", 2), ("target", 1)],
]


def _gather(model: XFusion, streams: list[Sequence]) -> FrozenText:
    batch = pack(streams)
    return model.text_states.gather(batch, build_plan(batch))


def _same(a: FrozenText, b: FrozenText) -> bool:
    return all(torch.equal(x, y) for x, y in zip(vars(a).values(), vars(b).values(), strict=True))


def test_cached_states_equal_fresh_ones_bit_for_bit_and_the_tower_does_not_run_again(tmp_path: Path) -> None:
    for symmetric in (True, False):
        cache = TensorCache(tmp_path / str(symmetric), key="text")
        model = build_xfusion(symmetric=symmetric, cache=cache)
        fresh = _gather(build_xfusion(symmetric=symmetric), build_streams(SHAPES, model))
        first = _gather(model, build_streams(SHAPES, model))
        computed = model.text_states.num_computed
        again = _gather(model, build_streams(SHAPES, model))
        assert _same(first, fresh)
        assert _same(again, fresh)
        assert model.text_states.num_computed == computed > 0
        cache.flush()
        reopened = build_xfusion(symmetric=symmetric, cache=TensorCache(tmp_path / str(symmetric), key="text"))
        assert _same(_gather(reopened, build_streams(SHAPES, model)), fresh)
        assert reopened.text_states.num_computed == 0


def test_a_caption_is_computed_once_whichever_batch_it_comes_in(tmp_path: Path) -> None:
    model = build_xfusion(cache=TensorCache(tmp_path, key="text"))
    caption, other = text(5, 6, 7), text(8, 9)
    _gather(model, [Sequence((caption, image(model, is_target=True)))] * 3)
    assert model.text_states.num_computed == 3
    _gather(
        model,
        [Sequence((other, image(model, is_target=True))), Sequence((caption, image(model, is_target=True, seed=4)))],
    )
    assert model.text_states.num_computed == 3 + 2


def test_states_of_other_layers_are_never_mistaken_for_these(tmp_path: Path) -> None:
    """The same first and last layer and the same number of them, yet other layers between."""
    streams = [Sequence((text(5, 6, 7), image(build_xfusion(), is_target=True)))]
    language = {"num_hidden_layers": 4}
    for layers in ((0, 1, 3), (0, 2, 3)):
        built = build_language("llama", **language)
        cache = TensorCache(tmp_path, key="text")
        model = build_xfusion(symmetric=False, layers=layers, language=built, cache=cache)
        fresh = build_xfusion(symmetric=False, layers=layers, language=built)
        assert _same(_gather(model, streams), _gather(fresh, streams))
        cache.flush()


def test_frozen_states_hold_no_gradient_and_live_text_starts_from_the_language_models_states() -> None:
    model = build_xfusion(symmetric=False)
    frozen = _gather(model, build_streams(SHAPES, model))
    assert not any(states.requires_grad for states in vars(frozen).values())
    ids, positions = [4, 5, 6, 7], [0, 1, 6 + 2, 6 + 3]
    span = (text(4, 5), image(model, is_target=False), text(6, 7, loss=True))
    assert len(span[1]) == 6
    batch = pack([Sequence(span)])
    live = model.text_states.gather(batch, build_plan(batch)).live
    theirs = model.text_tower.language_model(
        input_ids=torch.tensor([ids]), position_ids=torch.tensor([positions]), output_hidden_states=True
    ).hidden_states[1][0]
    torch.testing.assert_close(live, theirs[2 : 2 + len(live)], atol=1e-5, rtol=1e-5)


def test_text_to_image_with_known_captions_never_runs_the_text_tower(tmp_path: Path) -> None:
    model = build_xfusion(cache=TensorCache(tmp_path, key="text"))
    streams = [Sequence((text(5, 6, 7), image(model, is_target=True)))]
    _gather(model, streams)
    calls = []
    for layer in model.text_tower.layers:
        layer.get_submodule("mlp").register_forward_hook(lambda *_: calls.append(1))
    batch = pack(streams)
    velocity, _ = model(batch, build_plan(batch), torch.randn(1, 4, 4, 4), torch.rand(1))
    velocity.sum().backward()
    assert calls == []


@pytest.mark.parametrize("design", [{}, {"layer_design": "gated"}, {"layer_design": "projection"}, {"x_fuse": "text"}])
def test_a_prompt_goes_through_the_language_model_once(design: dict[str, Any]) -> None:
    """Whoever reads it: an image's keys and values, the pooled text, the text of a layer that both share."""
    model = build_xfusion(**design)
    prompt = Sequence((text(5, 6, 7), image(model, is_target=True)))
    batch = pack([prompt])
    model.text_states.gather(batch, model.plan(batch))
    assert model.text_states.num_computed == 3


@pytest.mark.parametrize(
    "design",
    [{}, {"symmetric": False}, {"layer_design": "gated"}, {"layer_design": "projection"}, {"x_fuse": "both"}],
    ids=str,
)
def test_the_bytes_that_are_said_are_those_of_the_file(design: dict[str, Any], tmp_path: Path) -> None:
    cache = TensorCache(tmp_path, key="text")
    model = build_xfusion(**design, cache=cache)
    batch = pack(build_streams(SHAPES, model))
    said = dict(model.text_states.kept_bytes(batch, model.plan(batch)))
    assert len(cache) == 0
    model.text_states.gather(batch, model.plan(batch))
    cache.flush()
    (shard,) = cache.folder.glob("*.safetensors")
    kept = {name.split("\n")[0]: tensor.nbytes for name, tensor in load_file(shard).items()}
    assert said == kept


def test_single_tower_text_is_trained_and_none_of_it_kept() -> None:
    model = build_xfusion(layer_design="single")
    batch = pack(build_streams(SHAPES, model))
    assert model.text_states.kept_bytes(batch, model.plan(batch)) == []


def test_states_beyond_the_bound_of_the_disk_are_computed_anew_and_equal(tmp_path: Path) -> None:
    fresh = build_xfusion()
    streams = [Sequence((text(5, 6, word), image(fresh, is_target=True))) for word in range(7, 27)]
    cache = TensorCache(tmp_path, key="text", memory_bytes=1, disk_bytes=8000)
    model = build_xfusion(cache=cache)
    for _ in range(2):
        for stream in streams:
            assert _same(_gather(model, [stream]), _gather(fresh, [stream]))
            cache.flush()
        assert sum(path.stat().st_size for path in cache.folder.iterdir()) <= 8000
    assert cache.is_full
    assert 3 * len(streams) < model.text_states.num_computed < 2 * 3 * len(streams)

"""Laws of the account: bytes of keys and values are those that are kept, and the guarantee is said as it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig

from diptych.backbones.autoencoder import load_autoencoder
from diptych.backbones.skeletons import build_language_skeleton
from diptych.config import build_recipe
from diptych.models.accounts.run_account import RunAccount
from diptych.models.accounts.xfusion_account import _decoding_bytes, _read_bytes, account_xfusion
from diptych.models.decoding import _prefill
from diptych.sequence import pack
from tiny_xfusion import build_language, build_streams, build_xfusion

DESIGNS: list[dict[str, Any]] = [
    {},
    {"layer_design": "gated"},
    {"layer_design": "projection"},
    {"layer_design": "single"},
    {"x_fuse": "text"},
    {"x_fuse": "image"},
    {"x_fuse": "both"},
]


def account_of(folder: Path, tower: dict[str, Any], **settings: Any) -> RunAccount:
    config = LlamaConfig(vocab_size=300, hidden_size=32, intermediate_size=64, num_hidden_layers=2)
    config.save_pretrained(folder)
    recipe = build_recipe(
        {
            "output_dir": "unused",
            "language_model": str(folder),
            "vision_tower": tower,
            "data": {"sources": [{"path": "not-there.jsonl"}]},
            **settings,
        }
    )
    return account_xfusion(recipe)


def num_bytes(pairs: Any) -> int:
    return sum(tensor.nbytes for pair in pairs if pair is not None for tensor in pair)


@torch.no_grad()
@pytest.mark.parametrize("design", DESIGNS, ids=str)
def test_bytes_while_writing_are_those_of_the_caches(design: dict[str, Any]) -> None:
    model = build_xfusion(**design)
    (prompt,) = build_streams([[("text", 3), ("context", 1), ("text", 4)]], model)
    _, caches = _prefill(model, [prompt], None)
    kept = [cache for both in caches for cache in (both.text, both.vision) if cache is not None]
    assert num_bytes((cache.key, cache.value) for cache in kept) == _decoding_bytes(model) * len(prompt)


@torch.no_grad()
@pytest.mark.parametrize("design", DESIGNS, ids=str)
def test_bytes_while_drawing_are_those_of_what_is_read(design: dict[str, Any]) -> None:
    model = build_xfusion(**design)
    batch = pack(build_streams([[("text", 7), ("target", 1)]], model))
    prefilled = model.prefill(batch, model.plan(batch))
    read = prefilled.key_values
    if model.vision_tower.is_fused:
        read = [pair for values in read for pair in (values.text, values.vision)]
    assert num_bytes(read) == _read_bytes(model) * 7


@pytest.mark.parametrize("design", DESIGNS, ids=str)
def test_designs_are_compared_by_the_cost_of_a_token_and_by_all_parameters(
    design: dict[str, Any], tmp_path: Path
) -> None:
    """Drawing: 24 text tokens and one image for each sample, by all parts that work on them."""
    account = account_of(tmp_path, design)
    numbers = account.as_dict()
    texts, images = account.tokens["text token"], account.tokens["image token"]
    assert texts == 24 * account.samples_per_step
    for way in ("forward", "backward"):
        each = {kind: cost[way] for kind, cost in numbers["flops_per_token"].items()}
        whole = each["text token"] * texts + each["image token"] * images
        assert whole == pytest.approx(numbers["flops_per_step"][way], rel=1e-9)
        assert each["image token"] > 0
    parameters = numbers["parameters"]
    assert parameters["total"] == sum(parameters["trained"].values()) + sum(parameters["frozen"].values())
    told = account.describe(1e9, measured=False)
    assert "all, of each image token" in told
    assert "all, of each text token" in told


@pytest.mark.parametrize("design", [{}, {"layer_design": "gated"}, {"layer_design": "projection"}], ids=str)
def test_blocks_are_told_by_their_own_width(design: dict[str, Any], tmp_path: Path) -> None:
    account = account_of(tmp_path, {"hidden_size": 16, "intermediate_size": 40} | design)
    assert "vision tower, 2 blocks of width 16" in account.trained


@pytest.mark.parametrize(
    ("tower", "said"),
    [
        ({}, "copied from the language model"),
        ({"hidden_size": 32, "intermediate_size": 64}, "copied from the language model"),
        ({"hidden_size": 16}, "new"),
        ({"layer_design": "single"}, "the language model's own"),
        ({"init_from": "runs/a"}, "those of morph runs/a"),
        ({"init_from": "runs/a", "fresh_attention": True}, "those of morph runs/a, attention copied from the language"),
        ({"init_from": "runs/a", "fresh_attention": [0]}, "those of morph runs/a, attention beside 0 copied from the"),
    ],
    ids=str,
)
def test_it_is_said_where_the_layers_come_from(tower: dict[str, Any], said: str, tmp_path: Path) -> None:
    told = account_of(tmp_path, tower).describe(1e9, measured=False)
    assert f"vision tower ({tower.get('layer_design', 'dual')}): its layers are {said}" in told


def test_x_fuse_is_told(tmp_path: Path) -> None:
    assert "vision tower (dual, x_fuse both): its" in account_of(tmp_path, {"x_fuse": "both"}).describe(
        1e9, measured=False
    )


@pytest.mark.parametrize("design", ["dual", "single"])
def test_the_guarantee_is_said_as_it_is(design: str, tmp_path: Path) -> None:
    account = account_of(tmp_path, {"layer_design": design})
    told = account.describe(1e9, measured=False)
    assert account.keeps_language == (design == "dual")
    assert ("NOT kept" in told) == (design == "single")
    layers = sum(count for name, count in account.trained.items() if name.startswith("vision tower"))
    whole = account.frozen[f"language model {tmp_path}"] + (layers if design == "single" else 0)
    embeddings, norm = 300 * 32, 32
    assert whole == 2 * embeddings + norm + layers


@pytest.mark.parametrize("time", ["add", "adaln"])
def test_what_the_single_tower_learns_beside_the_language_model_is_no_part_of_it(time: str, tmp_path: Path) -> None:
    account = account_of(tmp_path, {"layer_design": "single", "time_conditioning": time})
    language = build_language_skeleton(str(tmp_path))
    own = 2 * sum(p.numel() for p in language.model.layers[0].parameters())
    assert account.frozen[f"language model {tmp_path}"] == sum(p.numel() for p in language.parameters()) - own


@torch.no_grad()
def test_latents_cost_what_the_autoencoder_runs_of_them(tmp_path: Path) -> None:
    account = account_of(tmp_path, {})
    autoencoder = load_autoencoder(account.recipe.autoencoder)
    size = account.recipe.image_size
    with FlopCounterMode(display=False) as counter:
        autoencoder.encode(torch.zeros(2, 3, size, size))
    each = counter.get_total_flops() / 2
    assert account.once["latents"].total == pytest.approx(each * account.samples_per_step)


@pytest.mark.parametrize("projector", ["linear", "mlp3"])
def test_the_alignment_projector_is_a_trained_part_of_its_own(tmp_path: Path, projector: str) -> None:
    alone = account_of(tmp_path / "lm", {}).trained
    alignment = {"image_encoder": "efficientnet-lite0", "layer": 0, "projector": projector}
    aligned = account_of(tmp_path / "lm", {}, alignment=alignment).trained
    assert set(aligned) - set(alone) == {"alignment projector"}
    assert aligned["alignment projector"] > 0
    assert {name: aligned[name] for name in alone} == alone


def test_text_states_are_told_by_the_token_with_the_limit_and_for_all_samples_where_these_are_known(
    tmp_path: Path,
) -> None:
    build_language().save_pretrained(tmp_path / "llm")
    Image.new("RGB", (16, 16)).save(tmp_path / "one.png")
    lines = [json.dumps({"image": "one.png", "caption": f"the picture {number}"}) for number in range(6)]
    path = tmp_path / "captions.jsonl"
    path.write_text("\n".join(lines) + "\n")
    settings: dict[str, Any] = {
        "output_dir": "unused",
        "language_model": str(tmp_path / "llm"),
        "data": {"sources": [{"path": str(path), "task": "draw"}]},
        "template": "plain",
    }
    account = account_xfusion(build_recipe(settings))
    layers, width = 3, 32
    each, whole = (account.cached[name][0] for name in ("text states", "text states, all samples"))
    assert whole == pytest.approx(account.tokens["text token"] / account.samples_per_step * 6 * each, rel=1e-2)
    assert 0 < each <= 4 * layers * width  # text behind the image is not kept
    assert whole % (4 * layers * width) == 0
    assert "20 GB of them at most" in account.describe(1e9, measured=False)
    none = account_xfusion(build_recipe(settings | {"text_cache_gb": 0}))
    assert "none: computed anew" in none.describe(1e9, measured=False)
    assert "text states, all samples" not in account_xfusion(account.recipe, nominal="drawing").cached


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_memory_of_a_rank_is_frozen_weights_and_weights_gradients_and_two_moments_of_what_is_trained(
    ema: float, tmp_path: Path
) -> None:
    """Alone, 16 bytes of a trained parameter, 4 more of an average. Of several, whole weights and gradients through a
    step, and this rank's part of all the others."""
    account = account_of(tmp_path, {}, train={"ema": ema})
    trained, frozen = (sum(counts.values()) for counts in (account.trained, account.frozen))
    each = 20 if ema else 16
    assert sum(account.rank_bytes(1).values()) == 4 * frozen + each * trained
    several = account.rank_bytes(4)
    assert several["frozen weights"] == 4 * frozen
    assert sum(several.values()) == pytest.approx(4 * frozen + 8 * trained + each * trained / 4, rel=1e-6)


@pytest.mark.parametrize("design", DESIGNS, ids=str)
def test_frozen_text_that_is_not_kept_is_of_every_step(design: dict[str, Any], tmp_path: Path) -> None:
    kept, anew = (account_of(tmp_path, design, text_cache_gb=size) for size in (1, 0))
    frozen = kept.once.get("frozen text")
    assert (frozen is None) == (design.get("layer_design") == "single")
    assert anew.step.total - kept.step.total == pytest.approx(0 if frozen is None else frozen.total)
    assert "frozen text" not in anew.once
    assert ("frozen text, once and then cached" in kept.describe(1e9, measured=False)) == (frozen is not None)
    assert "once and then cached" not in anew.describe(1e9, measured=False).replace("latents, once", "")
    told = anew.flops_per_token["text token"].total - kept.flops_per_token["text token"].total
    assert told * anew.tokens["text token"] == pytest.approx(0 if frozen is None else frozen.total)

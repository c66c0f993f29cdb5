"""A VPiT morph on disk: what was trained, nothing else; loaded, it is the same; what does not fit is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from diptych.models import vpit_checkpoint
from diptych.models.checkpoint import load_morph
from diptych.models.vpit_checkpoint import build_vpit_morph, save_vpit
from diptych.models.vpit_morph import VPiTMorph
from diptych.stages import expand_stages
from diptych.train.loop import run_training
from tiny_vpit import build_encoder, build_training, build_vpit, vpit_recipe, write_emblems
from tiny_xfusion import build_language

REQUEST: list[dict[str, Any]] = [{"role": "user", "content": "Draw 1."}]


@pytest.fixture(autouse=True)
def encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vpit_checkpoint, "load_image_encoder", lambda *_, **__: build_encoder())


def drawn(morph: VPiTMorph) -> Tensor:
    (tokens,) = morph.answer([REQUEST], generation_mode="image")[0]
    assert isinstance(tokens, Tensor)
    return tokens


@pytest.mark.parametrize(
    ("settings", "language_state"),
    [
        ({}, "whole"),
        ({"lora": {"r": 2}}, "lora"),
        ({"train_parts": ["connector", "visual_head", "boundary_tokens"]}, "base"),
    ],
)
def test_a_loaded_morph_is_the_saved_one(tmp_path: Path, settings: dict[str, Any], language_state: str) -> None:
    morph = build_vpit(vpit=settings)
    with torch.no_grad():
        for name, tensor in vpit_checkpoint.stored_tensors(morph.model, morph.language_state).items():
            tensor.add_(0.02 * torch.randn(tensor.shape, generator=torch.Generator().manual_seed(len(name))))
    save_vpit(tmp_path, morph)
    stored = load_file(tmp_path / "model.safetensors")
    assert json.loads((tmp_path / "config.json").read_text())["language_state"] == language_state
    kept = {name for name in stored if name.startswith("language_model.")}
    assert {"base": not kept, "lora": all(".lora_" in n for n in kept) and kept, "whole": kept}[language_state]
    loaded = load_morph(tmp_path, language_model=build_language("llama"))
    assert torch.equal(drawn(loaded), drawn(morph))
    ids = torch.tensor([[5, 6, 7]])
    assert torch.equal(loaded.text_logits(ids), morph.text_logits(ids))
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())


def test_stages_go_on_from_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One recipe of two stages: the first trains the connector and the new rows alone, the second everything."""
    data = write_emblems(tmp_path / "data")
    stages = [
        {"name": "one", "changes": {"vpit": {"train_parts": ["connector", "boundary_tokens"], "visual_weight": 0.0}}},
        {"name": "two", "changes": {"train": {"learning_rate": 1e-3, "max_steps": 2}}},
    ]
    first, second = expand_stages(vpit_recipe(tmp_path / "run", data, stages=stages))
    assert Path(first.output_dir) == tmp_path / "run" / "one"
    assert Path(second.output_dir) == tmp_path / "run"
    assert second.vpit.init_from == str(tmp_path / "run" / "one" / "morph")
    run_training(first, build_training(first))
    after_one = load_file(Path(first.output_dir) / "morph" / "model.safetensors")
    assert not [name for name in after_one if name.startswith("language_model.")]
    method = build_training(second)
    for name, tensor in after_one.items():
        assert torch.equal(dict(method.model.named_parameters())[name].detach(), tensor)
    run_training(second, method)
    last = load_file(Path(second.output_dir) / "morph" / "model.safetensors")
    assert [name for name in last if name.startswith("language_model.")]


def test_a_stage_without_the_language_model_keeps_what_an_earlier_one_made_of_it(tmp_path: Path) -> None:
    save_vpit(tmp_path / "one", build_vpit())
    later = build_vpit_morph(
        vpit_recipe(vpit={"init_from": str(tmp_path / "one"), "train_parts": ["visual_head"]}),
        language=build_language("llama"),
        encoder=build_encoder(),
        cached=False,
    )
    assert later.language_state == "whole"


def test_what_does_not_fit_is_refused_by_name(tmp_path: Path) -> None:
    morph = build_vpit()
    save_vpit(tmp_path, morph)
    with pytest.raises(ValueError, match="language model with hash"):
        load_morph(tmp_path, language_model=build_language("llama", seed=1))
    config = json.loads((tmp_path / "config.json").read_text())
    config["hashes"]["image_encoder"] = "e" * 64
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"image encoder with hash eeee.* names 'tiny-vit'"):
        load_morph(tmp_path, language_model=build_language("llama"))


def test_an_image_without_a_pixel_decoder_is_refused_before_the_work() -> None:
    morph = build_vpit()
    with pytest.raises(ValueError, match="no pixel decoder"):
        morph.generate(REQUEST, generation_mode="image")


def test_a_tokenizer_with_the_boundary_tokens_is_refused() -> None:
    language = build_language("llama")
    language.tokenizer.add_tokens(["<image_end>"], special_tokens=True)
    with pytest.raises(ValueError, match="already has <image_end>"):
        build_vpit(language=language)


@pytest.mark.parametrize("option", [{"image_guidance_scale": 2.0}, {"negative_prompt": "ugly"}], ids=str)
def test_what_only_diffusion_can_do_is_refused(option: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="VPiT has no"):
        build_vpit().generate([{"role": "user", "content": "Draw."}], **option)

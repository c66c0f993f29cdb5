"""A VPiT morph on disk: what was trained, nothing else; loaded, it is the same; what does not fit is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from diptych.backbones.language import LanguageModel
from diptych.data.samples import Message
from diptych.models import vpit_checkpoint
from diptych.models.checkpoint import load_morph
from diptych.models.vpit import shown_tokens
from diptych.models.vpit_checkpoint import build_vpit_morph, save_vpit
from diptych.models.vpit_morph import VPiTMorph
from diptych.models.vpit_training import VPiTTraining
from diptych.stages import expand_stages
from diptych.train.loop import run_training
from tiny_vpit import (
    NUM_TOKENS,
    build_encoder,
    build_training,
    build_vpit,
    random_features,
    vpit_recipe,
    write_emblems,
)
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


@pytest.mark.parametrize("tied", [False, True])
def test_a_stage_of_the_embedding_s_rows_alone_saves_both(tmp_path: Path, tied: bool) -> None:
    """The LM head's rows of the boundary tokens, where it has its own, come through such a stage as they were."""
    recipe = vpit_recipe(
        tmp_path / "run",
        write_emblems(tmp_path / "data"),
        vpit={"train_parts": ["connector", "boundary_embeddings"], "visual_weight": 0.0},
    )

    def language() -> LanguageModel:
        return build_language("llama", tie_word_embeddings=tied)

    morph = build_vpit_morph(recipe, language=language(), encoder=build_encoder(), cached=False)
    before = {name: tensor.clone() for name, tensor in morph.model.boundary_tokens.named_parameters()}
    run_training(recipe, VPiTTraining(recipe, morph))
    stored = load_file(tmp_path / "run" / "morph" / "model.safetensors")
    rows = {name.split(".")[1]: tensor for name, tensor in stored.items() if name.startswith("boundary_tokens.")}
    assert set(rows) == ({"input"} if tied else {"input", "output"})
    assert not torch.equal(rows["input"], before["input"])
    assert tied or torch.equal(rows["output"], before["output"])
    loaded = load_morph(tmp_path / "run" / "morph", language_model=language())
    for name, tensor in loaded.model.boundary_tokens.named_parameters():
        assert torch.equal(tensor, rows[name])


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


HEADS = ["connector", "visual_head", "boundary_tokens"]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({}, {"lora": {"r": 2}}),
        ({"train_parts": HEADS}, {"lora": {"r": 2}}),
        ({"lora": {"r": 2}}, {"lora": {"r": 2}, "train_parts": HEADS}),
        ({}, {"visual_input_dropout": 0.5}),
        ({"visual_input_dropout": 0.5}, {}),
        ({}, {"cached_forms": 2, "first_trained_layer": 1, "train_parts": [*HEADS[1:], "language_model"]}),
        ({"cached_forms": 2, "first_trained_layer": 1, "train_parts": [*HEADS[1:], "language_model"]}, {}),
    ],
)
def test_a_stage_may_train_in_another_way_than_the_one_before(
    tmp_path: Path, before: dict[str, Any], after: dict[str, Any]
) -> None:
    """It gives what the stage before gave, since what is new starts at rest; and loads again as it was saved."""
    first = build_vpit(vpit=before)
    save_vpit(tmp_path / "first", first)
    recipe = vpit_recipe(vpit={**after, "init_from": str(tmp_path / "first")})
    second = build_vpit_morph(recipe, language=build_language("llama"), encoder=build_encoder(), cached=False)
    ids = torch.tensor([[5, 6, 7]])
    torch.testing.assert_close(second.text_logits(ids), first.text_logits(ids), atol=1e-5, rtol=0)
    states = torch.randn(2, second.language_model.config.hidden_size)
    torch.testing.assert_close(second.model.text_logits(states), first.model.text_logits(states), atol=1e-5, rtol=0)
    if not before.get("visual_input_dropout") and not after.get("visual_input_dropout"):
        torch.testing.assert_close(drawn(second), drawn(first), atol=1e-5, rtol=0)
    second.model.eval()
    save_vpit(tmp_path / "second", second)
    loaded = load_morph(tmp_path / "second", language_model=build_language("llama"))
    torch.testing.assert_close(drawn(loaded), drawn(second), atol=1e-5, rtol=0)


def test_adapters_of_an_earlier_stage_are_not_dropped_in_silence(tmp_path: Path) -> None:
    save_vpit(tmp_path, build_vpit(vpit={"lora": {"r": 2}}))
    recipe = vpit_recipe(vpit={"init_from": str(tmp_path)})
    with pytest.raises(ValueError, match=r"has adapters .*keep the same vpit\.lora"):
        build_vpit_morph(recipe, language=build_language("llama"), encoder=build_encoder(), cached=False)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"generation_mode": "sound"}, "generation_mode 'sound'"),
        ({"temperature": 0.0}, "temperature must be above 0"),
        ({"visual_guidance_scale": 2.0}, "text_cond_dropout_prob"),
        ({"visual_guidance_scale": float("nan")}, "must be a number"),
    ],
)
def test_options_out_of_range_are_refused_before_the_work(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        build_vpit().answer([REQUEST], **options)


def test_visual_tokens_that_are_no_numbers_are_refused_by_conversation() -> None:
    morph = build_vpit()
    with torch.no_grad():
        dict(morph.model.visual_head.named_parameters())["layers.2.bias"].fill_(torch.nan)
    with pytest.raises(ValueError, match=r"conversation 0, 1 are not finite"):
        morph.answer([REQUEST, REQUEST], generation_mode="image")


def test_a_conversation_answers_the_same_alone_and_in_a_batch() -> None:
    """Pictures and sampled text, of the same seed: what else is asked at the same time does not count."""
    morph = build_vpit()
    morph.pixel_decoder = Recording()
    others = [[{"role": "user", "content": f"Draw {k} and {k}."}] for k in range(3)]
    for conversation in others:
        morph.generate(conversation, generation_mode="image", seed=3, num_images=2)
    alone, morph.pixel_decoder.calls = morph.pixel_decoder.calls, []
    morph.generate_batch(others, generation_mode="image", seed=3, num_images=2)
    asked = [pair for _, seeds, numbers in morph.pixel_decoder.calls for pair in zip(seeds, numbers, strict=True)]
    assert set(asked) == {(3, 0), (4, 0)}
    for k in range(3):
        for picture in range(2):
            together, seeds, _ = morph.pixel_decoder.calls[picture]
            torch.testing.assert_close(together[k], alone[2 * k + picture][0][0], atol=1e-5, rtol=0)
            assert [seeds[k]] == alone[2 * k + picture][1]
    options: dict[str, Any] = {"generation_mode": "text", "do_sample": True, "max_new_tokens": 8, "seed": 5}
    assert morph.answer(others, **options) == [morph.answer([one], **options)[0] for one in others]


class Recording:
    """In place of a pixel decoder: notes what it is asked for."""

    def __init__(self) -> None:
        self.calls: list[tuple[Tensor, list[int], list[int]]] = []

    def decode(self, features: Tensor, *, numbers: list[int], seed: list[int], **options: Any) -> Tensor:
        del options
        self.calls.append((features, seed, list(numbers)))
        return torch.zeros(len(features), 3, 4, 4)


def test_what_was_drawn_before_is_read_as_training_showed_it() -> None:
    """An image of an earlier answer has as many tokens hidden as a target had; one of the user's has none."""
    morph = build_vpit(vpit={"visual_input_dropout": 0.75})
    messages = (Message("user", ("Draw.",)), Message("assistant", (0,)), Message("user", ("And this?", 1)))
    tokens = list(random_features(2))
    drawn_before, asked_about = morph._inputs(messages, tokens)
    shown = shown_tokens(NUM_TOKENS, 0.75)
    assert torch.equal(drawn_before, tokens[0] * shown[:, None])
    assert torch.equal(asked_about, tokens[1])


def test_pixels_come_with_a_pixel_decoder() -> None:
    morph = build_vpit()
    assert morph.abilities == {"reads", "writes"}
    with pytest.raises(ValueError, match="no pixel decoder"):
        morph.reconstruct([])
    morph.pixel_decoder = Recording()
    assert morph.abilities == {"reads", "writes", "draws", "reconstructs"}

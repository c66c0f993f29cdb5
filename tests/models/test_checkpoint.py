"""Laws of morphs on disk: bit-exact round trips, and whatever does not fit is refused by name."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import diptych.models.checkpoint as checkpoint
from diptych.models import morph_files
from diptych.models.checkpoint import CONFIG, WEIGHTS, load_morph, save_morph
from diptych.models.generate import Morph
from diptych.models.morph_files import write_morph_files
from tiny_xfusion import FakeAutoencoder, build_language, build_tiny_morph, tiny_recipe


@pytest.fixture(autouse=True)
def fake_autoencoder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "load_image_space", lambda name: FakeAutoencoder())


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Path, Morph]:
    morph = build_tiny_morph()
    save_morph(tmp_path / "morph", morph)
    return tmp_path / "morph", morph


def _weights(morph: Morph) -> dict[str, torch.Tensor]:
    return dict(morph.model.vision_tower.named_parameters())


@pytest.mark.parametrize("by", ["object", "folder"])
def test_a_morph_comes_back_bit_for_bit(saved: tuple[Path, Morph], tmp_path: Path, by: str) -> None:
    folder, morph = saved
    language = morph.language
    if by == "folder":
        language.save_pretrained(tmp_path / "llm")
        loaded_hash = checkpoint.load_language_model(str(tmp_path / "llm")).hash
        assert loaded_hash == language.hash
        loaded = load_morph(folder, language_model=str(tmp_path / "llm"))
    else:
        loaded = load_morph(folder, language_model=language)
    theirs = _weights(loaded)
    assert theirs.keys() == _weights(morph).keys()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in _weights(morph).items())
    assert not any(tensor.requires_grad for tensor in theirs.values())
    portable = {"output_dir": ".", "cache_dir": None}
    assert loaded.recipe == morph.recipe.model_copy(update=portable)
    ask = [{"role": "user", "content": "a cat"}]
    assert loaded.generate(ask)[0].tobytes() == morph.generate(ask)[0].tobytes()  # type: ignore[union-attr]


def test_given_weights_are_saved_in_place_of_the_present_ones(tmp_path: Path) -> None:
    morph = build_tiny_morph()
    averaged = {name: tensor.detach() * 0.5 for name, tensor in _weights(morph).items()}
    save_morph(tmp_path, morph, weights=averaged)
    loaded = _weights(load_morph(tmp_path, language_model=morph.language))
    assert all(torch.equal(averaged[name], tensor) for name, tensor in loaded.items())


def test_a_bfloat16_morph_is_half_as_large_and_rounds_once(tmp_path: Path) -> None:
    morph = build_tiny_morph(morph_dtype="bfloat16")
    save_morph(tmp_path, morph)
    loaded = _weights(load_morph(tmp_path, language_model=morph.language))
    assert all(torch.equal(t.bfloat16().float(), loaded[name]) for name, t in _weights(morph).items())


def test_saving_leaves_exactly_the_two_files_and_replaces_an_older_morph(saved: tuple[Path, Morph]) -> None:
    folder, morph = saved
    save_morph(folder, morph)
    assert sorted(path.name for path in folder.iterdir()) == sorted((CONFIG, WEIGHTS))


def test_another_base_language_model_is_refused_with_both_hashes(saved: tuple[Path, Morph]) -> None:
    folder, morph = saved
    other = build_language(seed=7)
    with pytest.raises(ValueError, match="language model") as caught:
        load_morph(folder, language_model=other)
    assert morph.language.hash[:16] in str(caught.value)
    assert other.hash[:16] in str(caught.value)


def test_another_autoencoder_is_refused(saved: tuple[Path, Morph], monkeypatch: pytest.MonkeyPatch) -> None:
    folder, morph = saved
    monkeypatch.setattr(FakeAutoencoder, "hash", "e" * 64)
    with pytest.raises(ValueError, match="autoencoder with hash ffff"):
        load_morph(folder, language_model=morph.language)


def vouch_again(folder: Path) -> None:
    """Makes a morph's config agree with weights that were changed on purpose."""
    config = json.loads((folder / CONFIG).read_text())
    config["weights_sha256"] = hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()
    (folder / CONFIG).write_text(json.dumps(config))


@pytest.mark.parametrize("place", [0.3, 0.6, 0.99])
def test_a_flipped_bit_is_found_and_the_file_named(saved: tuple[Path, Morph], place: float) -> None:
    folder, morph = saved
    data = bytearray((folder / WEIGHTS).read_bytes())
    data[int(place * len(data))] ^= 1
    (folder / WEIGHTS).write_bytes(bytes(data))
    with pytest.raises(ValueError, match=rf"{WEIGHTS} is damaged: its SHA-256"):
        load_morph(folder, language_model=morph.language)


def test_a_morph_names_no_folder_of_the_machine_it_was_trained_on(tmp_path: Path) -> None:
    morph = build_tiny_morph(output_dir="/home/someone/runs/x", cache_dir="/home/someone/cache")
    save_morph(tmp_path, morph)
    assert "/home/someone" not in (tmp_path / CONFIG).read_text()


def test_others_may_read_a_morph(saved: tuple[Path, Morph]) -> None:
    for path in saved[0].iterdir():
        assert path.stat().st_mode & 0o444 == 0o444, path.name


def test_a_morph_cannot_switch_on_code_of_a_repository(saved: tuple[Path, Morph], tmp_path: Path) -> None:
    """The morph of a stranger names a language model with code of its own, and says that this code is trusted."""
    folder, morph = saved
    canary, base = tmp_path / "canary", tmp_path / "base"
    morph.language.save_pretrained(base)
    config = json.loads((base / "config.json").read_text())
    config |= {"model_type": "strange", "auto_map": {"AutoConfig": "strange.C", "AutoModelForCausalLM": "strange.M"}}
    (base / "config.json").write_text(json.dumps(config))
    (base / "strange.py").write_text(f"open({str(canary)!r}, 'w').close()")
    settings = json.loads((folder / CONFIG).read_text())
    settings["recipe"] |= {"trust_remote_code": True, "language_model": str(base)}
    (folder / CONFIG).write_text(json.dumps(settings))
    with pytest.raises(ValueError, match=r"asks to run code from the repository of .*--trust-remote-code"):
        load_morph(folder)
    settings["recipe"]["trust_remote_code"] = False
    (folder / CONFIG).write_text(json.dumps(settings))
    with pytest.raises(ValueError, match="language model"):
        load_morph(folder)
    assert not canary.exists()


def test_a_base_that_lies_elsewhere_is_told_how_to_be_given(saved: tuple[Path, Morph]) -> None:
    folder, _ = saved
    config = json.loads((folder / CONFIG).read_text())
    config["recipe"]["language_model"] = "/only/on/another/machine"
    (folder / CONFIG).write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"there is no such folder.*say where it lies with --language-model"):
        load_morph(folder)


def test_a_base_of_another_size_is_refused_by_its_hash(saved: tuple[Path, Morph]) -> None:
    """Not by whatever does not fit of it first."""
    other = build_language(num_hidden_layers=1)
    with pytest.raises(ValueError, match=r"language model with hash .*--language-model"):
        load_morph(saved[0], language_model=other)


def test_a_family_that_cannot_be_routed_is_refused_before_its_weights_are_read(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]}))
    recipe = build_tiny_morph().recipe.model_copy(update={"language_model": str(tmp_path)})
    with pytest.raises(ValueError, match="'gpt2' cannot be routed"):
        checkpoint.build_morph(recipe, autoencoder=FakeAutoencoder(), cached=False)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"vision_tower": {"layers": [99]}}, "names layer 99"),
        ({"image_size": 9}, "image_size 9 is not a multiple of 2"),
        ({"vision_tower": {"hidden_size": 24, "num_attention_heads": 5}}, "num_attention_heads 5"),
    ],
)
def test_what_configs_tell_is_refused_before_any_weights_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], says: str
) -> None:
    build_language().model.config.save_pretrained(tmp_path)
    for loader in ("load_language_model", "load_image_space"):
        monkeypatch.setattr(checkpoint, loader, lambda *_, **__: pytest.fail("weights were read"))
    tower = {"patch_size": 2, **settings.get("vision_tower", {})}
    recipe = tiny_recipe(language_model=str(tmp_path), autoencoder="pixels", **(settings | {"vision_tower": tower}))
    with pytest.raises(ValueError, match=says):
        checkpoint.build_morph(recipe, cached=False)


def test_a_morph_that_is_nowhere_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: Any, **__: Any) -> None:
        raise ConnectionError("no network\nmuch more of it")

    monkeypatch.setattr("diptych.backbones.hub_loading.snapshot_download", unreachable)
    with pytest.raises(ValueError, match=r"morph 'some/morph' is no folder and .*: no network; embedded: emoji-dual"):
        morph_files.find_morph("some/morph")
    with pytest.raises(ValueError, match=r"there is no morph at runs/no/morph; give .* or one of: emoji-dual"):
        morph_files.find_morph("runs/no/morph")


READS = {"image_encoder": "vit-s14-focus", "encoder_layer": 3}


@pytest.mark.parametrize(
    ("earlier", "later", "says"),
    [
        ({}, {"vision_tower": {"layer_design": "gated"}}, "vision_tower.layer_design dual, not gated"),
        ({}, {"vision_tower": {"layers": [1, 2]}}, r"vision_tower.layers \(0, 1, 2\), not \(1, 2\)"),
        ({}, {"vision_tower": {"hidden_size": 16}}, "vision_tower.hidden_size 32, not 16"),
        (
            {"vision_tower": {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4}},
            {"vision_tower": {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2}},
            "vision_tower.num_attention_heads 4, not 2",  # of the same shapes
        ),
        ({}, {"vision_tower": {"patch_size": 1}}, "vision_tower.patch_size 2, not 1"),
        ({}, {"vision_tower": {"time_conditioning": "adaln"}}, "vision_tower.time_conditioning add, not adaln"),
        ({}, {"vision_tower": {"text_pooling": True}}, "vision_tower.text_pooling False, not True"),
        (
            {"vision_tower": {"text_pooling": True, "text_matching": True}},
            {"vision_tower": {"text_pooling": True}},
            "vision_tower.text_matching True, not False",
        ),
        ({}, {"vision_tower": {"boundary_tokens": False}}, "vision_tower.boundary_tokens True, not False"),
        ({}, {"image_size": 16}, "image_size 8, not 16"),
        ({}, {"objective": {"prediction": "epsilon"}}, "objective.prediction velocity, not epsilon"),
        ({"objective": {"schedule": "ddpm_cosine"}}, {}, "objective.schedule ddpm_cosine, not flow"),
        ({"image_input": READS}, {"image_input": READS | {"encoder_layer": 4}}, "image_input.encoder_layer 3, not 4"),
        (
            {"image_input": READS},
            {"image_input": READS | {"encoder_image_size": 70}},
            "image_input.encoder_image_size null, not 70",
        ),
        ({}, {"image_input": READS}, r"image_input.encoder_layer \(no image_input\), not 3"),
        (
            {"image_input": READS},
            {"image_input": READS | {"with_latents": True}},
            "image_input.with_latents False, not True",
        ),
        ({"image_input": READS}, {}, r"image_input.encoder_layer 3, not \(no image_input\)"),
    ],
)
def test_a_tower_to_start_from_is_refused_before_any_weights_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, earlier: dict[str, Any], later: dict[str, Any], says: str
) -> None:
    build_language().model.config.save_pretrained(tmp_path / "llm")
    base = {"language_model": str(tmp_path / "llm"), "autoencoder": "pixels"}
    start = tmp_path / "earlier"
    write_morph_files(start, {}, recipe=tiny_recipe(**base, **({"vision_tower": {}} | earlier)), hashes={})
    for loader in ("load_language_model", "load_image_space", "load_image_encoder"):
        monkeypatch.setattr(checkpoint, loader, lambda *_, **__: pytest.fail("weights were read"))
    tower = later.get("vision_tower", {}) | {"init_from": str(start)}
    with pytest.raises(ValueError, match=rf"init_from .* has {says} as here; keep it"):
        checkpoint.build_morph(tiny_recipe(**base, **(later | {"vision_tower": tower})), cached=False)


def test_a_width_left_out_is_the_language_models(tmp_path: Path) -> None:
    language = build_language()
    names = ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads")
    widths = {name: getattr(language.model.config, name) for name in names}
    for number, (before, after) in enumerate([({}, widths), (widths, {})]):
        folder = tmp_path / str(number)
        morph = checkpoint.build_morph(
            tiny_recipe(vision_tower=before), language=language, autoencoder=FakeAutoencoder(), cached=False
        )
        checkpoint.save_morph(folder, morph)
        started = checkpoint.build_morph(
            tiny_recipe(vision_tower={**after, "init_from": str(folder)}, seed=1),
            language=language,
            autoencoder=FakeAutoencoder(),
            cached=False,
        )
        theirs = dict(morph.model.vision_tower.named_parameters())
        for name, tensor in started.model.vision_tower.named_parameters():
            assert torch.equal(tensor, theirs[name]), name


def _without(tensors: dict[str, torch.Tensor]) -> None:
    del tensors["embedder.linear.weight"]


def _with_more(tensors: dict[str, torch.Tensor]) -> None:
    tensors["embedder.extra"] = torch.zeros(1)


def _misshaped(tensors: dict[str, torch.Tensor]) -> None:
    tensors["embedder.linear.bias"] = torch.zeros(3)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (_without, "missing embedder.linear.weight"),
        (_with_more, "unexpected embedder.extra"),
        (_misshaped, r"embedder.linear.bias has shape \(3,\)"),
    ],
)
def test_missing_extra_and_misshaped_tensors_are_named(
    saved: tuple[Path, Morph], change: Callable[[dict[str, torch.Tensor]], None], named: str
) -> None:
    folder, morph = saved
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS)
    vouch_again(folder)
    with pytest.raises(ValueError, match=named):
        load_morph(folder, language_model=morph.language)


@pytest.mark.parametrize("keep", [0, 5, 100, -1])
def test_truncated_weights_are_refused_and_the_file_is_named(saved: tuple[Path, Morph], keep: int) -> None:
    folder, morph = saved
    whole = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(whole[:keep])
    with pytest.raises(ValueError, match=WEIGHTS):
        load_morph(folder, language_model=morph.language)


def test_missing_weights_are_refused(saved: tuple[Path, Morph]) -> None:
    folder, morph = saved
    (folder / WEIGHTS).unlink()
    with pytest.raises(ValueError, match=WEIGHTS):
        load_morph(folder, language_model=morph.language)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"format": 99, "hashes": {}, "recipe": {}}', '{"format": 1}'])
def test_a_damaged_config_is_refused_and_named(saved: tuple[Path, Morph], content: str) -> None:
    folder, morph = saved
    (folder / CONFIG).write_text(content)
    with pytest.raises(ValueError, match=CONFIG):
        load_morph(folder, language_model=morph.language)


def test_an_unknown_key_in_a_morphs_recipe_is_named(saved: tuple[Path, Morph]) -> None:
    folder, morph = saved
    config = json.loads((folder / CONFIG).read_text())
    config["recipe"]["colour"] = "red"
    (folder / CONFIG).write_text(json.dumps(config))
    with pytest.raises(ValueError, match="colour"):
        load_morph(folder, language_model=morph.language)


def test_what_is_no_morph_is_refused_with_a_remedy(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is not a morph"):
        load_morph(tmp_path)
    with pytest.raises(ValueError, match="no morph at"):
        load_morph("nowhere-at-all")


def test_a_save_that_fails_keeps_the_morph_that_was_there(
    saved: tuple[Path, Morph], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, morph = saved
    before = (folder / WEIGHTS).read_bytes()

    def full_disk(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(morph_files, "save_file", full_disk)
    with pytest.raises(OSError, match="No space"):
        save_morph(folder, morph)
    assert (folder / WEIGHTS).read_bytes() == before
    assert sorted(path.name for path in folder.iterdir()) == sorted((CONFIG, WEIGHTS))


def test_a_language_model_that_cannot_be_routed_is_refused_by_name() -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    language = build_language()
    model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=8, n_head=1, vocab_size=10, n_positions=8))
    with pytest.raises(ValueError, match="'gpt2' cannot be routed"):
        checkpoint.build_morph(
            build_tiny_morph().recipe,
            language=dataclasses.replace(language, model=model),
            autoencoder=FakeAutoencoder(),
            cached=False,
        )


def test_the_single_tower_leaves_a_language_model_that_it_is_given_as_it_is(tmp_path: Path) -> None:
    language = build_language()
    before = {name: tensor.clone() for name, tensor in language.model.state_dict().items()}
    save_morph(tmp_path, build_tiny_morph(vision_tower={"layer_design": "single"}))
    loaded = load_morph(tmp_path, language_model=language)
    for name, tensor in language.model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    ids = torch.tensor([[5, 6, 7]])
    assert not torch.equal(loaded.text_logits(ids), language.model(input_ids=ids).logits)

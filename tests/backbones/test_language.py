"""Language models: loaded as they were saved, frozen, untouched; what cannot be loaded is refused by name."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from diptych.backbones.language import build_tiny_language_model, load_language_model
from diptych.backbones.tiny_language import FAMILIES, SPECIAL_TOKENS, build_byte_tokenizer

EMBEDDED = "smollm2-135m-instruct"
EMBEDDED_HASH = "4e12bc606819dddc3a77728fa3e0969fe2ddff8abc986259e6fc3ed83f1db9f7"
"""Morphs are bound to it: the dequantised weights are the same on every machine."""


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIPTYCH_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_saved_model_loads_bit_identical_and_frozen(tmp_path: Path, own_cache: None, family: str) -> None:
    built = build_tiny_language_model(family, seed=3)
    built.save_pretrained(tmp_path / "model")
    loaded = load_language_model(str(tmp_path / "model"))

    ids = torch.arange(40)[None]
    assert torch.equal(loaded.model(ids).logits, built.model(ids).logits)
    assert loaded.hash == built.hash
    assert len(built.hash) == 64
    for model in (loaded.model, built.model):
        assert not model.training
        assert not any(parameter.requires_grad for parameter in model.parameters())
    assert loaded.model.config.model_type == family
    assert (
        loaded.tokenizer("<|im_start|>hé 🍎<|im_end|>").input_ids
        == built.tokenizer("<|im_start|>hé 🍎<|im_end|>").input_ids
    )


def test_the_module_is_hugging_faces_own(tmp_path: Path, own_cache: None) -> None:
    build_tiny_language_model().save_pretrained(tmp_path / "model")
    ours = load_language_model(str(tmp_path / "model")).model
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert type(ours) is type(theirs)
    assert [(n, type(m)) for n, m in ours.named_modules()] == [(n, type(m)) for n, m in theirs.named_modules()]
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in ours.modules())


def test_the_dtype_is_cast_on_loading_and_the_hash_stays(tmp_path: Path, own_cache: None) -> None:
    build_tiny_language_model(dtype=torch.bfloat16).save_pretrained(tmp_path / "model")
    half = load_language_model(str(tmp_path / "model"), dtype=torch.bfloat16)
    single = load_language_model(str(tmp_path / "model"))
    assert half.model.dtype == torch.bfloat16
    assert single.model.dtype == torch.float32
    assert half.hash == single.hash
    for name, parameter in half.model.named_parameters():
        assert torch.equal(parameter.float(), single.model.get_parameter(name))


def test_tiny_models_follow_their_seed_and_leave_the_global_one_alone() -> None:
    state = torch.random.get_rng_state()
    hashes = {build_tiny_language_model(seed=seed).hash for seed in (0, 0, 1, 2)}
    assert len(hashes) == 3
    assert torch.equal(torch.random.get_rng_state(), state)
    with pytest.raises(ValueError, match="no tiny language model of family 'gpt2'; choose one of llama"):
        build_tiny_language_model("gpt2")


@settings(max_examples=100)
@given(st.text(max_size=60))
def test_the_byte_tokenizer_knows_every_text(text: str) -> None:
    tokenizer = build_byte_tokenizer()
    ids = tokenizer(text).input_ids
    assert tokenizer.decode(ids) == text
    if not any(token in text for token in SPECIAL_TOKENS):
        assert len(ids) == len(text.encode())


def test_the_byte_tokenizer_speaks_chatml() -> None:
    tokenizer = build_byte_tokenizer()
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]
    assert tokenizer.apply_chat_template(messages, tokenize=False) == (
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHo<|im_end|>\n"
    )
    assert tokenizer.convert_tokens_to_ids(list(SPECIAL_TOKENS)) == [0, 1, 2]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("./nowhere", r"'./nowhere': there is no such folder; embedded: smollm2"),
        ("/nowhere/at/all", "there is no such folder"),
        ("smollm2-135-instruct", "did you mean 'smollm2-135m-instruct'"),
        ("someone/some-model", r"no folder and could not be fetched from the Hugging Face Hub.*Check the name"),
        ("not an id!", "neither a folder nor a Hugging Face id"),
    ],
)
def test_a_name_that_leads_nowhere_is_one_clear_error(own_cache: None, name: str, words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        load_language_model(name)
    assert "\n" not in str(caught.value)


def saved(tmp_path: Path) -> Path:
    build_tiny_language_model().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_lacking_and_misshaped_weights_are_listed(tmp_path: Path, own_cache: None) -> None:
    folder = saved(tmp_path)
    weights = load_file(folder / "model.safetensors")
    lacking = {name: tensor for name, tensor in weights.items() if "layers.1.mlp.up_proj" not in name}
    save_file(lacking, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks 1 weights: model\.layers\.1\.mlp\.up_proj\.weight"):
        load_language_model(str(folder))
    save_file(weights | {"model.norm.weight": torch.ones(5)}, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"could not be loaded|another shape"):
        load_language_model(str(folder))


@pytest.mark.parametrize("keep", [0, 7, 200, -1])
def test_truncated_weights_are_refused(tmp_path: Path, own_cache: None, keep: int) -> None:
    folder = saved(tmp_path)
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(ValueError, match=f"language model '{folder}' could not be loaded"):
        load_language_model(str(folder))


@pytest.mark.parametrize("lacking", ["config.json", "tokenizer.json"])
def test_a_folder_that_lacks_a_file_is_refused(tmp_path: Path, own_cache: None, lacking: str) -> None:
    folder = saved(tmp_path)
    (folder / lacking).unlink()
    with pytest.raises(ValueError, match=r"config\.json|tokenizer"):
        load_language_model(str(folder))


class Canary:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_pickled_weights_are_never_read(tmp_path: Path, own_cache: None) -> None:
    folder = saved(tmp_path)
    canary = tmp_path / "executed"
    (folder / "model.safetensors").unlink()
    for name in ("pytorch_model.bin", "model.pth", "training_args.bin"):
        (folder / name).write_bytes(pickle.dumps(Canary(canary)))
    with pytest.raises(ValueError, match=r"has no \*\.safetensors; pickled weights"):
        load_language_model(str(folder))
    assert not canary.exists()


@pytest.mark.parametrize("part", ["model", "tokenizer"])
def test_code_of_a_folder_is_not_executed_unless_trusted(tmp_path: Path, own_cache: None, part: str) -> None:
    folder = saved(tmp_path)
    canary = tmp_path / "executed"
    (folder / "custom.py").write_text(f"from pathlib import Path\nPath({str(canary)!r}).touch()\nclass Custom: pass\n")
    if part == "model":
        file, key, value = "config.json", "AutoModelForCausalLM", "custom.Custom"
    else:
        file, key, value = "tokenizer_config.json", "AutoTokenizer", ["custom.Custom", None]
    settings = json.loads((folder / file).read_text())
    settings["auto_map"] = {"AutoConfig": "custom.Custom", key: value} if part == "model" else {key: value}
    if part == "model":
        settings["model_type"] = "made-up"
    else:
        settings["tokenizer_class"] = "MadeUpTokenizer"
    (folder / file).write_text(json.dumps(settings))
    with pytest.raises(ValueError, match=r"could not be loaded|neither|trust"):
        load_language_model(str(folder))
    assert not canary.exists()


@pytest.mark.assets(EMBEDDED)
def test_the_embedded_model_is_the_same_everywhere_and_speaks() -> None:
    language = load_language_model(EMBEDDED)
    assert language.hash == EMBEDDED_HASH
    again = load_language_model(EMBEDDED)
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    tokenizer = language.tokenizer
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=False)
    with torch.no_grad():
        assert torch.equal(language.model(ids).logits, again.model(ids).logits)
        answer = language.model.generate(ids, max_new_tokens=9, do_sample=False)
    assert "Paris" in tokenizer.decode(answer[0, ids.shape[1] :])
    assert tokenizer.eos_token == "<|im_end|>"
    assert language.model.config.tie_word_embeddings
    assert not any(parameter.requires_grad for parameter in language.model.parameters())

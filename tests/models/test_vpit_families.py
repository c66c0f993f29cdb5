"""VPiT with any causal language model: laws that hold whatever its layers, its past and its logits are."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import (
    Cohere2Config,
    Cohere2ForCausalLM,
    CohereConfig,
    CohereForCausalLM,
    CTRLConfig,
    CTRLLMHeadModel,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GraniteConfig,
    GraniteForCausalLM,
    Lfm2Config,
    Lfm2ForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from diptych.backbones.language import LanguageModel, build_language_model
from diptych.backbones.tiny_language import build_byte_tokenizer
from diptych.models.interleaved_decoding import decode_interleaved
from diptych.models.stream_engine import CachedEngine, RecomputingEngine, start_engine
from diptych.models.vpit_building import add_lora
from diptych.models.vpit_morph import VPiTMorph
from diptych.models.vpit_training import text_loss
from diptych.sequence import ImageSpan, Sequence
from diptych.settings import LoraConfig
from tiny_vpit import NUM_TOKENS, build_vpit, random_features
from tiny_xfusion import text

WIDTH = 32
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
LAYERS = {"hidden_size": WIDTH, "intermediate_size": 64, "num_hidden_layers": 2, **HEADS}
FAMILIES: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "gpt2": (GPT2Config, GPT2LMHeadModel, {"n_embd": WIDTH, "n_layer": 2, "n_head": 4}),
    "opt": (
        OPTConfig,
        OPTForCausalLM,
        {
            "hidden_size": WIDTH,
            "ffn_dim": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "word_embed_proj_dim": 32,
        },
    ),
    "gemma2": (Gemma2Config, Gemma2ForCausalLM, {**LAYERS, "final_logit_softcapping": 3.0, "sliding_window": 6}),
    "cohere": (CohereConfig, CohereForCausalLM, {**LAYERS, "logit_scale": 0.25}),
    "cohere2": (Cohere2Config, Cohere2ForCausalLM, {**LAYERS, "logit_scale": 0.25, "sliding_window": 6}),
    "granite": (GraniteConfig, GraniteForCausalLM, {**LAYERS, "logits_scaling": 3.0, "embedding_multiplier": 2.0}),
    "mistral": (MistralConfig, MistralForCausalLM, {**LAYERS, "sliding_window": 6}),
    "qwen2": (
        Qwen2Config,
        Qwen2ForCausalLM,
        {**LAYERS, "use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1},
    ),
    "ctrl": (CTRLConfig, CTRLLMHeadModel, {"n_embd": WIDTH, "dff": 64, "n_layer": 2, "n_head": 4}),
    "lfm2": (Lfm2Config, Lfm2ForCausalLM, {**LAYERS, "full_attn_idxs": [1]}),
    "mamba": (MambaConfig, MambaForCausalLM, {"hidden_size": WIDTH, "num_hidden_layers": 2, "state_size": 4}),
}


def build_language(family: str) -> LanguageModel:
    config_class, model_class, settings = FAMILIES[family]
    tokenizer = build_byte_tokenizer()
    ids = {f"{kind}_token_id": getattr(tokenizer, f"{kind}_token_id") for kind in ("bos", "eos", "pad")}
    config = config_class(vocab_size=len(tokenizer), initializer_range=0.2, **ids, **settings)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = model_class(config)
    return build_language_model(model, tokenizer, name=f"tiny-{family}")


@pytest.fixture(scope="module", params=list(FAMILIES))
def morph(request: pytest.FixtureRequest) -> VPiTMorph:
    return build_vpit(language=build_language(request.param))


def prompts(morph: VPiTMorph) -> list[Sequence]:
    start, end = morph.model.boundary_tokens.token_ids
    image = ImageSpan(random_features(1)[0], NUM_TOKENS, is_target=False)
    return [Sequence((text(50, 60),)), Sequence((text(70), text(start), image, text(end), text(80, 81, 82)))]


@torch.no_grad()
def test_the_loss_is_of_the_logits_that_the_language_model_gives(morph: VPiTMorph) -> None:
    model = morph.model
    ids = torch.tensor([[5, 6, 7, 8]])
    states = model.decoder(input_ids=ids, use_cache=False).last_hidden_state[0]
    theirs = model.language_model(input_ids=ids, use_cache=False).logits[0]
    ours = model.text_logits(states)
    torch.testing.assert_close(ours[:, : theirs.shape[1]], theirs, atol=1e-5, rtol=1e-5)
    labels = torch.tensor([3, 9, model.boundary_tokens.token_ids[0], 4])
    expected = torch.nn.functional.cross_entropy(ours, labels, reduction="sum")
    torch.testing.assert_close(text_loss(model, states, labels), expected, atol=1e-4, rtol=1e-5)


def test_new_rows_start_as_what_the_embedding_makes_of_a_word() -> None:
    """Gemma's embedding scales its rows; a row that is not scaled would be nearly no word at all."""
    for family in FAMILIES:
        language = build_language(family)
        embedding = language.model.get_input_embeddings()
        mean = embedding(torch.arange(embedding.weight.shape[0])).mean(dim=0)
        boundary = build_untouched(language).model.boundary_tokens
        torch.testing.assert_close(boundary.input, mean.expand(2, -1), atol=1e-5, rtol=1e-4)
        head = language.model.get_output_embeddings().weight
        torch.testing.assert_close(boundary.head_rows, head.mean(dim=0).expand(2, -1), atol=1e-5, rtol=1e-4)


def build_untouched(language: LanguageModel) -> VPiTMorph:
    from diptych.models.vpit_checkpoint import build_vpit_morph
    from tiny_vpit import build_encoder, vpit_recipe

    return build_vpit_morph(vpit_recipe(), language=language, encoder=build_encoder(), cached=False)


@torch.no_grad()
def test_together_alone_and_recomputed_are_the_same(morph: VPiTMorph) -> None:
    model, asked = morph.model, prompts(morph)
    both = [start_engine(model, asked), RecomputingEngine(model, asked)]
    alone = [start_engine(model, [prompt]) for prompt in asked]
    inputs = torch.randn(3, 2, WIDTH, generator=torch.Generator().manual_seed(0))
    for step in range(4):
        single = torch.cat(
            [
                engine.hidden if not step else engine.step(x)
                for engine, x in zip(alone, inputs[step - 1][:, None], strict=True)
            ]
        )
        for engine in both:
            hidden = engine.step(inputs[step - 1]) if step else engine.hidden
            torch.testing.assert_close(hidden, single, atol=1e-5, rtol=1e-4)
    for engine in both:
        engine.keep([1])
    last = [engine.step(inputs[0, :1]) for engine in both]
    torch.testing.assert_close(*last, atol=1e-5, rtol=1e-4)


def test_a_past_that_is_no_keys_and_values_is_computed_again() -> None:
    """Nor is a cache used that gives other states than computing again does, or that cannot drop a row (LFM2)."""
    for family, kind in (
        ("mamba", RecomputingEngine),
        ("ctrl", RecomputingEngine),
        ("lfm2", RecomputingEngine),
        ("gpt2", CachedEngine),
        ("mistral", CachedEngine),
    ):
        morph = build_vpit(language=build_language(family))
        morph.model.train()
        assert type(start_engine(morph.model, prompts(morph))) is kind
        assert all(module.training for module in morph.model.modules())


def test_a_batch_draws_what_each_one_draws_alone(morph: VPiTMorph) -> None:
    def drawn(asked: list[Sequence]) -> list[torch.Tensor]:
        answers = decode_interleaved(morph.model, asked, stops=set(), max_new_tokens=1, generation_mode="image")
        return [piece for pieces in answers for piece in pieces if isinstance(piece, torch.Tensor)]

    together = drawn(prompts(morph))
    for made, prompt in zip(together, prompts(morph), strict=True):
        torch.testing.assert_close(made, drawn([prompt])[0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", ["gpt2", "gemma2"])
def test_adapters_go_into_linear_layers_of_every_kind(family: str) -> None:
    model = build_language(family).model
    add_lora(model, LoraConfig(r=2))
    assert any(".lora_" in name for name, _ in model.named_parameters())


def test_adapters_that_fit_no_layer_are_refused_with_the_names_of_those_there_are() -> None:
    with pytest.raises(ValueError, match=r"no layer of this language model .* linear layers are named .*c_attn"):
        add_lora(build_language("gpt2").model, LoraConfig(target_modules=("q_proj",)))

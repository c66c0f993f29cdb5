"""From a recipe to the parts of a VPiT model: boundary tokens, heads, adapters, and who trains."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from diptych.config import Recipe
from diptych.models.vpit import VPiT, change_logits, logit_settings
from diptych.nn.boundary_tokens import add_boundary_tokens, embedded_rows
from diptych.settings import LoraConfig

EMBEDDING_ROWS = "boundary_tokens.input"
"""The parameter that `boundary_embeddings` among vpit.train_parts names."""
NUM_EMBEDDINGS = 8192
"""Rows of the embedding that a start is taken from, at most."""


def build_vpit(
    recipe: Recipe,
    language_model: Any,
    tokenizer: Any,
    *,
    feature_dim: int,
    with_lora: bool = True,
    tied_boundary_tokens: bool = True,
) -> VPiT:
    """Builds the model around a causal LM; the boundary tokens are added to `tokenizer` (None: behind the vocabulary).

    with_lora: as the recipe has it; False: without adapters, which `add_lora` puts in later. tied_boundary_tokens: one
    row for embedding and head where the language model has one matrix for both, unless the recipe caches forms.

    Raises ValueError: see `add_boundary_tokens`, `check_head` and `add_lora`.
    """
    config = recipe.vpit
    check_head(language_model, name=recipe.language_model)
    if tokenizer is None:
        size = int(language_model.get_input_embeddings().weight.shape[0])
        token_ids = (size, size + 1)
    else:
        token_ids = add_boundary_tokens(tokenizer, config.image_start, config.image_end)
    model = VPiT(
        language_model,
        feature_dim=feature_dim,
        num_image_tokens=config.num_image_tokens,
        token_ids=token_ids,
        connector=config.connector,
        tied_boundary_tokens=tied_boundary_tokens and not config.cached_forms,
        hides_tokens=config.visual_input_dropout > 0,
    )
    if model.connector.hidden is not None and model.connector.hidden.device.type != "meta":
        embedding = language_model.get_input_embeddings()
        model.connector.start_hidden(embedded_rows(embedding, step=1 + len(embedding.weight) // NUM_EMBEDDINGS))
    if config.lora is not None and with_lora:
        add_lora(language_model, config.lora)
    return model


@torch.no_grad()
def check_head(language_model: Any, *, name: str) -> None:
    """Raises ValueError if the logits are more than the LM head of the decoder's final states, and the scale and cap
    of its config: then the loss would be of another model than the one that generates.

    Looked at with three tokens; on the meta device there is nothing to look at.
    """
    head = language_model.get_output_embeddings()
    if head is None or language_model.get_input_embeddings() is None:
        raise ValueError(f"language model {name!r} has no LM head or no embedding; VPiT needs a causal LM")
    if head.weight.device.type == "meta":
        return
    ids = torch.tensor([[0, 1, 2]], device=head.weight.device)
    states = language_model.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state
    logits = language_model(input_ids=ids, use_cache=False).logits
    scale, cap = logit_settings(language_model.config)
    ours = change_logits(head(states), scale=scale, cap=cap)
    if not torch.allclose(ours.float(), logits.float(), atol=1e-3, rtol=1e-3):
        raise ValueError(
            f"language model {name!r} changes what its LM head gives in a way that VPiT's loss does not know (it knows "
            "logit_scale, logits_scaling and final_logit_softcapping of a config); take one whose logits are its LM "
            "head's"
        )


def add_lora(language_model: Any, lora: LoraConfig) -> None:
    """Puts low-rank adapters (peft) into the language model, in place. Raises ValueError if no module takes one."""
    try:
        import peft
    except ImportError as error:
        raise ValueError(f"vpit.lora needs peft ({error}); install it with: pip install 'diptych[train]'") from error
    modules = lora.target_modules if isinstance(lora.target_modules, str) else list(lora.target_modules)
    from transformers.pytorch_utils import Conv1D

    config = peft.LoraConfig(
        r=lora.r,
        lora_alpha=lora.lora_alpha,  # pyright: ignore[reportArgumentType]
        lora_dropout=lora.lora_dropout,
        target_modules=_linear_names(language_model) if modules == "all-linear" else modules,
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in language_model.modules()),
    )
    try:
        with torch.device(language_model.get_input_embeddings().weight.device):
            peft.inject_adapter_in_model(config, language_model)
    except ValueError as error:
        linear = sorted({name.rsplit(".", 1)[-1] for name in _linear_names(language_model)})
        raise ValueError(
            f"vpit.lora.target_modules {modules} fits no layer of this language model ({error}); its linear layers are "
            f"named {', '.join(linear)}"
        ) from error


def _linear_names(language_model: Any) -> list[str]:
    """Names of the linear layers of the decoder; the LM head is none of them."""
    from transformers.pytorch_utils import Conv1D

    head = language_model.get_output_embeddings()
    return [
        name
        for name, module in language_model.named_modules()
        if isinstance(module, (nn.Linear, Conv1D)) and module is not head
    ]


def trained_parameters(model: VPiT, recipe: Recipe) -> dict[str, nn.Parameter]:
    """Exactly what the recipe trains, by name; everything else is frozen here. Errors: see `_early_parameters`."""
    config = recipe.vpit
    kept = _early_parameters(model, config.first_trained_layer) if config.first_trained_layer else set[int]()
    if config.cached_forms:
        kept.add(id(model.boundary_tokens.input))
    chosen: dict[str, nn.Parameter] = {}
    for name, parameter in model.named_parameters():
        part = name.split(".", 1)[0]
        wanted = part in config.train_parts or (name == EMBEDDING_ROWS and "boundary_embeddings" in config.train_parts)
        if part == "language_model" and config.lora is not None:
            wanted = wanted and ".lora_" in name
        wanted = wanted and id(parameter) not in kept
        parameter.requires_grad_(wanted)
        if wanted:
            chosen[name] = parameter
    return chosen


def _early_parameters(model: VPiT, first: int) -> set[int]:
    """The embedding's and those of the layers before `first`, by id. Raises ValueError if none is left."""
    layers = getattr(model.decoder, "layers", None)
    if layers is None:
        raise ValueError(
            f"vpit.first_trained_layer needs a language model that lists its layers; {type(model.decoder).__name__} "
            "has no `layers`: set it to 0"
        )
    if first >= len(layers):
        raise ValueError(f"vpit.first_trained_layer is {first}, but the language model has {len(layers)} layers")
    modules = [model.language_model.get_input_embeddings(), *layers[:first]]
    return {id(parameter) for module in modules for parameter in module.parameters()}

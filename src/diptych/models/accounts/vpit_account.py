"""The account of a VPiT recipe: the model itself runs on the meta device, so that any causal LM is counted."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch

from diptych.backbones.skeletons import build_encoder_skeleton, build_language_skeleton
from diptych.config import Recipe
from diptych.distributed import compute_device, resolve_dtype
from diptych.models.accounts.first_streams import Nominal, find_tokenizer, first_streams
from diptych.models.accounts.meta_counting import count_encoder_flops, count_flops, count_parameters
from diptych.models.accounts.run_account import Flops, PartCost, RunAccount
from diptych.models.vpit import VPiT, build_rows, find_supervision
from diptych.models.vpit_building import build_vpit, trained_parameters
from diptych.nn.cut_decoder import cut_decoder
from diptych.sequence import pack


def account_vpit(recipe: Recipe, *, nominal: Nominal | None = None) -> RunAccount:
    """See `account_recipe`."""
    config = recipe.vpit
    language = build_language_skeleton(recipe.language_model, trust_remote_code=recipe.trust_remote_code)
    encoder = build_encoder_skeleton(
        config.image_encoder, layer=config.encoder_layer, image_size=config.encoder_image_size
    )
    tokenizer = find_tokenizer(recipe)
    with torch.device("meta"):
        model = build_vpit(recipe, language, tokenizer, feature_dim=encoder.feature_dim)
    trained = trained_parameters(model, recipe)
    if recipe.train.gradient_checkpointing:
        model.train()
        language.gradient_checkpointing_enable({"use_reentrant": False})
    first = first_streams(
        recipe,
        tokenizer,
        num_image_tokens=config.num_image_tokens,
        image=torch.zeros(config.num_image_tokens, encoder.feature_dim),
        boundary_ids=model.boundary_tokens.token_ids,
        nominal=nominal,
    )
    per_step = recipe.train.per_device_train_batch_size * recipe.train.gradient_accumulation_steps
    share = per_step / len(first.streams)
    flops: dict[str, Flops] = {}
    spent: Counter[str] = Counter()
    counted: dict[tuple[int, ...], dict[str, Flops]] = {}
    num_images = 0
    lower, upper = (
        cut_decoder(model.decoder, config.first_trained_layer) if config.cached_forms else (None, model.decoder)
    )
    num_kept = 0
    for streams in first.batches():
        batch = pack(streams, image_predicts_text=True)
        found = find_supervision(batch, model.boundary_tokens.token_ids[0])
        rows, columns = build_rows(batch).index.shape
        sizes = (rows, columns, int(batch.is_image.sum()), found.visual.numel(), found.text.numel())
        if sizes not in counted:
            counted[sizes] = _step_flops(model, upper, *sizes)
            if lower is not None:
                embedding = counted[sizes].pop("connector")
                counted[sizes][KEPT] = embedding + _decoder_flops(lower, rows, columns, model, upstream=False)
        for name, cost in counted[sizes].items():
            flops[name] = flops.get(name, Flops()) + cost
        num_kept += len(batch.token_ids)
        spent.update(dict(zip(KINDS, (len(batch.token_ids), *sizes[2:]), strict=True)))
        num_images += batch.num_images
    once = {"visual tokens": Flops(count_encoder_flops(encoder) * num_images * share, 0)}
    cached = {"visual tokens": (4 * config.num_image_tokens * encoder.feature_dim, "per image")}
    if lower is not None:
        once[KEPT] = flops.pop(KEPT) * (config.cached_forms * share)
        width = int(language.get_input_embeddings().weight.shape[1])
        cached[KEPT] = (4 * width * config.cached_forms * num_kept // len(first.streams), "per sample")
    parts = Counter({name.split(".", 1)[0]: 0 for name in trained})
    for name, parameter in trained.items():
        parts[name.split(".", 1)[0]] += parameter.numel()
    return RunAccount(
        recipe=recipe,
        dtype=resolve_dtype(recipe.dtype, compute_device()),
        trained={_spoken(name, recipe): count for name, count in parts.items()},
        frozen={
            f"language model {recipe.language_model}": count_parameters(language) - parts["language_model"],
            f"image encoder {encoder.name}": count_parameters(encoder),
            "connector, visual head, boundary tokens": count_parameters(model)
            - count_parameters(language)
            - sum(count for name, count in parts.items() if name != "language_model"),
        },
        parts=tuple(PartCost(name, cost * share, spent[name] * share, KINDS[name]) for name, cost in flops.items()),
        samples_per_step=per_step,
        keeps_language=not parts["language_model"],
        once=once,
        cached=cached,
        assumed=first.assumed,
    )


KEPT = "states before the first trained layer"
KINDS = {
    "language model": "token",
    "connector": "visual token",
    "visual head": "target visual token",
    "LM head": "supervised token",
}


def _step_flops(
    model: VPiT, decoder: Any, rows: int, columns: int, num_visual: int, num_targets: int, num_text: int
) -> dict[str, Flops]:
    """Of one micro-batch, padding included, by the names of KINDS."""
    width = int(model.language_model.get_input_embeddings().weight.shape[1])
    # A gradient is wanted of the embeddings where something that makes them is trained.
    upstream = any(p.requires_grad for m in (model.connector, model.boundary_tokens) for p in m.parameters())
    upstream |= model.language_model.get_input_embeddings().weight.requires_grad
    upstream &= decoder is model.decoder
    downstream = upstream or any(p.requires_grad for p in model.decoder.parameters())
    with torch.device("meta"):
        visual = torch.zeros(num_visual // model.num_image_tokens, model.num_image_tokens, model.feature_dim)
        targets = torch.zeros(num_targets, width, requires_grad=downstream)
        text = torch.zeros(num_text, width, requires_grad=downstream)
        return {
            "language model": _decoder_flops(decoder, rows, columns, model, upstream=upstream),
            "connector": count_flops(lambda: model.connector(visual)),
            "visual head": count_flops(lambda: model.visual_head(targets)),
            "LM head": count_flops(lambda: model.text_logits(text)),
        }


def _decoder_flops(decoder: Any, rows: int, columns: int, model: VPiT, *, upstream: bool) -> Flops:
    width = int(model.language_model.get_input_embeddings().weight.shape[1])
    with torch.device("meta"):
        embeddings = torch.zeros(rows, columns, width, requires_grad=upstream)
        # A whole mask, so that transformers does not look into values that are not there.
        mask = torch.zeros(rows, 1, columns, columns)

        def states() -> torch.Tensor:
            return decoder(inputs_embeds=embeddings, attention_mask=mask, use_cache=False).last_hidden_state

        return count_flops(states)


def _spoken(part: str, recipe: Recipe) -> str:
    if part != "language_model":
        return part.replace("_", " ")
    adapters = ", low-rank adapters" if recipe.vpit.lora is not None else ""
    return f"language model {recipe.language_model}{adapters}"

"""Whether a morph of the dual tower draws from the image of a request, on the tasks made from emoji.

python bench/image_copying.py runs/emoji-tasks/morph data/emoji-tasks --num 48

The flow loss of drawings at a given time, with the request's own image and with that of another request; and where the
attention of drawn tokens falls, block by block: on text, on the request's image, there on the same place, on their own.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diptych.data_settings import DataConfig, SourceConfig
from diptych.diffusion.path import add_noise, prediction_target
from diptych.models.checkpoint import load_morph
from diptych.models.xfusion_training import XFusionBatch, XFusionTraining
from diptych.nn.heads import modulate
from diptych.nn.layer_parts import attention_input, project_key_value, project_query
from diptych.settings import ObjectiveConfig
from paired import print_table

KINDS = ("add", "style", "style, named", "colour", "inside", "outside")


def find_picks(folder: Path, split: str, num: int) -> dict[str, list[tuple[int, int, int]]]:
    """(draw, source, index) of the first `num` samples of each kind; a source is a file of the split."""
    picks: dict[str, list[tuple[int, int, int]]] = {kind: [] for kind in KINDS}
    for source, task in enumerate(("edit", "paint")):
        for index, line in enumerate((folder / f"{split}_{task}.jsonl").read_text().splitlines()):
            own = picks[json.loads(line)["meta"]["kind"]]
            if len(own) < num:
                own.append((1000 * source + index, source, index))
    return picks


@torch.no_grad()
def flow_loss(training: XFusionTraining, batch: XFusionBatch, t: float, *, of_another: bool) -> float:
    """Mean square of the velocity's error at one time; `of_another`: each request has the image of the one before."""
    packed = batch.batch
    if of_another:
        images, read = packed.images.clone(), ~packed.image_is_target
        images[read] = images[read].roll(1, 0)
        packed = replace(packed, images=images)
    data, times = packed.images[packed.image_is_target], torch.full_like(batch.t, t)
    noised = add_noise(data, batch.noise, times)
    velocity = training.model.outputs(packed, batch.plan, noised, times).velocity
    assert velocity is not None
    return float((velocity.float() - prediction_target(data, batch.noise, times)).square().mean())


@torch.no_grad()
def attention_shares(training: XFusionTraining, batch: XFusionBatch, t: float) -> Tensor:
    """Of one sample with one image read and one drawn: [blocks, 4], means over heads and drawn tokens."""
    found: list[Tensor] = []
    tower: Any = training.model.vision_tower
    n = tower.num_image_tokens

    def watch(block: Any, arguments: tuple[Tensor, ...], options: dict[str, Any], _: Any) -> None:
        if (before := options.get("before")) is None:
            return
        layer, rope = block.layer, options["image_rope"]
        x = attention_input(layer, arguments[0])
        if block.modulation is not None:
            shift, scale, *_ = block.modulation(options["time"])
            x = modulate(x, shift=shift, scale=scale)
        query, key = project_query(layer, x, rope), torch.cat((before[0], project_key_value(layer, x, rope)[0]))
        key = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
        shares = (torch.einsum("qhd,khd->hqk", query, key) * layer.self_attn.scaling).softmax(-1)
        read = shares[..., -2 * n : -n]
        same = read.diagonal(dim1=1, dim2=2).sum(-1) / n
        sums = [part.sum(-1).mean() for part in (shares[..., : -2 * n], read, shares[..., -n:])]
        found.append(torch.stack((sums[0], sums[1], same.mean(), sums[2])))

    hooks = [block.register_forward_hook(watch, with_kwargs=True) for block in tower.blocks]
    flow_loss(training, batch, t, of_another=False)
    for hook in hooks:
        hook.remove()
    return torch.stack(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("morph")
    parser.add_argument("data", type=Path)
    parser.add_argument("--split", default="held_out", choices=("train", "test", "held_out"))
    parser.add_argument("--num", type=int, default=48)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    morph = load_morph(options.morph)
    if morph.recipe.vision_tower.layer_design != "dual" or morph.recipe.vision_tower.x_fuse != "none":
        sys.exit("bench/image_copying.py looks into the dual tower; give a morph of that design")
    sources = tuple(
        SourceConfig(path=str(options.data / f"{options.split}_{task}.jsonl")) for task in ("edit", "paint")
    )
    objective = ObjectiveConfig(text_cond_dropout_prob=0)
    tower = morph.recipe.vision_tower.model_copy(update={"init_from": options.morph})  # it is no new one
    settings = {"data": DataConfig(sources=sources), "objective": objective, "vision_tower": tower}
    recipe = morph.recipe.model_copy(update=settings)
    training = XFusionTraining(recipe, morph)
    picks, times = find_picks(options.data, options.split, options.num), (0.2, 0.5, 0.8, 0.95)
    rows = []
    for kind, own in picks.items():
        if not own:
            continue
        batch = training.build_batch(own, seed=1)
        for title, of_another in (("own image", False), ("another's", True)):
            losses = [f"{flow_loss(training, batch, t, of_another=of_another):.3f}" for t in times]
            rows.append([kind, title, str(len(own)), *losses])
    title = f"flow loss, {options.morph}, {options.split}"
    print_table(title, ["kind", "request with", "n", *(f"t = {t}" for t in times)], rows)
    single = [training.build_batch([pick], seed=1) for pick in picks["inside"][:12]]
    shares = torch.stack([attention_shares(training, batch, 0.8) for batch in single]).mean(0)
    layers = morph.model.vision_tower.layers
    print_table(
        "attention of drawn tokens when painting inside, t = 0.8",
        ["beside layer", "text", "request's image", "there, the same place", "own image"],
        [[str(layer), *(f"{share:.2f}" for share in row)] for layer, row in zip(layers, shares.tolist(), strict=True)],
    )


if __name__ == "__main__":
    main()

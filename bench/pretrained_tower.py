"""A diffusion transformer that already draws, as the vision tower: dual, with maps between the widths, and X-Fuse.

    python bench/pretrained_tower.py data/emoji --minutes 4 --pretrain-minutes 6 --out runs/pretrained-tower

First a small DiT (diffusers' own class) is trained on the emoji's latents without any text. Then towers of its shape
learn to draw from prompts, beside SmolLM2, for equally long: made of the trained DiT, of an untrained one, and of the
trained one with X-Fuse (X-Fuse-proj: the frozen layers see the images too, through maps). The loss is of the same
noised images for all, of prompts that all were trained on.
"""

from __future__ import annotations

import argparse
import copy
import time
from pathlib import Path
from typing import Any

import torch
from diffusers.models.transformers.dit_transformer_2d import DiTTransformer2DModel

from diptych.config import Recipe, build_recipe
from diptych.diffusion.path import add_noise, sample_times
from diptych.models.registry import build_method
from diptych.train.loop import run_training
from paired import print_table

LAYERS = [18, 19, 20, 21, 22, 24, 26, 28]
SCHEDULE = "ddpm_linear"
BATCH = 40


def build_transformer() -> Any:
    """A DiT of eight blocks, width 256, that embeds the time once; gates and output start at zero."""
    torch.manual_seed(0)
    network: Any = DiTTransformer2DModel(
        num_layers=len(LAYERS),
        num_attention_heads=4,
        attention_head_dim=64,
        in_channels=16,
        out_channels=16,
        sample_size=8,
        patch_size=2,
        num_embeds_ada_norm=1,
    )
    shared = network.transformer_blocks[0].norm1.emb
    for block in network.transformer_blocks:
        block.norm1.emb = shared
        torch.nn.init.zeros_(block.norm1.linear.weight)
        torch.nn.init.zeros_(block.norm1.linear.bias)
    torch.nn.init.zeros_(network.proj_out_2.weight)
    torch.nn.init.zeros_(network.proj_out_2.bias)
    return network


def save_transformer(network: Any, folder: Path) -> None:
    whole = copy.deepcopy(network)
    for block in whole.transformer_blocks[1:]:
        block.norm1.emb = copy.deepcopy(block.norm1.emb)
    whole.save_pretrained(folder)


def pretrain(network: Any, latents: torch.Tensor, *, minutes: float) -> float:
    """Predicts the noise of latents [N, C, h, w], no class given. Gives the mean loss of the last 50 steps."""
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, betas=(0.9, 0.95), fused=True)
    generator = torch.Generator().manual_seed(0)
    start, losses = time.monotonic(), []
    none = torch.ones(BATCH, dtype=torch.long)
    while (progress := (time.monotonic() - start) / (60 * minutes)) < 1:
        optimizer.param_groups[0]["lr"] = 1e-3 * min(1.0, (len(losses) + 1) / 50) * (1 - progress)
        data = latents[torch.randint(len(latents), (BATCH,), generator=generator)]
        noise = torch.randn(data.shape, generator=generator)
        t = sample_times(BATCH, density="uniform", shift=1.0, generator=generator)
        noised = add_noise(data, noise, t, schedule=SCHEDULE)
        predicted = network(noised, timestep=1000 * t, class_labels=none).sample
        loss = (predicted - noise).square().mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    return sum(losses[-50:]) / len(losses[-50:])


def recipe_of(data: Path, transformer: Path, out: Path, *, minutes: float, x_fuse: str = "none") -> Recipe:
    return build_recipe(
        {
            "output_dir": str(out),
            "template": "plain",
            "vision_tower": {
                "diffusion_transformer": str(transformer),
                "x_fuse": x_fuse,
                "layers": LAYERS,
                "time_conditioning": "adaln",
                "text_pooling": True,
                "boundary_tokens": False,
            },
            "objective": {"prediction": "epsilon", "schedule": SCHEDULE, "timestep_sampling": "uniform"},
            "data": {"sources": [{"path": str(data / "train_draw.jsonl")}]},
            "train": {
                "learning_rate": 1e-3,
                "per_device_train_batch_size": BATCH,
                "max_steps": 100_000,
                "max_train_minutes": minutes,
                "save_every": 100_000,
                "logging_steps": 50,
            },
        }
    )


@torch.no_grad()
def measure(method: Any, *, num: int = 400) -> float:
    """Mean squared error of the predicted noise over `num` drawings, times and noise fixed."""
    method.eval()
    total, count = 0.0, 0.0
    for start in range(0, num, BATCH):
        picks = [(10**6 + start + k, 0, (7 * (start + k)) % method.num_samples()[0]) for k in range(BATCH)]
        loss = method(method.build_batch(picks, seed=1))["flow"]
        total, count = total + float(loss.total), count + loss.count
    method.train()
    return total / count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--minutes", type=float, default=4.0)
    parser.add_argument("--pretrain-minutes", type=float, default=6.0)
    parser.add_argument("--out", type=Path, default=Path("runs/pretrained-tower"))
    options = parser.parse_args()
    torch.set_num_threads(2)
    fresh, trained = options.out / "untrained-dit", options.out / "trained-dit"
    network = build_transformer()
    save_transformer(network, fresh)
    method: Any = build_method(recipe_of(options.data, fresh, options.out / "untrained", minutes=options.minutes))
    latents = torch.stack(
        [method.latents.load(image) for image in sorted({s.images[0] for source in method.sources for s in source})]
    )
    alone = pretrain(network, latents, minutes=options.pretrain_minutes)
    save_transformer(network, trained)
    rows = []
    for folder, x_fuse in ((fresh, "none"), (trained, "none"), (trained, "both")):
        out = options.out / f"{folder.name}-x-fuse-{x_fuse}"
        recipe = recipe_of(options.data, folder, out, minutes=options.minutes, x_fuse=x_fuse)
        method = build_method(recipe)
        before = measure(method)
        result = run_training(recipe, method)
        tower = f"made of the {folder.name}, X-Fuse {x_fuse}"
        rows.append([tower, f"{before:.3f}", f"{measure(method):.3f}", str(result.step)])
    title = f"Towers after {options.minutes:g} minutes; the DiT by itself reached {alone:.3f} without text"
    print_table(title, ["tower", "loss before", "loss after", "steps"], rows)


if __name__ == "__main__":
    main()

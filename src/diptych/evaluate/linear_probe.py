"""Linear probing: what a linear classifier reads off the vision tower, layer by layer (X-Fusion section 4).

An image alone goes through the tower, clean or noised, as one that is drawn; where the tower reads clean images by an
image encoder's features, they go through it as ones that are read. Its states behind every block, averaged over its
tokens, are classified by ridge regression. Concepts of the test never stand in training, in no style.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diptych.data.images import image_to_tensor, open_image
from diptych.diffusion.path import add_noise
from diptych.evaluate.scores import Score, share
from diptych.models.encoded_images import EncodedImages, image_features, read_fit
from diptych.sequence import ImageSpan, pack
from diptych.sequence import Sequence as Stream

RIDGES = (1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""Candidates of the ridge, per sample; which is chosen on a part of the training concepts."""
LABELS = ("group", "subgroup", "style")


@torch.no_grad()
def tower_states(
    morph: Any, images: Tensor, *, features: Tensor | None = None, noise: float = 0.0, seed: int = 0
) -> dict[str, Tensor]:
    """Images [N, 3, S, S] in -1..1 -> "latents" [N, C h w] as the tower gets them, which is the baseline, and "layer K"
    [N, w] behind the block beside layer K.

    features [N, n, F]: of a tower that reads them, for clean images (`reads_by_features`); their mean [N, F] is another
    baseline, and the last block is left out, which nobody computes of images that are read. noise: time that the
    latents are noised to, 0 (clean) to 1. Raises ValueError out of that range, for a morph without a vision tower, and
    for features that are missing, or not wanted.
    """
    if not 0 <= noise <= 1:
        raise ValueError(f"noise must lie in 0..1, got {noise}")
    model: Any = getattr(morph, "model", None)
    if not hasattr(model, "vision_tower"):
        raise ValueError("this morph has no vision tower to probe; give one of method xfusion")
    tower: Any = model.vision_tower
    is_read = reads_by_features(morph, noise)
    if is_read != (features is not None):
        raise ValueError("features: needed where clean images are read by them, and for nothing else")
    latents = morph.autoencoder.encode(images.to(morph.device))
    drawn = torch.randn(latents.shape, generator=torch.Generator().manual_seed(seed)).to(latents)
    t = torch.full((len(latents),), noise, device=latents.device)
    noised = add_noise(latents, drawn, t, schedule=morph.recipe.objective.schedule)
    spans = [ImageSpan(latent, tower.num_image_tokens, is_target=not is_read) for latent in noised.cpu()]
    packed = pack([Stream((span,), draw=draw) for draw, span in enumerate(spans)])
    plan = model.plan(packed).to(morph.device)
    batch = packed.to(morph.device)
    states = {"latents": noised.flatten(1).float().cpu()}

    def keep(layer: int) -> Callable[..., None]:
        def hook(_module: Any, _inputs: Any, output: Any) -> None:
            image = output[0][0] if isinstance(output[0], list | tuple) else output[0]
            states[f"layer {layer}"] = image.unflatten(0, (len(latents), -1)).mean(dim=1).float().cpu()

        return hook

    prefilled = None if is_read else model.prefill(batch, plan)
    blocks = list(zip(tower.layers, tower.blocks, strict=True))
    handles = [block.register_forward_hook(keep(layer)) for layer, block in (blocks[:-1] if is_read else blocks)]
    try:
        if features is None:
            model.denoise(noised, t, batch, plan, prefilled)
        else:
            states["features"] = features.mean(dim=1).float().cpu()
            model.prefill(batch, plan, context_features=features.to(morph.device))
    finally:
        for handle in handles:
            handle.remove()
    return states


def reads_by_features(morph: Any, noise: float) -> bool:
    """Whether images at this time are given to the tower as an image encoder's features, alone or with latents."""
    return morph.recipe.image_input is not None and not noise


def probe(features: Tensor, labels: Tensor, groups: Sequence[str], *, seed: int = 0) -> Score:
    """Accuracy of a linear classifier of features [N, D] on a fifth of the `groups` that it never saw.

    `labels` [N] are classes; samples of one group stay together. chance: the share of the commonest class.
    """
    is_test = _held_out(groups, f"test:{seed}")
    is_check = _held_out(groups, f"check:{seed}") & ~is_test
    is_fit = ~(is_test | is_check)
    best = max(RIDGES, key=lambda ridge: _accuracy(features, labels, is_fit, is_check, ridge).float().mean().item())
    hits = _accuracy(features, labels, ~is_test, is_test, best)
    commonest = torch.bincount(labels[~is_test]).argmax()
    return share(hits.tolist(), chance=(labels[is_test] == commonest).float().mean().item())


def probe_emoji(
    morph: Any,
    data: Path,
    *,
    label: str = "group",
    noise: float = 0.0,
    num: int | None = None,
    seed: int = 0,
    batch_size: int = 64,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Score]:
    """Scores by layer over a built emoji set: what is told from an image is its concept's `label`.

    num: so many images at most. Raises ValueError for an unknown label or a folder without an emoji set.
    """
    if label not in LABELS:
        raise ValueError(f"unknown label {label!r}; choose one of: {', '.join(LABELS)}")
    path = data / "concepts.json"
    if not path.is_file():
        raise ValueError(f"{data} holds no emoji set; build one with: diptych data build emoji --out data/emoji")
    entries = json.loads(path.read_text(encoding="utf-8"))
    rows = [
        (entry["name"], style if label == "style" else entry[label], data / file)
        for entry in entries
        for style, file in entry["images"].items()
    ]
    rows.sort(key=lambda row: _rank(f"{seed}:{row[2].name}:{row[2].parent.name}"))
    rows = rows[:num]
    classes = {name: number for number, name in enumerate(sorted({row[1] for row in rows}))}
    collected: dict[str, list[Tensor]] = {}
    read = _reader(morph) if hasattr(morph, "encoder") and reads_by_features(morph, noise) else None
    options: dict[str, Any] = {"noise": noise}
    for start in range(0, len(rows), batch_size):
        chunk = [
            image_to_tensor(open_image(row[2]), morph.recipe.image_size) for row in rows[start : start + batch_size]
        ]
        if read is not None:
            paths = [str(row[2]) for row in rows[start : start + batch_size]]
            read.prepare(paths)
            options["features"] = torch.stack([read.load(path) for path in paths])
        for name, states in tower_states(morph, torch.stack(chunk), seed=seed + start, **options).items():
            collected.setdefault(name, []).append(states)
        if progress is not None:
            progress(min(start + batch_size, len(rows)), len(rows))
    labels = torch.tensor([classes[row[1]] for row in rows])
    names = [row[0] for row in rows]
    return {name: probe(torch.cat(parts), labels, names, seed=seed) for name, parts in collected.items()}


def _reader(morph: Any) -> EncodedImages:
    tower = morph.model.vision_tower
    fit = read_fit(morph.encoder, tower)
    return image_features(morph.encoder, tower.embedder.num_patches, cache_dir=morph.cache_dir, fit=fit)


def _accuracy(features: Tensor, labels: Tensor, is_fit: Tensor, is_test: Tensor, ridge: float) -> Tensor:
    """Which of the tested samples are classified right [.]: least squares on one-hot classes, standardised features."""
    fit = features[is_fit].double()
    mean, spread = fit.mean(dim=0), fit.std(dim=0).clamp_min(1e-6)
    x = (fit - mean) / spread
    y = torch.nn.functional.one_hot(labels[is_fit], int(labels.max()) + 1).double()
    offset = y.mean(dim=0)
    gram = x.T @ x + ridge * len(x) * torch.eye(x.shape[1], dtype=x.dtype)
    weights = torch.linalg.solve(gram, x.T @ (y - offset))
    scores = ((features[is_test].double() - mean) / spread) @ weights + offset
    return scores.argmax(dim=1) == labels[is_test]


def _held_out(groups: Sequence[str], salt: str) -> Tensor:
    return torch.tensor([_rank(f"{salt}:{group}") % 5 == 0 for group in groups])


def _rank(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8])

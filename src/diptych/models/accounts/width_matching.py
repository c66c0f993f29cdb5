"""Widths of a vision tower that costs what another does: designs compared at equal parameters, or at equal compute."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch

from diptych.backbones.skeletons import build_autoencoder_skeleton, build_language_skeleton
from diptych.config import Recipe
from diptych.models.accounts.first_streams import find_tokenizer, first_streams
from diptych.models.accounts.xfusion_account import account_xfusion
from diptych.models.xfusion_building import is_copied, measure_head_dim
from diptych.nn.heads import image_tokens
from diptych.tower_settings import VisionTowerConfig

STEP = 8
"""Of intermediate_size: kernels like multiples of it."""
TOLERANCE = 0.01
"""Of the cost that is matched, by which two towers may differ and still count as equal."""


def match_widths(recipe: Recipe) -> Recipe:
    """The recipe with the widths that `vision_tower.match` asks for written out, and `match` gone; others as they are.

    parameters: as many trained ones. compute: as many FLOPs in a training step, on this recipe's own data. First the
    language model's own widths, whose layers the tower starts as copies of; if these cost something else, the largest
    hidden_size (unless given) at which a tower of the language model's proportions costs no more, then the
    intermediate_size that comes nearest. Raises ValueError where none comes within 1%.
    """
    tower = recipe.vision_tower
    if recipe.method != "xfusion" or tower.match is None:
        return recipe
    language = build_language_skeleton(recipe.language_model, trust_remote_code=recipe.trust_remote_code)
    wanted = tower.match_to or VisionTowerConfig()
    cost = _cost_of(recipe, language)
    try:
        target = cost(wanted)
    except ValueError as error:
        raise ValueError(f"vision_tower.match_to, as the vision_tower of this recipe: {error}") from error
    config = language.config
    plain = tower.model_copy(update={"match": None, "match_to": None})

    def settled(best: VisionTowerConfig) -> Recipe:
        return recipe.model_copy(update={"vision_tower": best})

    if is_copied(plain, config):
        sizes = {"hidden_size": config.hidden_size, "intermediate_size": config.intermediate_size}
        copied = plain.model_copy(update=sizes)
        if abs(cost(copied) / target - 1) <= TOLERANCE:
            return settled(copied)

    def sized(hidden: int, intermediate: int) -> VisionTowerConfig:
        chosen: dict[str, Any] = {"hidden_size": hidden, "intermediate_size": intermediate}
        if tower.layer_design != "projection":
            heads = tower.num_attention_heads or max(1, hidden // head_dim)
            fewer = tower.num_key_value_heads or _nearest_divisor(heads, heads / queries_per_key)
            chosen |= {"num_attention_heads": heads, "num_key_value_heads": fewer}
        return plain.model_copy(update=chosen)

    head_dim = measure_head_dim(config)
    queries_per_key = config.num_attention_heads / config.num_key_value_heads
    proportion = config.intermediate_size / config.hidden_size
    if (hidden := tower.hidden_size) is None:
        widest = 4 * config.hidden_size // head_dim
        steps = _largest(lambda n: cost(sized(n * head_dim, round(n * head_dim * proportion))) <= target, widest)
        hidden = max(1, steps) * head_dim
    most = 32 * hidden // STEP
    below = max(1, _largest(lambda n: cost(sized(hidden, n * STEP)) <= target, most))
    nearest = [(cost(chosen), chosen) for chosen in (sized(hidden, n * STEP) for n in (below, below + 1))]
    reached, best = min(nearest, key=lambda pair: abs(pair[0] - target))
    miss = reached / target - 1
    if abs(miss) > TOLERANCE:
        remedy = "a smaller hidden_size" if miss > 0 else "a larger hidden_size"
        if tower.layer_design == "dual" and (miss > 0 or tower.layers is not None):
            remedy += ", fewer layers" if miss > 0 else ", more layers"
        layers = "all layers" if wanted.layers is None else f"{len(wanted.layers)} layers"
        raise ValueError(
            f"vision_tower.match: the nearest {tower.layer_design} tower (hidden_size {best.hidden_size}, "
            f"intermediate_size {best.intermediate_size}) has {1 + miss:.2f} times the {tower.match} asked for, those "
            f"of a {wanted.layer_design} tower beside {layers}; give {remedy}, or another vision_tower.match_to"
        )
    return settled(best)


def _cost_of(recipe: Recipe, language: Any) -> Callable[[VisionTowerConfig], float]:
    autoencoder = build_autoencoder_skeleton(recipe.autoencoder)
    size = recipe.image_size // autoencoder.downsampling
    latent = torch.zeros(autoencoder.latent_channels, size, size)
    tokenizer = find_tokenizer(recipe)
    is_compute = recipe.vision_tower.match == "compute"

    @lru_cache
    def streams(num_tokens: int) -> Any:
        return first_streams(recipe, tokenizer, num_image_tokens=num_tokens, image=latent)

    def cost(tower: VisionTowerConfig) -> float:
        other = recipe.model_copy(update={"vision_tower": tower})
        first = streams(image_tokens(size, tower.patch_size, boundary_tokens=tower.boundary_tokens))
        account = account_xfusion(other, language=language, first=first)
        return account.step.total if is_compute else float(sum(account.trained.values()))

    return cost


def _nearest_divisor(number: int, wanted: float) -> int:
    return min((n for n in range(1, number + 1) if number % n == 0), key=lambda n: abs(n - wanted))


def _largest(holds: Callable[[int], bool], most: int) -> int:
    """The largest number from 1 to `most` for which it holds, by bisection; 0 if for none."""
    low, high = 0, most + 1
    while high - low > 1:
        middle = (low + high) // 2
        if holds(middle):
            low = middle
        else:
            high = middle
    return low

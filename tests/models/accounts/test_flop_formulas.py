"""Law: the formulas of `diptych inspect` agree with torch's own FLOP counter within 3%, part sums included."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from diptych.models.accounts.flop_formulas import frozen_text_flops, measure_layer, step_flops
from diptych.models.accounts.fused_formulas import FROZEN, TRAINED, fused_step_flops, of_kind
from diptych.models.accounts.run_account import Flops
from diptych.models.checkpoint import build_morph
from diptych.models.fused import FusedXFusion
from diptych.sequence import pack
from tiny_diffusion_transformers import build_dit, build_sd3
from tiny_xfusion import FakeAutoencoder, build_language, build_streams, build_xfusion, noise_of, tiny_recipe

DRAW = [("text", 12), ("target", 1)]
READ = [("text", 3), ("context", 1), ("text", 5), ("answer", 4)]
EDIT = [("text", 4), ("context", 1), ("text", 6), ("target", 1)]
ANSWER = [("text", 4), ("answer", 3), ("target", 1)]
SHAPES = {"draw": DRAW, "read": READ, "edit": EDIT, "answer and draw": ANSWER}
X_FUSE: list[dict[str, Any]] = [{}, {"x_fuse": "text"}, {"x_fuse": "image"}, {"x_fuse": "both"}]
OTHERS: list[dict[str, Any]] = [{"layer_design": "gated"}, {"layer_design": "projection"}]
EVERY = (0, 1, 2, 3)
CASES = [(design, layers, own) for design in X_FUSE for layers in (EVERY, (1, 3)) for own in (True, False)]
CASES += [(design, EVERY, own) for design in OTHERS for own in (True, False)]
CASES += [({"layer_design": "single"}, EVERY, True)]
"""Layer design, layers, whether of the language model's widths."""
DESIGNS = [*X_FUSE, *OTHERS, {"layer_design": "single"}]


def count(
    model: Any, shapes: list[list[tuple[str, int]]], features: torch.Tensor | None = None
) -> tuple[float, float, float, dict[str, Any], float]:
    """features [Ic, patches, F]: of context images, where the tower reads them."""
    batch = pack(build_streams(shapes, model))
    plan, (noised, t) = model.plan(batch), noise_of(batch)
    formula: Any = fused_step_flops if isinstance(model, FusedXFusion) else step_flops
    with FlopCounterMode(display=False) as frozen_counter, sdpa_kernel(SDPBackend.MATH):
        frozen = model.text_states.gather(batch, plan)
    with sdpa_kernel(SDPBackend.MATH):
        with FlopCounterMode(display=False) as forward_counter:
            out = model.outputs(batch, plan, noised, t, frozen, context_features=features)
            aligned = [states for states in (out.context_states, out.target_states) if states is not None]
            made = [out.velocity, out.logits, *(model.vision_tower.predict_features(states) for states in aligned)]
            loss = sum((one.float().square().sum() for one in made if one is not None), torch.zeros(()))
        with FlopCounterMode(display=False) as backward_counter:
            loss.backward()
    return (
        forward_counter.get_total_flops(),
        backward_counter.get_total_flops(),
        frozen_counter.get_total_flops(),
        formula(model, batch, plan),
        frozen_text_flops(model, batch, plan).forward,
    )


def check(model: Any, shape: list[tuple[str, int]]) -> None:
    forward, backward, frozen, parts, frozen_formula = count(model, [shape] * 4)
    assert sum(part.forward for part in parts.values()) == pytest.approx(forward, rel=0.03)
    assert sum(part.backward for part in parts.values()) == pytest.approx(backward, rel=0.03)
    assert frozen_formula == pytest.approx(frozen, rel=0.03)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize(("design", "layers", "symmetric"), CASES, ids=str)
def test_formulas_of_every_design_equal_the_counter(
    design: dict[str, Any], layers: tuple[int, ...], symmetric: bool, shape: list[tuple[str, int]]
) -> None:
    language = build_language("llama", hidden_size=64, intermediate_size=160, num_hidden_layers=4)
    pooled = not symmetric
    options = {"text_pooling": pooled, "text_matching": pooled}
    check(build_xfusion(symmetric=symmetric, language=language, layers=layers, **options, **design), shape)


@pytest.mark.parametrize("x_fuse", ["none", "text", "image", "both"])
@pytest.mark.parametrize("network", [build_dit, build_sd3])
def test_formulas_of_a_diffusion_transformer_equal_the_counter(network: Any, x_fuse: str, tmp_path: Path) -> None:
    network().save_pretrained(tmp_path)
    tower = {"layers": [0, 2], "time_conditioning": "adaln", "boundary_tokens": False, "patch_size": 2}
    recipe = tiny_recipe(vision_tower=tower | {"diffusion_transformer": str(tmp_path), "x_fuse": x_fuse})
    morph = build_morph(recipe, language=build_language(), autoencoder=FakeAutoencoder(), cached=False)
    for shape in SHAPES.values():
        check(morph.model, shape)
        morph.model.zero_grad()


@pytest.mark.parametrize("shape", [DRAW, READ, EDIT], ids=["draw", "read", "edit"])
@pytest.mark.parametrize("projector", ["linear", "mlp3"])
@pytest.mark.parametrize("design", DESIGNS, ids=str)
def test_formulas_count_the_alignment(design: dict[str, Any], projector: str, shape: list[tuple[str, int]]) -> None:
    language = build_language("llama", hidden_size=64, intermediate_size=160, num_hidden_layers=4)
    model = build_xfusion(symmetric="layer_design" in design, language=language, **design)
    model.vision_tower.align(1, 32, projector=projector)
    forward, backward, _, parts, _ = count(model, [shape] * 4)
    assert sum(part.forward for part in parts.values()) == pytest.approx(forward, rel=0.03)
    assert sum(part.backward for part in parts.values()) == pytest.approx(backward, rel=0.03)


@pytest.mark.parametrize("with_latents", [False, True], ids=["in place of latents", "with latents"])
@pytest.mark.parametrize("matching", [False, True])
@pytest.mark.parametrize("design", DESIGNS, ids=str)
def test_formulas_count_features(design: dict[str, Any], with_latents: bool, matching: bool) -> None:
    language = build_language("llama", hidden_size=64, intermediate_size=160, num_hidden_layers=4)
    options: dict[str, Any] = {"text_pooling": matching, "text_matching": matching, **design}
    model = build_xfusion(symmetric="layer_design" in design, language=language, **options)
    model.vision_tower.read_features(256, with_latents=with_latents)
    features = torch.randn(4, model.vision_tower.embedder.num_patches, 256)
    forward, backward, _, parts, _ = count(model, [EDIT] * 4, features)
    assert sum(part.forward for part in parts.values()) == pytest.approx(forward, rel=0.03)
    assert sum(part.backward for part in parts.values()) == pytest.approx(backward, rel=0.03)


def test_drawing_with_cached_text_costs_the_text_tower_nothing() -> None:
    model = build_xfusion(symmetric=False)
    *_, parts, _ = count(model, [DRAW] * 2)
    for name, flops in parts.items():
        assert (flops.total == 0) == name.startswith(("text tower", "language model")), name


def test_each_kind_of_token_pays_for_itself() -> None:
    """Dual projection: images go through the trained layers alone; of a prompt only keys and values are computed."""
    model = build_xfusion(layer_design="projection")
    *_, parts, _ = count(model, [DRAW] * 4)
    tokens, layers = 4 * 12, len(model.vision_tower.layers)
    key_value = measure_layer(model.text_tower.layers[0]).key_value
    assert parts[of_kind(FROZEN, is_image=True)] == parts[of_kind(TRAINED, is_image=False)] == Flops()
    assert parts[of_kind(FROZEN, is_image=False)].forward == 2 * tokens * key_value * layers
    assert parts[of_kind(TRAINED, is_image=True)].forward > 0

"""Law: an image alone goes through a tower made of a diffusion transformer as through the original."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.transformers.dit_transformer_2d import DiTTransformer2DModel

from diptych.backbones.diffusion_transformer import (
    load_diffusion_transformer,
    read_transformer_config,
    take_apart,
)
from diptych.models.checkpoint import build_morph, load_morph, save_morph
from diptych.sequence import Sequence, pack
from tiny_diffusion_transformers import build_dit, build_sd3
from tiny_xfusion import CHANNELS, SIZE, FakeAutoencoder, build_language, image, text, tiny_recipe


def literal(network: Any, latents: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    if isinstance(network, DiTTransformer2DModel):
        none = torch.full((len(latents),), 10)
        return network(latents, timestep=1000 * t, class_labels=none).sample[:, :CHANNELS]
    return network(
        latents,
        encoder_hidden_states=torch.zeros(len(latents), 0, 12),
        pooled_projections=torch.zeros(len(latents), 10),
        timestep=1000 * t,
    ).sample


def build(folder: Path, *, objective: dict[str, Any] | None = None, **tower: Any) -> Any:
    settings = {"layers": [0, 2], "time_conditioning": "adaln", "boundary_tokens": False, "patch_size": 2}
    recipe = tiny_recipe(
        vision_tower=settings | {"diffusion_transformer": str(folder)} | tower, objective=objective or {}
    )
    return build_morph(recipe, language=build_language(), autoencoder=FakeAutoencoder(), cached=False)


@pytest.mark.parametrize("x_fuse", ["none", "text"])
@pytest.mark.parametrize(
    "network",
    [build_dit, build_sd3, lambda: build_sd3(qk_norm="rms_norm")],
    ids=["dit", "sd3", "sd3.5"],
)
@torch.no_grad()
def test_an_image_alone_is_denoised_as_by_the_original(network: Any, x_fuse: str, tmp_path: Path) -> None:
    original = network()
    original.save_pretrained(tmp_path)
    model = build(tmp_path, x_fuse=x_fuse).model
    batch = pack([Sequence((image(model, is_target=True, seed=n),), draw=n) for n in range(3)])
    plan = model.plan(batch)
    latents, t = torch.randn(3, CHANNELS, SIZE, SIZE), torch.tensor([0.05, 0.5, 0.999])
    ours = model.denoise(latents, t, batch, plan, model.prefill(batch, plan))
    torch.testing.assert_close(ours, literal(original, latents, t), atol=2e-5, rtol=2e-5)
    after_text = pack([Sequence((text(5, 6, 7), image(model, is_target=True, seed=n)), draw=n) for n in range(3)])
    plan = model.plan(after_text)
    told = model.denoise(latents, t, after_text, plan, model.prefill(after_text, plan))
    assert (told - ours).abs().max() > 1e-4


def test_a_morph_holds_all_it_took_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build_dit().save_pretrained(tmp_path / "dit")
    morph = build(tmp_path / "dit")
    save_morph(tmp_path / "morph", morph)
    for file in (tmp_path / "dit").iterdir():
        file.unlink()
    monkeypatch.setattr("diptych.models.checkpoint.load_image_space", lambda name: FakeAutoencoder())
    loaded = load_morph(tmp_path / "morph", language_model=build_language())
    prompt = [{"role": "user", "content": "Draw."}]
    assert loaded.generate(prompt)[0].tobytes() == morph.generate(prompt)[0].tobytes()


def test_a_tower_that_a_morph_starts_needs_the_config_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    build_dit().save_pretrained(tmp_path / "dit")
    first = build(tmp_path / "dit")
    save_morph(tmp_path / "morph", first)
    capsys.readouterr()
    fresh = build(tmp_path / "dit", init_from=str(tmp_path / "morph"), fresh_attention=True)  # whose attention it gives
    for file in (tmp_path / "dit").glob("*.safetensors"):
        file.unlink()
    second = build(tmp_path / "dit", init_from=str(tmp_path / "morph"))
    assert not capsys.readouterr().err  # of an objective that it would have to learn anew
    theirs = dict(first.model.vision_tower.named_parameters())
    for started in (fresh, second):
        for name, tensor in started.model.vision_tower.named_parameters():
            assert torch.equal(tensor, theirs[name]), name


@pytest.mark.parametrize("other", ["sd3", None])
def test_a_morph_of_another_transformer_is_no_start(tmp_path: Path, other: str | None) -> None:
    build_dit().save_pretrained(tmp_path / "dit")
    build_sd3().save_pretrained(tmp_path / "sd3")
    save_morph(tmp_path / "morph", build(tmp_path / "dit"))
    with pytest.raises(ValueError, match=r"diffusion_transformer .*dit, whose config is not that of .* as here"):
        build(tmp_path, diffusion_transformer=other and str(tmp_path / other), init_from=str(tmp_path / "morph"))


def test_a_morph_of_no_transformer_is_no_start_for_one(tmp_path: Path) -> None:
    build_dit().save_pretrained(tmp_path / "dit")
    save_morph(tmp_path / "morph", build(tmp_path / "dit", diffusion_transformer=None))
    with pytest.raises(ValueError, match=r"diffusion_transformer null, whose config is not that of .*dit as here"):
        build(tmp_path / "dit", init_from=str(tmp_path / "morph"))


def test_every_weight_is_trained(tmp_path: Path) -> None:
    build_sd3(qk_norm="rms_norm").save_pretrained(tmp_path)
    model = build(tmp_path).model
    names = {name for name, _ in model.vision_tower.named_parameters()}
    expected = ("layer.self_attn.q_proj.bias", "layer.self_attn.k_norm.weight", "layer.mlp.2.weight", "modulation")
    assert all(any(part in name for name in names) for part in expected)
    batch = pack([Sequence((text(5, 6, 7), image(model, is_target=True)))])
    velocity, _ = model(batch, model.plan(batch), torch.randn(1, CHANNELS, SIZE, SIZE), torch.rand(1))
    velocity.square().sum().backward()
    untouched = {name for name, p in model.vision_tower.named_parameters() if p.grad is None}
    assert untouched <= {name for name in names if "image_out" in name}  # no text is behind the image here


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"layers": [0, 1, 2]}, "has 2 blocks.*got 3"),
        ({"patch_size": 1}, "set vision_tower.patch_size"),
        ({"hidden_size": 64}, "has its own widths"),
        ({"layer_design": "gated", "layers": None}, "needs layer_design: dual"),
        ({"time_conditioning": "add"}, "time_conditioning: adaln"),
    ],
)
def test_what_does_not_fit_is_refused(changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    build_dit().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=said):
        build(tmp_path, **changes)


def test_it_is_said_that_it_learnt_with_another_objective(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    build_dit().save_pretrained(tmp_path)
    build(tmp_path)
    assert "objective.prediction epsilon and objective.schedule ddpm_linear" in capsys.readouterr().err
    build(tmp_path, objective={"prediction": "epsilon", "schedule": "ddpm_linear"})
    assert not capsys.readouterr().err


def test_layers_that_embed_the_time_differently_are_refused(tmp_path: Path) -> None:
    network = build_dit()
    with torch.no_grad():
        network.transformer_blocks[1].norm1.emb.timestep_embedder.linear_1.bias.add_(1)
    network.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="embed the time differently"):
        load_diffusion_transformer(str(tmp_path), latent_size=SIZE)


def test_other_models_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no such folder"):
        read_transformer_config(str(tmp_path / "none"))
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "UNet2DConditionModel"}))
    with pytest.raises(ValueError, match="is a UNet2DConditionModel; give one of"):
        load_diffusion_transformer(str(tmp_path), latent_size=4)
    with pytest.raises(ValueError, match="second attention"):
        take_apart(build_sd3(dual_attention_layers=(0,)), latent_size=4)
    with pytest.raises(ValueError, match="latents of 4 to a side, not for 8"):
        take_apart(build_dit(), latent_size=8)
    with pytest.raises(ValueError, match="latents up to 12 to a side, not for 16"):
        take_apart(build_sd3(), latent_size=16)

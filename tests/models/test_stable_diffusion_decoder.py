"""Laws of the paper's pixel decoder (MetaMorph): projector, padding, zeros as no condition, what of the base counts."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

from diptych.config import load_recipe
from diptych.models.pixel_decoder import build_pixel_decoder, load_pixel_decoder
from diptych.models.stable_diffusion_decoder import SCHEDULERS, Projector, StableDiffusionDenoiser
from tiny_pixel_decoder import (
    STABLE_DIFFUSION_SCHEDULER,
    build_decoder,
    decoder_recipe,
    load_encoder,
    write_parts,
    write_stable_diffusion,
)
from tiny_vpit import NUM_TOKENS, random_features

PAPER = Path(__file__).parents[2] / "recipes" / "paper" / "metamorph-decoder.yaml"
DIFFUSION: dict[str, Any] = {"pixel_decoder_training": {"kind": "stable_diffusion"}}


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_parts(tmp_path_factory.mktemp("parts"))


@pytest.fixture
def denoiser(parts: Path) -> Any:
    return build_decoder(decoder_recipe(parts, **DIFFUSION)).denoiser


def test_the_projector_is_the_paper_s() -> None:
    projector = Projector(1152, 2048, 768)
    shapes = {name: tuple(parameter.shape) for name, parameter in projector.named_parameters()}
    norms = {"1.weight": (2048,), "1.bias": (2048,), "4.weight": (768,), "4.bias": (768,)}
    linears = {"0.weight": (2048, 1152), "0.bias": (2048,), "3.weight": (768, 2048), "3.bias": (768,)}
    assert shapes == norms | linears
    assert [type(layer).__name__ for layer in projector] == ["Linear", "LayerNorm", "ReLU", "Linear", "LayerNorm"]


def test_the_context_is_padded_with_zeros_to_77_and_is_zeros_where_dropped(denoiser: Any) -> None:
    features = random_features(2)
    context = denoiser.context(features, torch.tensor([False, True]))
    assert context.shape == (2, 77, 12)
    assert torch.equal(context[0, :NUM_TOKENS], denoiser.projector(features)[0])
    assert bool((context[0, :NUM_TOKENS] != 0).any(dim=-1).all())
    assert not bool(context[0, NUM_TOKENS:].any())
    assert not bool(context[1].any())


def test_the_negative_side_of_guidance_sees_zeros(denoiser: Any) -> None:
    contexts = []
    denoiser.unet.register_forward_pre_hook(lambda _, arguments: contexts.append(arguments[2]))
    noise = torch.randn(2, *denoiser.latent_shape)
    with torch.no_grad():
        denoiser.sample(random_features(2), noise, guidance_scale=7.5, num_inference_steps=2, sampler="ddim")
    assert len(contexts) == 2
    for context in contexts:
        assert bool(context[:2].any())
        assert not bool(context[2:].any())


def test_the_loss_is_the_squared_error_of_the_noise_on_the_base_s_schedule(denoiser: Any) -> None:
    latents, noise = torch.randn(2, 3, *denoiser.latent_shape)
    t, features = torch.tensor([0, 500, 999]), random_features(3)
    kept = torch.tensor([False, False, False])
    scheduler: Any = DDPMScheduler.from_config({**STABLE_DIFFUSION_SCHEDULER, "_class_name": "DDPMScheduler"})
    noised = scheduler.add_noise(latents, noise, t)
    predicted = denoiser.unet(noised, t, denoiser.context(features, kept)).sample
    expected = (predicted - noise).square().sum()
    torch.testing.assert_close(denoiser(latents, features, noise, t, kept), expected)


def test_training_times_are_all_steps_of_the_schedule(denoiser: Any) -> None:
    times = [int(denoiser.sample_time(torch.Generator().manual_seed(k))) for k in range(2000)]
    assert 0 <= min(times) < 10
    assert 989 < max(times) < 1000


@pytest.mark.parametrize("sampler", sorted(SCHEDULERS))
def test_every_sampler_recovers_what_a_perfect_denoiser_knows(parts: Path, sampler: str) -> None:
    """A UNet that knows the one latent there is: whatever the sampler, it comes out."""
    denoiser: Any = build_decoder(decoder_recipe(parts, **DIFFUSION)).denoiser
    target = torch.randn(1, *denoiser.latent_shape) * 3
    scheduler = denoiser._build_scheduler(sampler)

    def perfect(x: torch.Tensor, t: torch.Tensor, _: torch.Tensor) -> Any:
        kept = scheduler.alphas_cumprod[t.long()]
        return type("Output", (), {"sample": (x - kept.sqrt() * target) / (1 - kept).sqrt()})

    denoiser.unet.forward = perfect
    noise = torch.randn(2, *denoiser.latent_shape)
    made = denoiser.sample(random_features(2), noise, guidance_scale=1.0, num_inference_steps=50, sampler=sampler)
    torch.testing.assert_close(made, target.expand_as(made), atol=0.15, rtol=0.05)


def test_left_out_the_sampler_is_the_base_s_own(denoiser: Any) -> None:
    assert denoiser.default_sampler == "pndm"


def test_exactly_projector_and_unet_are_trained(parts: Path) -> None:
    decoder = build_pixel_decoder(decoder_recipe(parts, **DIFFUSION), load_encoder(decoder_recipe(parts)))
    names = {name.split(".")[0] for name, _ in decoder.denoiser.named_parameters()}
    assert names == {"unet", "projector"}
    assert all(parameter.requires_grad for parameter in decoder.denoiser.parameters())
    assert not any(parameter.requires_grad for parameter in decoder.autoencoder.network.parameters())


def test_the_unet_starts_as_the_base_s(parts: Path) -> None:
    decoder = build_pixel_decoder(decoder_recipe(parts, **DIFFUSION), load_encoder(decoder_recipe(parts)))
    base: Any = UNet2DConditionModel.from_pretrained(parts / "base" / "unet")
    for name, tensor in decoder.denoiser.unet.state_dict().items():
        assert torch.equal(tensor, base.state_dict()[name])


def test_a_saved_decoder_needs_only_the_base_s_vae_and_that_one(parts: Path, tmp_path: Path) -> None:
    shutil.copytree(parts / "base", tmp_path / "base")
    settings: dict[str, Any] = {"pixel_decoder_training": {"kind": "stable_diffusion", "base": str(tmp_path / "base")}}
    decoder = build_decoder(decoder_recipe(parts, **settings))
    decoder.save_pretrained(tmp_path / "morph")
    for part in ("unet", "scheduler"):
        shutil.rmtree(tmp_path / "base" / part)
    loaded = load_pixel_decoder(tmp_path / "morph")
    features = random_features(1)
    assert torch.equal(loaded.decode(features), decoder.decode(features))
    write_stable_diffusion(tmp_path / "base")
    with pytest.raises(ValueError, match=r"autoencoder with hash .* names '.*base/vae'"):
        load_pixel_decoder(tmp_path / "morph")


@pytest.mark.parametrize(
    ("unet", "scheduler", "says"),
    [
        ({"in_channels": 9}, {}, "a UNet of 9 channels"),
        ({"out_channels": 8}, {}, "reads 4 channels and writes 8"),
        ({"class_embed_type": "timestep"}, {}, "class_embed_type is timestep"),
        ({}, {"_class_name": "DDPMScheduler"}, "scheduler is a DDPMScheduler that predicts epsilon"),
        ({}, {"prediction_type": "v_prediction"}, "predicts v_prediction; take a base that predicts epsilon"),
    ],
)
def test_another_kind_of_base_is_refused(
    parts: Path, tmp_path: Path, unet: dict[str, Any], scheduler: dict[str, Any], says: str
) -> None:
    base = write_stable_diffusion(tmp_path / "base", scheduler=scheduler, **unet)
    recipe = decoder_recipe(parts, pixel_decoder_training={"kind": "stable_diffusion", "base": str(base)})
    with pytest.raises(ValueError, match=says):
        build_pixel_decoder(recipe, load_encoder(recipe))


def test_a_base_that_is_not_there_or_damaged_is_refused_by_name(parts: Path, tmp_path: Path) -> None:
    def build(base: Path | str, **settings: Any) -> None:
        recipe = decoder_recipe(
            parts, pixel_decoder_training={"kind": "stable_diffusion", "base": str(base)}, **settings
        )
        build_pixel_decoder(recipe, load_encoder(recipe))

    with pytest.raises(ValueError, match="base '/nowhere': there is no such folder"):
        build("/nowhere")
    with pytest.raises(
        ValueError, match="base 'nobody/nothing' is no folder and could not be fetched from the Hugging Face Hub"
    ):
        build("nobody/nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="has no vae, unet, scheduler"):
        build(tmp_path / "empty")
    base = write_stable_diffusion(tmp_path / "base")
    with pytest.raises(ValueError, match=r"latents of 9 x 9 do not fit this UNet: use multiples of 2"):
        build(base, image_size=18)
    (base / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"half")
    with pytest.raises(ValueError, match="unet could not be loaded"):
        build(base)
    (base / "unet" / "config.json").write_text(json.dumps({"_class_name": "SD3Transformer2DModel"}))
    with pytest.raises(ValueError, match="its unet is a SD3Transformer2DModel"):
        build(base)


def test_more_visual_tokens_than_the_context_holds_are_refused(parts: Path) -> None:
    recipe = decoder_recipe(parts, vpit={"num_image_tokens": 81}, **DIFFUSION)
    with pytest.raises(ValueError, match=r"holds 77 tokens, but vpit.num_image_tokens is 81"):
        build_pixel_decoder(recipe, load_encoder(recipe))


def test_more_steps_than_were_trained_are_refused(denoiser: Any) -> None:
    noise = torch.randn(1, *denoiser.latent_shape)
    with pytest.raises(ValueError, match="num_inference_steps 1001 is more than the 1000"):
        denoiser.sample(random_features(1), noise, guidance_scale=1.0, num_inference_steps=1001, sampler="ddim")


def test_the_paper_s_recipe_builds_at_full_size_on_the_meta_device() -> None:
    """Stable Diffusion 1.5's UNet has 859,520,964 parameters; the numbers are those of the paper."""
    recipe = load_recipe(PAPER)
    config, train = recipe.pixel_decoder_training, recipe.train
    with torch.device("meta"):
        unet: Any = UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8)
        denoiser = StableDiffusionDenoiser(
            unet,
            STABLE_DIFFUSION_SCHEDULER,
            feature_dim=1152,
            num_image_tokens=recipe.vpit.num_image_tokens,
            latent_size=recipe.image_size // 8,
            projector_hidden=config.projector_hidden,
        )
    count = sum(parameter.numel() for parameter in unet.parameters())
    projector = (1152 + 1) * 2048 + 2 * 2048 + (2048 + 1) * 768 + 2 * 768
    assert (count, sum(p.numel() for p in denoiser.parameters()) - count) == (859_520_964, projector)
    assert denoiser.latent_shape == (4, 64, 64)
    assert config.dropout_prob == 0.7
    assert train.per_device_train_batch_size * train.gradient_accumulation_steps * 8 == 2112
    assert (train.learning_rate, train.lr_scheduler_type, train.max_steps) == (1.1e-5, "linear", 12_000)
    assert round(train.warmup_ratio * train.max_steps) == 2000
    assert (recipe.vpit.image_encoder, recipe.vpit.num_image_tokens) == ("google/siglip-so400m-patch14-384", 64)

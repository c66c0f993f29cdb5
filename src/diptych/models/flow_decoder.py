"""Visual tokens to latents by flow matching: the embedded kind of pixel decoder, trained from nothing in minutes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from diptych.diffusion.path import add_noise, sample_times, velocity_target
from diptych.diffusion.sampler import SAMPLERS, guide
from diptych.nn.towers.pixel_transformer import PixelTransformer


class FlowDenoiser(nn.Module):
    """Implements `Denoiser`. Without its condition an image is drawn from learned tokens in place of visual ones."""

    loss_name = "flow"
    samplers = tuple(SAMPLERS)

    def __init__(
        self, network: PixelTransformer, *, sampler: str, timestep_sampling: str, timestep_shift: float
    ) -> None:
        super().__init__()
        self.network = network
        self.latent_shape = network.latent_shape
        self.default_sampler = sampler
        self.timestep_sampling = timestep_sampling
        self.timestep_shift = timestep_shift

    def standardise(self, features: Tensor) -> None:
        self.network.standardise(features)

    def sample_time(self, generator: torch.Generator) -> Tensor:
        density, shift = self.timestep_sampling, self.timestep_shift
        return sample_times(1, density=density, shift=shift, generator=generator)[0]

    def forward(self, latents: Tensor, features: Tensor, noise: Tensor, t: Tensor, dropped: Tensor) -> Tensor:
        velocity = self.network(add_noise(latents, noise, t), t, features, dropped)
        return (velocity.float() - velocity_target(latents, noise)).square().sum()

    def sample(
        self, features: Tensor, noise: Tensor, *, guidance_scale: float, num_inference_steps: int, sampler: str
    ) -> Tensor:
        guided = guidance_scale != 1.0
        dropped = torch.zeros(len(features), dtype=torch.bool, device=features.device)
        if guided:
            features, dropped = torch.cat((features, features)), torch.cat((dropped, ~dropped))

        def velocity(x: Tensor, t: Tensor) -> Tensor:
            if not guided:
                return self.network(x, t, features, dropped).float()
            both = self.network(torch.cat((x, x)), torch.cat((t, t)), features, dropped).float()
            conditional, unconditional = both.chunk(2)
            return guide(conditional, unconditional, guidance_scale)

        return SAMPLERS[sampler](velocity, noise, num_steps=num_inference_steps, shift=self.timestep_shift)

    def shard_modules(self) -> Iterable[nn.Module]:
        return self.network.blocks

    def checkpoint_gradients(self) -> None:
        self.network.gradient_checkpointing = True

    def description(self) -> dict[str, Any]:
        return {}

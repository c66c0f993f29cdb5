"""X-Fusion as the train loop sees it: samples to batches, batches to losses (X-Fusion section 3, 0.2 CE + 1.0 flow)."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from diptych.backbones.vision import load_image_encoder
from diptych.config import Recipe
from diptych.data.contact_sheet import draw_image_grid
from diptych.data.packing import Pick
from diptych.data.sources import naming_sample
from diptych.data.tokenize import build_sequence
from diptych.diffusion.path import add_noise, prediction_target, sample_times
from diptych.models.checkpoint import save_morph
from diptych.models.encoded_images import EncodedImages, image_features, image_latents, read_fit
from diptych.models.generate import Morph
from diptych.models.method import LossSum
from diptych.models.training_sources import (
    NO_IMAGE,
    TrainingSources,
    all_images,
    drawn_images,
    kept_lengths,
    kept_streams,
    read_images,
    some_usable,
)
from diptych.models.xfusion import Outputs
from diptych.nn.alignment import alignment_loss
from diptych.nn.visibility import RoutingPlan
from diptych.sequence import Batch, ImageSpan, pack
from diptych.sequence import Sequence as Stream
from diptych.settings import AlignmentConfig, ObjectiveConfig

NUM_PROMPTS_MEASURED = 256
NUM_LOOKED_AT = 16_384
"""Records of a source, evenly over it, among which those prompts are looked for."""

Form = tuple[int, int, bool, bool]
"""Source, index of the sample in it, without its text, without the images of its requests."""


@dataclass(frozen=True)
class XFusionBatch:
    """A packed batch with its routing plan, and the noise [It, C, h, w] and times [It] of its target images.

    context_t [Ic]: times that its context images are noised to; empty where they are clean. context_features
    [Ic, n, F]: of context images, where the tower reads features. features [I, n, F]: of all its images, by the encoder
    that the tower is aligned to. Empty where there are none.
    """

    batch: Batch
    plan: RoutingPlan
    noise: Tensor
    t: Tensor
    context_t: Tensor
    context_features: Tensor
    features: Tensor

    def to(self, device: torch.device | str) -> XFusionBatch:
        return replace(self, **{name: value.to(device) for name, value in vars(self).items()})


class XFusionTraining(nn.Module):
    """Trains the vision tower of a morph; the language model stays as it is. Implements `Method`."""

    def __init__(self, recipe: Recipe, morph: Morph, *, encoder: Any = None) -> None:
        """`encoder`: in place of the one that `alignment` names."""
        super().__init__()
        if recipe.vision_tower.layer_design == "single":
            note = "layer_design single trains the language model itself: text alone will not stay as it was"
            print(f"note: {note}", file=sys.stderr)
        self.recipe = recipe
        self.model = morph.model
        self.morph = morph
        self.loss_weights = {"ce": recipe.objective.ce_weight, "flow": recipe.objective.flow_weight}
        self.data = TrainingSources(recipe, cache_dir=morph.cache_dir)
        self.sources = self.data.samples
        tower = morph.model.vision_tower
        self.latents = image_latents(morph.autoencoder, recipe.image_size, cache_dir=morph.cache_dir)
        self.data.encode_with(self.latents, wanted=all_images if tower.reads_latents else drawn_images)
        self.features = None
        if recipe.alignment is not None:
            self.loss_weights["align"] = recipe.alignment.weight
            self.features = _aligned_features(recipe.alignment, morph, encoder)
            self.data.encode_with(self.features)
        self.read_features = None
        if morph.encoder is not None:
            num_patches = tower.embedder.num_patches
            fit = read_fit(morph.encoder, tower)
            self.read_features = image_features(morph.encoder, num_patches, cache_dir=morph.cache_dir, fit=fit)
            self.data.encode_with(self.read_features, wanted=read_images)
        self._streams, self._lengths = kept_streams(), kept_lengths()
        if recipe.vision_tower.init_from is None:
            self._standardise_text()

    @torch.no_grad()
    def _standardise_text(self) -> None:
        """Starts the maps of text into the vision tower from the statistics of the prompts that ask for an image, of
        samples that can be used. Raises ValueError if there are such samples, and none can."""
        picks = [
            (index, source, index)
            for source in range(len(self.sources))
            for index in self.data.spread(source, NUM_LOOKED_AT)
            if self._draws(source, index)
        ]
        if not picks:
            return
        batch = self._batch_of_usable(picks[:: max(1, len(picks) // NUM_PROMPTS_MEASURED)])
        packed, plan = batch.batch.to(self.morph.device), batch.plan.to(self.morph.device)
        states = self.model.text_states.gather(packed, plan).prefix
        rows = plan.pooled_rows[plan.pooled_rows < states.shape[1]]
        if rows.numel() > 1:
            self.model.vision_tower.standardise_text(states[:, rows])

    def _batch_of_usable(self, picks: Sequence[Pick]) -> XFusionBatch:
        """All at once, which encodes their images in batches; one by one where a sample is bad."""
        seed = self.recipe.seed
        try:
            return self.build_batch(picks, seed=seed)
        except ValueError:
            good = some_usable(picks, lambda pick: self.build_batch([pick], seed=seed))
            return self.build_batch([pick for pick, _ in good], seed=seed)

    def num_samples(self) -> tuple[int, ...]:
        return self.data.num_samples()

    def build_batch(self, picks: Sequence[tuple[int, int, int]], *, seed: int) -> XFusionBatch:
        objective = self.recipe.objective
        streams, noise, times, context_times, features, read_features = [], [], [], [], [], []
        self.data.prepare(picks)
        for pick in picks:
            generator, form = self._form(pick, seed)
            stream = self._streams.get_or_make(form, lambda form=form: self._build_stream(form, self.latents.load))
            if self.features is not None:
                features += [self.features.load(span.source) for span in stream.images]
            if self.read_features is not None:
                read_features += [self.read_features.load(i.source) for i in stream.images if not i.is_target]
            if objective.context_noise:
                stream, noised_to = _noise_context(stream, objective, generator)
                context_times += noised_to
            streams.append(replace(stream, draw=pick[0]))
            for span in stream.images:
                if span.is_target:
                    noise.append(torch.randn(span.image.shape, generator=generator))
                    times.append(
                        sample_times(
                            1,
                            density=objective.timestep_sampling,
                            shift=objective.timestep_shift,
                            generator=generator,
                        )
                    )
        batch = pack(streams)
        empty = torch.zeros(0)
        return XFusionBatch(
            batch=batch,
            plan=self.model.plan(batch),
            noise=torch.stack(noise) if noise else empty,
            t=torch.cat(times) if times else empty,
            context_t=torch.stack(context_times) if context_times else empty,
            context_features=torch.stack(read_features) if read_features else empty,
            features=torch.stack(features) if features else empty,
        )

    def num_tokens(self, pick: Pick, *, seed: int) -> int:
        _, form = self._form(pick, seed)
        return self._lengths.get_or_make(form, lambda: len(self._build_stream(form, lambda _: NO_IMAGE)))

    def _form(self, pick: Pick, seed: int) -> tuple[torch.Generator, Form]:
        """What of a pick's sample is left out, and the randomness that comes after it."""
        draw, source, index = pick
        objective = self.recipe.objective
        generator = torch.Generator().manual_seed((seed * 1_000_003 + draw) % 2**63)
        without_images, without_text = False, False
        if self._draws(source, index):
            drawn = torch.rand((), generator=generator).item()
            without_images = drawn < objective.image_cond_dropout_prob
            without_text = drawn < objective.image_cond_dropout_prob + objective.text_cond_dropout_prob
        return generator, (source, index, without_text, without_images)

    def loss_counts(self, batch: XFusionBatch) -> dict[str, float]:
        counts = {"ce": float(batch.plan.labels.numel()), "flow": float(batch.noise.numel())}
        return counts if self.features is None else counts | {"align": float(batch.features[..., :1].numel())}

    def forward(self, batch: XFusionBatch) -> dict[str, LossSum]:
        packed, plan = batch.batch, batch.plan
        counts = self.loss_counts(batch)
        noised = target = batch.noise
        if batch.noise.numel():
            data = packed.images[packed.image_is_target]
            path = self.recipe.objective
            noised = add_noise(data, batch.noise, batch.t, schedule=path.schedule)
            target = prediction_target(data, batch.noise, batch.t, prediction=path.prediction, schedule=path.schedule)
        context_t = batch.context_t if batch.context_t.numel() else None
        read = batch.context_features if batch.context_features.numel() else None
        out = self.model.outputs(packed, plan, noised, batch.t, context_t=context_t, context_features=read)
        velocity, logits = out.velocity, out.logits
        zero = torch.zeros((), device=packed.token_ids.device)
        flow = zero if velocity is None else (velocity.float() - target).square().sum()
        ce = zero if logits is None else cross_entropy(logits.float(), plan.labels, reduction="sum")
        losses = {"ce": LossSum(ce, counts["ce"]), "flow": LossSum(flow, counts["flow"])}
        if self.features is not None:
            losses["align"] = LossSum(self._align(batch, out, zero), counts["align"])
        return losses

    def _align(self, batch: XFusionBatch, out: Outputs, zero: Tensor) -> Tensor:
        is_target, total = batch.batch.image_is_target, zero
        for states, chosen in ((out.context_states, ~is_target), (out.target_states, is_target)):
            if states is not None:
                predicted = self.model.vision_tower.predict_features(states)
                total = total + alignment_loss(predicted, batch.features[chosen])
        return total

    def trainable_parameters(self) -> dict[str, nn.Parameter]:
        return dict(self.model.vision_tower.named_parameters())

    def shard_modules(self) -> Iterable[nn.Module]:
        return list(self.model.vision_tower.blocks)

    def frozen_hashes(self) -> dict[str, str]:
        return self.morph.frozen_hashes()

    def sample_grid(self, *, seed: int) -> Image.Image | None:
        prompts = self.recipe.sample.prompts
        if not prompts:
            return None
        conversations: list[Any] = [[{"role": "user", "content": prompt}] for prompt in prompts]
        answers = self.morph.generate_batch(conversations, generation_mode="image", seed=seed)
        pictures: list[Any] = [answer[0] for answer in answers]
        return draw_image_grid(pictures, list(prompts), columns=min(8, len(prompts)))

    def measure(self, *, seed: int) -> dict[str, float]:
        del seed
        return {}

    def save_pretrained(self, folder: str, *, weights: dict[str, Tensor] | None = None) -> None:
        save_morph(folder, self.morph, weights=weights)
        self.flush()

    @torch.no_grad()
    def encode(self, picks: Sequence[Pick]) -> None:
        batch = self.build_batch(picks, seed=self.recipe.seed)
        cache = self.model.text_states.cache
        if cache is not None and not cache.is_full:
            self.model.text_states.gather(batch.batch.to(self.morph.device), batch.plan.to(self.morph.device))

    def flush(self) -> None:
        self.data.flush()
        if self.model.text_states.cache is not None:
            try:
                self.model.text_states.cache.flush()
            except ValueError as error:  # the morph is worth more than a cache
                warnings.warn(str(error), stacklevel=2)

    def _draws(self, source: int, index: int) -> bool:
        return bool(self.sources[source][index].target_images())

    def _build_stream(self, form: Form, load_image: Callable[[str], Tensor]) -> Stream:
        source, index, without_text, without_images = form
        with naming_sample(self.sources[source], index) as sample:
            drawn = set(drawn_images(sample))
            unread = self.morph.unread_latents

            def load(image: str) -> Tensor:
                return load_image(image) if unread is None or image in drawn else unread

            return build_sequence(
                sample,
                tokenizer=self.morph.tokenizer,
                template=self.recipe.template,
                load_image=load,
                num_image_tokens=self.model.vision_tower.num_image_tokens,
                unconditional=without_text,
                without_images=without_images,
                max_length=self.recipe.data.max_length,
            )


def _aligned_features(alignment: AlignmentConfig, morph: Morph, encoder: Any) -> EncodedImages:
    """The encoder's features, on the grid of the tower's patches: of the square that the latents are of."""
    encoder = encoder or load_image_encoder(
        alignment.image_encoder, layer=alignment.encoder_layer, image_size=alignment.encoder_image_size
    )
    encoder.to(morph.device)
    num_patches = morph.model.vision_tower.embedder.num_patches
    return image_features(encoder, num_patches, cache_dir=morph.cache_dir, fit="crop")


def _noise_context(
    stream: Stream, objective: ObjectiveConfig, generator: torch.Generator
) -> tuple[Stream, list[Tensor]]:
    """The stream with each context image noised to a time of its own, uniform up to `context_noise`; those times."""
    spans, times = [], []
    for span in stream.spans:
        if isinstance(span, ImageSpan) and not span.is_target:
            t = objective.context_noise * torch.rand((), generator=generator)
            noise = torch.randn(span.image.shape, generator=generator)
            noised = add_noise(span.image[None], noise[None], t[None], schedule=objective.schedule)[0]
            span = replace(span, image=noised)
            times.append(t)
        spans.append(span)
    return replace(stream, spans=tuple(spans)), times

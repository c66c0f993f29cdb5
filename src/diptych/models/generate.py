"""A morph at work: conversations in, text and images out; cached, batched, interleaved parts in one list."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor

from diptych.backbones.language import LanguageModel
from diptych.config import Recipe
from diptych.data.images import image_to_tensor, tensor_to_image
from diptych.data.samples import Message
from diptych.data.tokenize import build_prompt
from diptych.diffusion.sampler import starting_noise
from diptych.models.conversation import (
    Ability,
    Conversation,
    Part,
    check_options,
    read_conversation,
)
from diptych.models.decoding import decode_text
from diptych.models.drawing import draw_latents, guided_forms, holds_images
from diptych.models.encoded_images import read_fit
from diptych.models.token_choice import conversation_seeds
from diptych.models.xfusion_building import XFusionModel
from diptych.nn.connector import reduce_tokens
from diptych.sequence import ImageSpan
from diptych.sequence import Sequence as Stream
from diptych.settings import check_guidance


class Morph:
    """A trained model: frozen language model, vision tower, autoencoder. Built by `load_morph`."""

    def __init__(
        self,
        *,
        model: XFusionModel,
        language: LanguageModel,
        autoencoder: Any,
        recipe: Recipe,
        encoder: Any = None,
        transformer_config: dict[str, Any] | None = None,
        cache_dir: Path | None = None,
    ) -> None:
        """`encoder`: of a tower that reads images as features; `transformer_config`: of one made of a diffusion
        transformer."""
        self.model = model
        self.language = language
        self.autoencoder = autoencoder
        self.encoder = encoder
        self.transformer_config = transformer_config
        self.recipe = recipe
        self.cache_dir = cache_dir
        embedder = model.vision_tower.embedder
        self.latent_shape = (embedder.latent_channels, embedder.latent_size, embedder.latent_size)
        self.unread_latents = None if model.vision_tower.reads_latents else torch.zeros(self.latent_shape)
        """In place of an image's latents where the tower reads its features alone."""

    @property
    def language_model(self) -> Any:
        """The Hugging Face model: the base LLM untouched, but of a single tower, which is its own layers, trained."""
        return self.language.model

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def tokenizer(self) -> Any:
        return self.language.tokenizer

    @property
    def abilities(self) -> frozenset[Ability]:
        return frozenset({"reads", "writes", "draws", "reconstructs"})

    def frozen_hashes(self) -> dict[str, str]:
        hashes = {"language_model": self.language.hash, "autoencoder": self.autoencoder.hash}
        return hashes if self.encoder is None else hashes | {"image_encoder": self.encoder.hash}

    def text_logits(self, input_ids: Tensor) -> Tensor:
        """Logits [B, T, vocabulary] of text alone: the language model's own, bit for bit. They are the base LLM's
        unless the tower is single, which trains the language model itself."""
        with torch.no_grad():
            return self.language_model(input_ids=input_ids.to(self.device)).logits

    def generate(self, messages: Conversation, **options: Any) -> list[Part]:
        """Answers one conversation; options as in `generate_batch`."""
        return self.generate_batch([messages], **options)[0]

    @torch.no_grad()
    def generate_batch(
        self,
        conversations: Sequence[Conversation],
        *,
        generation_mode: Literal["auto", "text", "image"] = "auto",
        num_images: int = 1,
        guidance_scale: float | None = None,
        image_guidance_scale: float = 1.0,
        visual_guidance_scale: float = 1.0,
        num_inference_steps: int | None = None,
        sampler: str | None = None,
        negative_prompt: str = "",
        seed: int | Sequence[int] = 0,
        max_new_tokens: int = 64,
        do_sample: bool = False,
        temperature: float = 1.0,
        top_p: float = 1.0,
        max_batch_size: int = 64,
    ) -> list[list[Part]]:
        """Answers conversations in batches: a list of text and image parts for each.

        generation_mode: auto answers with text where the conversation holds an image, else with images. seed: of all
        conversations, or one for each; the noise of image k of a conversation derives from (seed, k) alone, and sampled
        text from the seed, so that batching changes nothing. guidance_scale: to the text; image_guidance_scale: to the
        request's images, for editing. Each needs what it leads away from to have been learnt
        (objective.text_cond_dropout_prob, image_cond_dropout_prob).
        Raises ValueError for options out of range and for a conversation without a user turn.
        """
        if visual_guidance_scale != 1.0:
            raise ValueError("X-Fusion predicts no visual tokens to guide; its images follow guidance_scale")
        check_options(
            generation_mode=generation_mode,
            num_images=num_images,
            num_inference_steps=num_inference_steps,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_p=top_p,
        )
        learnt = self.recipe.objective
        trained_without_text = learnt.text_cond_dropout_prob > 0
        if guidance_scale is None:
            guidance_scale = self.recipe.sample.guidance_scale if trained_without_text else 1.0
        # Image guidance leads from no text and no images to no text (guided_forms).
        for name, scale, without in (
            ("guidance_scale", guidance_scale, ("text",)),
            ("image_guidance_scale", image_guidance_scale, ("text", "image")),
        ):
            for part in without:
                needs = f"{part}_cond_dropout_prob"
                check_guidance(name, scale, is_trained=getattr(learnt, needs) > 0, needs=f"objective.{needs}")
        if negative_prompt and guidance_scale == 1.0:
            raise ValueError("negative_prompt is what guidance leads away from, and guidance_scale 1 is no guidance")
        seeds = conversation_seeds(seed, len(conversations))
        parsed = [self._parse(messages) for messages in conversations]
        draws = [generation_mode == "image" or (generation_mode == "auto" and not one.latents) for one in parsed]
        answers: list[list[Part]] = [[] for _ in parsed]
        jobs = [(index, k) for index, drawn in enumerate(draws) if drawn for k in range(num_images)]
        for start in range(0, len(jobs), max_batch_size):
            chunk = jobs[start : start + max_batch_size]
            numbers: dict[int, list[int]] = {}
            for index, k in chunk:
                numbers.setdefault(index, []).append(k)
            drawn = self._draw(
                [(parsed[index], own) for index, own in numbers.items()],
                scale=guidance_scale,
                image_scale=image_guidance_scale,
                num_steps=num_inference_steps or self.recipe.sample.num_inference_steps,
                sampler=sampler or self.recipe.sample.sampler,
                negative_prompt=negative_prompt,
                seeds=[seeds[index] for index, _ in chunk],
            )
            for (index, _), image in zip(chunk, drawn, strict=True):
                answers[index].append(image)
        writes = [index for index, drawn in enumerate(draws) if not drawn]
        for start in range(0, len(writes), max_batch_size):
            chunk_indices = writes[start : start + max_batch_size]
            requests = [parsed[index] for index in chunk_indices]
            seen = [feature for request in requests for feature in request.features]
            texts = decode_text(
                self.model,
                [self._prompt(request.messages, request.latents) for request in requests],
                context_features=torch.stack(seen) if seen else None,
                tokenizer=self.tokenizer,
                max_new_tokens=max_new_tokens,
                do_sample=do_sample,
                temperature=temperature,
                top_p=top_p,
                seed=[seeds[index] for index in chunk_indices],
            )
            for index, text in zip(chunk_indices, texts, strict=True):
                answers[index].append(text)
        return answers

    @torch.no_grad()
    def reconstruct(self, images: Sequence[Image.Image], **sampling: Any) -> list[Image.Image]:
        """Images through the autoencoder's latents and back, at the morph's size. `sampling`: as a pixel decoder takes
        it; an autoencoder samples nothing, so it decides nothing here."""
        del sampling
        latents = self.autoencoder.encode(torch.stack([image_to_tensor(i, self.recipe.image_size) for i in images]))
        return [tensor_to_image(image) for image in self.autoencoder.decode(latents).float().cpu()]

    def _draw(
        self,
        jobs: list[tuple[Request, list[int]]],
        *,
        scale: float,
        image_scale: float,
        num_steps: int,
        sampler: str,
        negative_prompt: str,
        seeds: list[int],
    ) -> list[Image.Image]:
        """Samples for each request an image of each of its numbers, which stand behind one prompt and do not see each
        other. `seeds`: of all images. All guidance shares a batch; clean states come once."""
        shape = self.latent_shape
        target = ImageSpan(torch.zeros(shape), self.model.vision_tower.num_image_tokens, is_target=True)
        by_images = image_scale != 1 and any(holds_images(request.messages) for request, _ in jobs)
        forms = [
            guided_forms(request.messages, negative_prompt=negative_prompt, by_text=scale != 1, by_images=by_images)
            for request, _ in jobs
        ]
        prompts = [
            [
                _repeat_target(self._prompt(form, request.latents, then=target), len(numbers))
                for form, (request, numbers) in zip(column, jobs, strict=True)
            ]
            for column in zip(*forms, strict=True)
        ]
        features = [
            request.features[part]
            for column in zip(*forms, strict=True)
            for form, (request, _) in zip(column, jobs, strict=True)
            for message in form
            for part in message.parts
            if isinstance(part, int) and request.features
        ]
        latents = draw_latents(
            self.model,
            prompts,
            starting_noise([k for _, numbers in jobs for k in numbers], shape, seed=seeds),
            objective=self.recipe.objective,
            guidance_scale=scale,
            image_guidance_scale=image_scale,
            num_steps=num_steps,
            sampler=sampler,
            context_features=torch.stack(features) if features else None,
        )
        return [tensor_to_image(image) for image in self.autoencoder.decode(latents)]

    def _prompt(self, messages: tuple[Message, ...], images: list[Tensor], then: ImageSpan | None = None) -> Any:
        return build_prompt(
            messages,
            images,
            tokenizer=self.tokenizer,
            template=self.recipe.template,
            num_image_tokens=self.model.vision_tower.num_image_tokens,
            then=then,
        )

    def _parse(self, conversation: Conversation) -> Request:
        messages, pictures = read_conversation(conversation, self._prepare)
        if not pictures:
            return Request(messages, [], [])
        pixels, seen = zip(*pictures, strict=True)
        latents: list[Tensor]
        features: list[Tensor] = []
        if self.unread_latents is None:
            latents = list(self.autoencoder.encode(torch.stack(pixels)).cpu())
        else:
            latents = [self.unread_latents] * len(pictures)
        if self.encoder is not None:
            num_patches = self.model.vision_tower.embedder.num_patches
            features = list(reduce_tokens(self.encoder.features(torch.stack(seen)), num_patches).cpu())
        return Request(messages, latents, features)

    def _prepare(self, picture: Image.Image) -> tuple[Tensor | None, Tensor | None]:
        """Pixels for the autoencoder, and for the image encoder of a tower that reads features; None: not wanted."""
        pixels = seen = None
        if self.unread_latents is None:
            pixels = image_to_tensor(picture, self.recipe.image_size)
        if self.encoder is not None:
            own, fit = self.encoder.preprocessing, read_fit(self.encoder, self.model.vision_tower)
            seen = image_to_tensor(picture, own.image_size, fit=fit, interpolation=own.interpolation)
        return pixels, seen


@dataclass(frozen=True)
class Request:
    """Messages with indices of images, and those images' clean latents [C, h, w]; for a tower that reads features
    [n, F], these (and latents that say nothing, where it reads features alone)."""

    messages: tuple[Message, ...]
    latents: list[Tensor]
    features: list[Tensor]


def _repeat_target(prompt: Stream, times: int) -> Stream:
    """The image to be drawn at the end of a prompt, several times at the same place."""
    target = prompt.spans[-1]
    assert isinstance(target, ImageSpan)
    return Stream((*prompt.spans, *[replace(target, is_copy=True)] * (times - 1)))

"""A VPiT morph at work: conversations in, text and images out; the model itself decides when it draws."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor

from diptych.backbones.language import LanguageModel
from diptych.config import Recipe
from diptych.data.images import tensor_to_image
from diptych.data.samples import Message
from diptych.data.tokenize import build_prompt, drop_text
from diptych.models.conversation import (
    Ability,
    Conversation,
    Part,
    check_options,
    parse_conversation,
)
from diptych.models.interleaved_decoding import decode_interleaved
from diptych.models.token_choice import conversation_seeds, stop_ids
from diptych.models.vpit import VPiT, shown_tokens
from diptych.nn.connector import reduce_tokens
from diptych.sequence import Sequence as Stream
from diptych.settings import check_guidance

LanguageState = Literal["base", "lora", "whole"]
"""What of the language model differs from the base: nothing, adapters beside it, or all of it."""


class VPiTMorph:
    """Language model, connector, visual head; the image encoder; a pixel decoder, where it has one. By `load_morph`."""

    def __init__(
        self,
        *,
        model: VPiT,
        language: LanguageModel,
        encoder: Any,
        recipe: Recipe,
        language_state: LanguageState,
        pixel_decoder: Any = None,
        cache_dir: Path | None = None,
    ) -> None:
        self.model = model
        self.language = language
        self.encoder = encoder
        self.recipe = recipe
        self.language_state: LanguageState = language_state
        self.pixel_decoder = pixel_decoder
        self.cache_dir = cache_dir

    @property
    def language_model(self) -> Any:
        """The Hugging Face model, as trained."""
        return self.model.language_model

    @property
    def device(self) -> torch.device:
        return next(self.model.connector.parameters()).device

    @property
    def tokenizer(self) -> Any:
        """The language model's, with the two boundary tokens."""
        return self.language.tokenizer

    @property
    def abilities(self) -> frozenset[Ability]:
        """Pixels come of a pixel decoder, where it has one."""
        return frozenset({"reads", "writes"} if self.pixel_decoder is None else {"reads", "writes", *DECODED})

    def frozen_hashes(self) -> dict[str, str]:
        return {"language_model": self.language.hash, "image_encoder": self.encoder.hash}

    def text_logits(self, input_ids: Tensor) -> Tensor:
        """Logits [B, T, vocabulary] of text alone, from the language model as trained."""
        with torch.no_grad():
            return self.language_model(input_ids=input_ids.to(self.device)).logits

    def generate(self, messages: Conversation, **options: Any) -> list[Part]:
        """Answers one conversation; options as in `generate_batch`."""
        return self.generate_batch([messages], **options)[0]

    def generate_batch(
        self,
        conversations: Sequence[Conversation],
        *,
        num_images: int = 1,
        guidance_scale: float | None = None,
        num_inference_steps: int | None = None,
        sampler: str | None = None,
        seed: int | Sequence[int] = 0,
        **options: Any,
    ) -> list[list[Part]]:
        """Answers conversations in batches: a list of text and image parts for each.

        num_images: pictures of each image that is answered, which differ in the pixel decoder's noise alone. The next
        four are the pixel decoder's; seed: of all conversations, or one for each; the noise of picture k of image i of
        a conversation derives from (seed + k, i) alone. `options` are those of `answer`. Raises ValueError for options
        out of range, and for an image without a pixel decoder.
        """
        check_options(num_images=num_images, num_inference_steps=num_inference_steps)
        if options.get("generation_mode") == "image" and self.pixel_decoder is None:
            raise ValueError(NO_PIXEL_DECODER)
        if options.pop("image_guidance_scale", 1.0) != 1.0:
            raise ValueError("VPiT has no image guidance: its images are predicted, not guided towards those given")
        if options.pop("negative_prompt", ""):
            raise ValueError("VPiT has no negative prompt: its images are predicted, not guided away from a text")
        seeds = conversation_seeds(seed, len(conversations))
        made = self.answer(conversations, seed=seeds, **options)
        numbered = [
            (own, *part)
            for own, answer in zip(seeds, made, strict=True)
            for part in enumerate(piece for piece in answer if isinstance(piece, Tensor))
        ]
        numbers, images = [number for _, number, _ in numbered], [image for *_, image in numbered]
        if images and self.pixel_decoder is None:
            said = " ".join(part for answer in made for part in answer if isinstance(part, str))
            raise ValueError(NO_PIXEL_DECODER + (f" (it said: {said})" if said else ""))
        pictures: list[list[Any]] = [[] for _ in images]
        for k in range(num_images if images else 0):
            drawn = self.pixel_decoder.decode(
                torch.stack(images),
                numbers=numbers,
                guidance_scale=guidance_scale,
                num_inference_steps=num_inference_steps,
                sampler=sampler,
                seed=[own + k for own, *_ in numbered],
            )
            for copies, picture in zip(pictures, drawn, strict=True):
                copies.append(tensor_to_image(picture))
        left = iter(pictures)
        return [
            [part for piece in answer for part in (next(left) if isinstance(piece, Tensor) else [piece])]
            for answer in made
        ]

    @torch.no_grad()
    def answer(
        self,
        conversations: Sequence[Conversation],
        *,
        generation_mode: Literal["auto", "text", "image"] = "auto",
        visual_guidance_scale: float = 1.0,
        max_new_tokens: int = 64,
        do_sample: bool = False,
        temperature: float = 1.0,
        top_p: float = 1.0,
        seed: int | Sequence[int] = 0,
        max_batch_size: int = 64,
    ) -> list[list[str | Tensor]]:
        """Answers as text and visual tokens [n, F], without pixels.

        generation_mode: in auto the text head decides when an image starts; image answers with one image at once.
        visual_guidance_scale: classifier-free guidance in feature space; needs vpit.text_cond_dropout_prob in training.
        seed: of sampled text, of all conversations or one for each. Raises ValueError for options out of range.
        """
        check_options(
            generation_mode=generation_mode, max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p
        )
        is_trained = self.recipe.vpit.text_cond_dropout_prob > 0
        check_guidance(
            "visual_guidance_scale",
            visual_guidance_scale,
            is_trained=is_trained,
            needs="vpit.text_cond_dropout_prob",
        )
        own = self.encoder.preprocessing
        parsed = [
            parse_conversation(c, image_size=own.image_size, fit=own.fit, interpolation=own.interpolation)
            for c in conversations
        ]
        seeds = conversation_seeds(seed, len(parsed))
        answers: list[list[str | Tensor]] = []
        for start in range(0, len(parsed), max_batch_size):
            chunk = [
                (messages, self._inputs(messages, self.visual_tokens(pixels)))
                for messages, pixels in parsed[start : start + max_batch_size]
            ]
            guided = visual_guidance_scale != 1.0
            decoded = decode_interleaved(
                self.model,
                [self._prompt(messages, tokens) for messages, tokens in chunk],
                unconditional=[self._prompt(drop_text(m), tokens) for m, tokens in chunk] if guided else (),
                visual_guidance_scale=visual_guidance_scale,
                visual_input_dropout=self.recipe.vpit.visual_input_dropout,
                stops=stop_ids(self.language_model, self.tokenizer),
                max_new_tokens=max_new_tokens,
                generation_mode=generation_mode,
                do_sample=do_sample,
                temperature=temperature,
                top_p=top_p,
                seed=seeds[start : start + max_batch_size],
            )
            answers += [[self._readable(piece) for piece in pieces] for pieces in decoded]
        return answers

    @torch.no_grad()
    def visual_tokens(self, images: Sequence[Tensor]) -> list[Tensor]:
        """Visual tokens [n, F] of images [3, S, S] in -1..1."""
        if not images:
            return []
        features = self.encoder.features(torch.stack(list(images)))
        return list(reduce_tokens(features, self.recipe.vpit.num_image_tokens))

    def reconstruct(self, images: Sequence[Image.Image], **sampling: Any) -> list[Image.Image]:
        """Images through their visual tokens and back, without the language model. `sampling`: options of
        `PixelDecoder.decode`. Raises ValueError without a pixel decoder."""
        if self.pixel_decoder is None:
            raise ValueError(NO_PIXEL_DECODER)
        return self.pixel_decoder.reconstruct(images, encoder=self.encoder, **sampling)

    def _inputs(self, messages: tuple[Message, ...], tokens: list[Tensor]) -> list[Tensor]:
        """Visual tokens of a conversation's images as training showed them: some of what was drawn is hidden."""
        config = self.recipe.vpit
        drawn = {p for message in messages if message.role == "assistant" for p in message.parts if isinstance(p, int)}
        shown = shown_tokens(config.num_image_tokens, config.visual_input_dropout)[:, None]
        return [own * shown.to(own.device) if index in drawn else own for index, own in enumerate(tokens)]

    def _prompt(self, messages: tuple[Message, ...], tokens: list[Tensor]) -> Stream:
        return build_prompt(
            messages,
            tokens,
            tokenizer=self.tokenizer,
            template=self.recipe.template,
            num_image_tokens=self.recipe.vpit.num_image_tokens,
            boundary_ids=self.model.boundary_tokens.token_ids,
        )

    def _readable(self, piece: list[int] | Tensor) -> str | Tensor:
        if isinstance(piece, Tensor):
            return piece
        return self.tokenizer.decode(piece, skip_special_tokens=True).strip()


DECODED: tuple[Ability, ...] = ("draws", "reconstructs")
"""Abilities that come with a pixel decoder."""
NO_PIXEL_DECODER = (
    "this morph has no pixel decoder, so its visual tokens cannot be drawn; train one "
    "(diptych train recipes/emoji-pixel-decoder.yaml) and name its folder with vpit.pixel_decoder"
)

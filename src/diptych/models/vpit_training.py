"""VPiT as the train loop sees it: cross-entropy on text, cosine on visual tokens (MetaMorph, losses)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from diptych.config import Recipe
from diptych.data.contact_sheet import draw_image_grid
from diptych.data.packing import Pick
from diptych.data.samples import Sample
from diptych.data.sources import naming_sample
from diptych.data.tokenize import build_sequence
from diptych.models.encoded_images import image_features
from diptych.models.frozen_layers import FormKey, FrozenLayers
from diptych.models.interleaved_decoding import decode_interleaved
from diptych.models.method import LossSum
from diptych.models.training_sources import (
    NO_IMAGE,
    TrainingSources,
    kept_lengths,
    kept_streams,
    some_usable,
    usable,
)
from diptych.models.vpit import Rows, Supervision, VPiT, build_rows, context_length, find_supervision, shown_tokens
from diptych.models.vpit_building import NUM_EMBEDDINGS, trained_parameters
from diptych.models.vpit_checkpoint import save_vpit
from diptych.models.vpit_morph import VPiTMorph
from diptych.nn.boundary_tokens import embedded_rows
from diptych.nn.chunked_loss import chunked_cross_entropy
from diptych.nn.connector import noised_tokens
from diptych.nn.linear_head_loss import linear_head_cross_entropy
from diptych.nn.row_attention import longest_by_rows
from diptych.nn.visual_losses import visual_loss
from diptych.sequence import Batch, ImageSpan, pack
from diptych.sequence import Sequence as Stream
from diptych.settings import VPiTConfig

NUM_MEASURED = 32
NUM_STATISTICS = 256
"""Images that a new connector's start is taken from, at most."""


@dataclass(frozen=True)
class VPiTBatch:
    """A packed batch; `inputs` [I, n, F] are its images as the model is shown them: targets may be hidden or noised.
    `keys`: of each sample's form, for what is kept of it."""

    batch: Batch
    rows: Rows
    supervision: Supervision
    inputs: Tensor
    keys: tuple[FormKey, ...] = ()

    @property
    def features(self) -> Tensor | None:
        """`inputs`, or None where there are no images."""
        return self.inputs if self.inputs.numel() else None

    def to(self, device: torch.device | str) -> VPiTBatch:
        moved = {name: value.to(device) for name, value in vars(self).items() if name != "keys"}
        return replace(self, **moved)


class VPiTTraining(nn.Module):
    """Trains what `vpit.train_parts` names. Implements `Method`."""

    def __init__(self, recipe: Recipe, morph: VPiTMorph) -> None:
        super().__init__()
        self.recipe = recipe
        self.morph = morph
        self.model = morph.model
        self.loss_weights = {"ce": recipe.vpit.ce_weight, "visual": recipe.vpit.visual_weight}
        self.data = TrainingSources(recipe, cache_dir=morph.cache_dir)
        self.sources = self.data.samples
        self.features = image_features(morph.encoder, recipe.vpit.num_image_tokens, cache_dir=morph.cache_dir)
        self.data.encode_with(self.features)
        self._streams, self._lengths = kept_streams(), kept_lengths()
        self.longest_by_rows = longest_by_rows(self.model.decoder)
        self._trained = trained_parameters(self.model, recipe)
        self.train()
        if not any(name.startswith("language_model.") for name in self._trained):
            self.model.language_model.eval()
        if recipe.train.gradient_checkpointing:
            checkpoint_gradients(self.model.language_model)
        if recipe.vpit.init_from is None:
            self._standardise()
        self.frozen_layers = (
            FrozenLayers(self.model, recipe.vpit.first_trained_layer) if recipe.vpit.cached_forms else None
        )

    def num_samples(self) -> tuple[int, ...]:
        return self.data.num_samples()

    def build_batch(self, picks: Sequence[tuple[int, int, int]], *, seed: int) -> VPiTBatch:
        streams, inputs, keys = [], [], []
        self.data.prepare(picks)
        for pick in picks:
            generator, without_text, key = self._form(pick, seed)
            if key is not None:
                keys.append(key)
            streams.append(replace(stream := self._stream(*pick[1:], without_text), draw=pick[0]))
            inputs += [self._shown(span.image, generator) if span.is_target else span.image for span in stream.images]
        batch = pack(streams, image_predicts_text=True)
        supervision = find_supervision(batch, self.model.boundary_tokens.token_ids[0])
        return VPiTBatch(
            batch,
            build_rows(batch, longest_by_rows=self.longest_by_rows),
            supervision,
            torch.stack(inputs) if inputs else torch.zeros(0),
            tuple(keys),
        )

    def num_tokens(self, pick: Pick, *, seed: int) -> int:
        _, without_text, _ = self._form(pick, seed)
        made = (*pick[1:], without_text)
        return self._lengths.get_or_make(made, lambda: len(self._build_stream(*made, lambda _: NO_IMAGE)))

    def _form(self, pick: Pick, seed: int) -> tuple[torch.Generator, bool, FormKey | None]:
        """Whether a pick's sample is without its text, and the randomness that comes after that; with cached forms,
        which of them it is: then all follows from it."""
        draw, source, index = pick
        generator = torch.Generator().manual_seed((seed * 1_000_003 + draw) % 2**63)
        key = None
        if num_forms := self.recipe.vpit.cached_forms:
            form = int(torch.randint(num_forms, (), generator=generator))
            key = (source, index, form)
            generator.manual_seed((((seed * 1_009 + source) * 1_000_003 + index) * 1_009 + form) % 2**63)
        dropped = torch.rand((), generator=generator).item() < self.recipe.vpit.text_cond_dropout_prob
        return generator, dropped and is_drawing(self.data.samples[source][index]), key

    def _standardise(self) -> None:
        """Starts connector and visual head from the statistics of some of the images that can be read. Raises
        ValueError if there are images, and none can."""
        paths = self.data.some_images(NUM_STATISTICS)
        if not paths:
            return
        device = self.model.boundary_tokens.input.device
        seen = some_usable(paths[:: 1 + len(paths) // NUM_STATISTICS], self.features.load)
        features = torch.cat([own for _, own in seen]).to(device)
        embedding = self.model.language_model.get_input_embeddings()
        embeddings = embedded_rows(embedding, step=1 + len(embedding.weight) // NUM_EMBEDDINGS)
        self.model.connector.standardise(features, embeddings)
        self.model.visual_head.start_at(features)

    def _shown(self, target: Tensor, generator: torch.Generator) -> Tensor:
        """A target's visual tokens [n, F] as inputs: noised, then some of them hidden (zeros)."""
        config = self.recipe.vpit
        if config.visual_input_noise:
            target = noised_tokens(target, config.visual_input_noise, generator)
        if config.visual_input_dropout:
            target = target * shown_tokens(len(target), config.visual_input_dropout, generator)[:, None]
        return target

    def loss_counts(self, batch: VPiTBatch) -> dict[str, float]:
        return loss_counts(batch)

    def forward(self, batch: VPiTBatch) -> dict[str, LossSum]:
        states = None
        if self.frozen_layers is not None:
            states = self.frozen_layers.final_states(batch.batch, batch.rows, batch.features, batch.keys)
        return vpit_losses(self.model, batch, self.recipe.vpit, states=states)

    def trainable_parameters(self) -> dict[str, nn.Parameter]:
        return self._trained

    def shard_modules(self) -> Iterable[nn.Module]:
        return list(getattr(self.model.decoder, "layers", ()))

    def frozen_hashes(self) -> dict[str, str]:
        return self.morph.frozen_hashes()

    def sample_grid(self, *, seed: int) -> Image.Image | None:
        prompts = self.recipe.sample.prompts
        if not prompts or self.morph.pixel_decoder is None:
            return None
        conversations: list[Any] = [[{"role": "user", "content": prompt}] for prompt in prompts]
        answers = self.morph.generate_batch(conversations, generation_mode="image", seed=seed)
        pictures: list[Any] = [answer[0] for answer in answers]
        return draw_image_grid(pictures, list(prompts), columns=min(8, len(prompts)))

    def measure(self, *, seed: int) -> dict[str, float]:
        """`free_running_cosine`: generated visual tokens against the real ones, of the first image that is a target in
        some of the training samples, after all that stands before it. Samples that training skips are left out."""
        del seed
        looked_at = [(source, k) for source in range(len(self.sources)) for k in self.data.spread(source, NUM_MEASURED)]
        cuts, _ = usable(looked_at, lambda place: before_first_target(self._stream(*place, False)))
        drawings = [cut for _, cut in cuts if cut is not None][:NUM_MEASURED]
        if not drawings:
            return {}
        answers = decode_interleaved(
            self.model,
            [prompt for prompt, _ in drawings],
            stops=set(),
            max_new_tokens=1,
            generation_mode="image",
            visual_input_dropout=self.recipe.vpit.visual_input_dropout,
        )
        made = torch.stack([piece for pieces in answers for piece in pieces if isinstance(piece, Tensor)]).cpu()
        real = torch.stack([image for _, image in drawings])
        return {"free_running_cosine": float((made * real).sum(-1).mean())}

    def save_pretrained(self, folder: str, *, weights: dict[str, Tensor] | None = None) -> None:
        save_vpit(folder, self.morph, weights=weights)
        self.flush()

    def encode(self, picks: Sequence[Pick]) -> None:
        self.data.prepare(picks)

    def flush(self) -> None:
        self.data.flush()

    def _stream(self, source: int, index: int, unconditional: bool) -> Stream:
        key = (source, index, unconditional)
        return self._streams.get_or_make(key, lambda: self._build_stream(*key, self.features.load))

    def _build_stream(
        self, source: int, index: int, unconditional: bool, load_image: Callable[[str], Tensor]
    ) -> Stream:
        with naming_sample(self.sources[source], index) as sample:
            stream = build_sequence(
                sample,
                tokenizer=self.morph.tokenizer,
                template=self.recipe.template,
                load_image=load_image,
                num_image_tokens=self.recipe.vpit.num_image_tokens,
                unconditional=unconditional,
                max_length=self.recipe.data.max_length,
                boundary_ids=self.model.boundary_tokens.token_ids,
            )
            context = context_length(self.model.language_model)
            if context is not None and len(stream) > context:
                raise ValueError(
                    f"this sample has {len(stream)} tokens, more than the language model's context of {context}; "
                    "shorten it or lower vpit.num_image_tokens"
                )
        return stream


def checkpoint_gradients(language_model: Any) -> None:
    """Recomputes activations in the backward pass, of a frozen language model too: Hugging Face does so in training
    mode alone, so its layers are put there, and what draws at random stays out."""
    frozen = not language_model.training
    language_model.activation_checkpointing_enable({"use_reentrant": False})
    if frozen:
        language_model.train()
        for module in language_model.modules():
            if isinstance(module, nn.Dropout):
                module.eval()


def loss_counts(batch: VPiTBatch) -> dict[str, float]:
    return {"ce": float(batch.supervision.text.numel()), "visual": float(batch.supervision.visual.numel())}


def vpit_losses(
    model: VPiT, batch: VPiTBatch, config: VPiTConfig, *, states: Tensor | None = None
) -> dict[str, LossSum]:
    """Cross-entropy over supervised text, `config.visual_loss` over target visual tokens, each from the state before.

    The LM head is applied where text is supervised and nowhere else. `states` [N, D]: final states, if they are known.
    """
    supervision, counts = batch.supervision, loss_counts(batch)
    if states is None:
        states = model.states(batch.batch, batch.rows, batch.features)
    ce = text_loss(model, states[supervision.text], supervision.labels)
    visual = torch.zeros((), device=states.device)
    if supervision.visual.numel():
        visual = visual_loss(
            model.visual_head(states[supervision.visual]),
            batch.batch.images[supervision.target_images].flatten(0, 1),
            kind=config.visual_loss,
            temperature=config.visual_temperature,
        )
    return {"ce": LossSum(ce, counts["ce"]), "visual": LossSum(visual, counts["visual"])}


def text_loss(model: VPiT, states: Tensor, labels: Tensor) -> Tensor:
    """The sum of the cross-entropy of states [N, D] to labels [N], without all logits at once."""
    head, boundary = model.language_model.get_output_embeddings(), model.boundary_tokens
    if type(head) is nn.Linear and model.logit_cap is None and (model.logit_scale == 1.0 or head.bias is None):
        states = states * model.logit_scale
        return linear_head_cross_entropy(states, labels, head.weight, head.bias, boundary.head_rows, boundary.token_ids)
    return chunked_cross_entropy(states, labels, model.text_logits, [*head.parameters(), *boundary.parameters()])


def before_first_target(stream: Stream) -> tuple[Stream, Tensor] | None:
    """What stands before the first target image and its boundary token, and the image [n, F]; None: it has none, or
    stands before all else."""
    for place, span in enumerate(stream.spans):
        if isinstance(span, ImageSpan) and span.is_target:
            before = Stream(stream.spans[: place - 1])
            return (before, span.image) if len(before) else None
    return None


def is_drawing(sample: Sample) -> bool:
    """One request in text alone (and system turns), answered with one image to draw, whatever is said around it."""
    roles = [message.role for message in sample.messages if message.role != "system"]
    if roles != ["user", "assistant"]:
        return False
    request = [part for message in sample.messages[:-1] for part in message.parts]
    return all(isinstance(part, str) for part in request) and len(sample.images) == len(sample.target_images()) == 1

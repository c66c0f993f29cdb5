"""Laws of VPiT training: exactly what the recipe names is trained, and losses are what MetaMorph says."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from diptych.data.images import image_to_tensor, open_image
from diptych.data_settings import DataConfig
from diptych.models.encoded_images import image_features
from diptych.models.method import LossSum, Method
from diptych.models.vpit_checkpoint import build_vpit_morph
from diptych.models.vpit_training import VPiTTraining, before_first_target, is_drawing
from diptych.sequence import TextSpan
from diptych.train.loop import run_training
from tiny_vpit import NUM_TOKENS, build_encoder, build_training, build_vpit, vpit_recipe, write_emblems
from tiny_xfusion import build_language

READ, DRAW = 1, 0


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_emblems(tmp_path_factory.mktemp("emblems"))


def training(data: Path, **settings: Any) -> VPiTTraining:
    return build_training(vpit_recipe("nowhere", data, **settings))


def total(losses: dict[str, LossSum]) -> Tensor:
    return torch.stack([loss.total for loss in losses.values()]).sum()


def test_it_is_a_method(data: Path) -> None:
    assert isinstance(training(data), Method)


@pytest.mark.parametrize(
    ("parts", "prefixes"),
    [
        (("connector", "boundary_tokens"), {"connector", "boundary_tokens"}),
        (("visual_head",), {"visual_head"}),
        (
            ("connector", "visual_head", "boundary_tokens", "language_model"),
            {"connector", "visual_head", "boundary_tokens", "language_model"},
        ),
    ],
)
def test_a_stage_trains_exactly_its_parameters(data: Path, parts: tuple[str, ...], prefixes: set[str]) -> None:
    """Stage 1 is the connector and the two new embedding rows; gradients reach these and nothing else."""
    method = training(data, vpit={"train_parts": parts})
    trained = method.trainable_parameters()
    assert {name.split(".")[0] for name in trained} == prefixes
    everything = dict(method.model.named_parameters())
    assert set(trained) == {name for name in everything if name.split(".")[0] in prefixes}
    batch = method.build_batch([(0, DRAW, 0), (1, READ, 1)], seed=0)
    total(method(batch)).backward()
    with_gradient = {name for name, parameter in everything.items() if parameter.grad is not None}
    assert with_gradient == set(trained)
    assert all(p.grad is not None and bool(torch.isfinite(p.grad).all()) for p in trained.values())


@pytest.mark.parametrize("tied", [False, True])
def test_the_boundary_tokens_embeddings_can_learn_without_the_lm_head(data: Path, tied: bool) -> None:
    """MetaMorph's stage 1: of an LM head of its own no row learns. Where one matrix is both, its rows do."""
    recipe = vpit_recipe("nowhere", data, vpit={"train_parts": ["connector", "boundary_embeddings"]})
    language = build_language("llama", tie_word_embeddings=tied)
    method = VPiTTraining(recipe, build_vpit_morph(recipe, language=language, encoder=build_encoder(), cached=False))
    assert (method.model.boundary_tokens.output is None) == tied
    trained = method.trainable_parameters()
    assert {name for name in trained if not name.startswith("connector.")} == {"boundary_tokens.input"}
    total(method(method.build_batch([(0, DRAW, 0), (1, READ, 1)], seed=0))).backward()
    assert {name for name, p in method.model.named_parameters() if p.grad is not None} == set(trained)
    assert all(bool(p.grad.any()) for name, p in trained.items() if p.grad is not None and "boundary" in name)


def test_parts_that_contradict_each_other_are_refused(data: Path) -> None:
    with pytest.raises(ValueError, match=r"those of the embedding alone\); leave one out"):
        vpit_recipe("nowhere", data, vpit={"train_parts": ["boundary_tokens", "boundary_embeddings"]})
    late = {"first_trained_layer": 1, "cached_forms": 1, "train_parts": ["boundary_embeddings", "language_model"]}
    with pytest.raises(ValueError, match=r"name boundary_tokens .* in place of boundary_embeddings"):
        vpit_recipe("nowhere", data, vpit=late)


def test_early_layers_and_the_embedding_stay_as_they_are(data: Path) -> None:
    method = training(data, vpit={"first_trained_layer": 2})
    own = {name for name in method.trainable_parameters() if name.startswith("language_model.")}
    assert own
    assert not [name for name in own if "embed" in name or ".layers.0." in name or ".layers.1." in name]
    assert any(".layers.2." in name for name in own)
    assert any(name.endswith("model.norm.weight") for name in own)
    before = {name: p.clone() for name, p in method.model.language_model.named_parameters()}
    total(method(method.build_batch([(0, DRAW, 0), (1, READ, 1)], seed=0))).backward()
    gradients = {name for name, p in method.model.named_parameters() if p.grad is not None}
    assert gradients == set(method.trainable_parameters()), "and gradients pass through them to the connector"
    assert all(torch.equal(p, before[name]) for name, p in method.model.language_model.named_parameters())
    with pytest.raises(ValueError, match="the language model has 3 layers"):
        training(data, vpit={"first_trained_layer": 3})
    with pytest.raises(ValueError, match=r"no vpit.lora"):
        vpit_recipe("nowhere", data, vpit={"first_trained_layer": 1, "lora": {}})


def test_lora_trains_adapters_in_place_of_the_language_model(data: Path) -> None:
    method = training(data, vpit={"lora": {"r": 2}})
    own = [name for name in method.trainable_parameters() if name.startswith("language_model.")]
    assert own
    assert all(".lora_" in name for name in own)
    assert not [name for name in own if "embed" in name or "lm_head" in name]


def test_lora_starts_as_the_language_model(data: Path) -> None:
    plain, adapted = training(data), training(data, vpit={"lora": {"r": 2}})
    picks = [(0, DRAW, 0), (1, READ, 1)]
    for method in (plain, adapted):
        method.eval()
    a, b = (method(method.build_batch(picks, seed=0)) for method in (plain, adapted))
    for name in a:
        torch.testing.assert_close(a[name].total, b[name].total)


def test_losses_are_the_literal_ones(data: Path) -> None:
    method = training(data)
    method.eval()
    batch = method.build_batch([(0, DRAW, 0), (1, READ, 1), (2, READ, 0)], seed=0)
    states = method.model.states(batch.batch, batch.rows, batch.inputs)
    logits = method.model.text_logits(states)
    losses = method(batch)
    found = batch.supervision
    expected = cross_entropy(logits[found.text], found.labels, reduction="sum")
    torch.testing.assert_close(losses["ce"].total, expected)
    target = batch.batch.images[found.target_images].flatten(0, 1)
    cosine = (method.model.visual_head(states[found.visual]) * target).sum(-1)
    torch.testing.assert_close(losses["visual"].total, (1 - cosine).sum())
    assert losses["visual"].count == NUM_TOKENS
    assert losses["ce"].count == len(found.labels)
    assert {name: loss.count for name, loss in losses.items()} == method.loss_counts(batch)


def test_the_prompt_is_masked_and_both_boundary_tokens_are_learnt(data: Path) -> None:
    method = training(data)
    start, end = method.model.boundary_tokens.token_ids
    tokenizer = method.morph.tokenizer
    stop = tokenizer.convert_tokens_to_ids("<|im_end|>")
    drawing = method.build_batch([(0, DRAW, 2)], seed=0)
    assert drawing.supervision.labels.tolist() == [start, end, stop]
    reading = method.build_batch([(0, READ, 2)], seed=0).supervision.labels.tolist()
    assert tokenizer.decode(reading) == "number 2<|im_end|>"


def test_a_batch_without_a_target_image_has_no_visual_loss_and_finite_gradients(data: Path) -> None:
    method = training(data)
    losses = method(method.build_batch([(0, READ, 0), (1, READ, 2)], seed=0))
    assert (float(losses["visual"].total), losses["visual"].count) == (0.0, 0.0)
    total(losses).backward()
    gradients = [p.grad for p in method.trainable_parameters().values() if p.grad is not None]
    assert gradients
    assert all(bool(torch.isfinite(gradient).all()) for gradient in gradients)


def test_hidden_and_noised_inputs_leave_targets_and_context_alone(data: Path) -> None:
    method = training(data, vpit={"visual_input_dropout": 0.5, "visual_input_noise": 0.5})
    batch = method.build_batch([(draw, source, draw % 4) for draw, source in enumerate([DRAW, READ] * 8)], seed=0)
    real = batch.batch.images
    assert torch.allclose(real.norm(dim=-1), torch.ones(()))
    context = ~batch.batch.image_is_target
    assert torch.equal(batch.inputs[context], real[context])
    shown = batch.inputs[batch.batch.image_is_target]
    hidden = shown.norm(dim=-1) == 0
    assert 0.2 < float(hidden.float().mean()) < 0.8
    cosine = (shown * real[batch.batch.image_is_target]).sum(-1)[~hidden]
    assert bool((cosine < 0.999).all())
    again = method.build_batch([(draw, source, draw % 4) for draw, source in enumerate([DRAW, READ] * 8)], seed=0)
    assert torch.equal(again.inputs, batch.inputs)


def test_without_its_text_a_drawing_keeps_its_image(data: Path) -> None:
    method = training(data, vpit={"text_cond_dropout_prob": 1.0})
    plain = training(data)
    for one, draws in ((DRAW, True), (READ, False)):
        a, b = (m.build_batch([(0, one, 1)], seed=0).batch for m in (plain, method))
        assert (len(b.token_ids) < len(a.token_ids)) == draws
        assert torch.equal(a.images, b.images)


@pytest.mark.parametrize("settings", [{}, {"gradient_checkpointing": True}])
def test_it_learns_to_draw_and_to_read(data: Path, tmp_path: Path, settings: dict[str, Any]) -> None:
    """Four images, a minute of nothing: free-running visual tokens come near the real ones, names are exact."""
    recipe = vpit_recipe(
        tmp_path / "run",
        data,
        train={"max_steps": 80, "per_device_train_batch_size": 8, "sample_every": 80, "logging_steps": 20, **settings},
    )
    method = build_training(recipe)
    before = method.eval().measure(seed=0)["free_running_cosine"]
    method.train()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run_training(recipe, method)
    after = method.eval().measure(seed=0)["free_running_cosine"]
    assert before < 0.8, "the mean of all images, from the start"
    assert after > 0.9
    images = [method.sources[READ][k].images[0] for k in range(4)]
    questions: list[Any] = [[{"role": "user", "content": [image, "\nWhat?"]}] for image in images]
    answers = method.morph.generate_batch(questions, generation_mode="text", max_new_tokens=12)
    assert [answer[0] for answer in answers] == [f"number {k}" for k in range(4)]
    log = (tmp_path / "run" / "log.jsonl").read_text()
    assert "free_running_cosine" in log


@pytest.mark.parametrize("parts", [("connector", "boundary_tokens"), ("connector", "language_model")])
def test_activations_are_recomputed_whether_the_language_model_is_trained_or_not(
    data: Path, parts: tuple[str, ...]
) -> None:
    """Its layers run again in the backward pass, with the same gradients."""
    gradients, forwards = [], []
    for checkpointed in (False, True):
        recipe = vpit_recipe(
            data=data, vpit={"train_parts": list(parts)}, train={"gradient_checkpointing": checkpointed}
        )
        method = build_training(recipe)
        counted: list[int] = []
        method.model.decoder.layers[0].mlp.register_forward_pre_hook(lambda *_, counted=counted: counted.append(1))
        losses = method(method.build_batch([(0, 0, 0), (1, 1, 1)], seed=0))
        torch.stack([loss.total for loss in losses.values()]).sum().backward()
        gradients.append({name: p.grad for name, p in method.trainable_parameters().items()})
        forwards.append(len(counted))
    assert forwards == [1, 2]
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient)


def test_a_sample_longer_than_the_context_is_refused_by_name(data: Path) -> None:
    method = build_training(vpit_recipe(data=data))
    method.model.language_model.config.max_position_embeddings = 12
    with pytest.raises(ValueError, match=r"draw\.jsonl.* more than the language model's context of 12"):
        method.build_batch([(0, 0, 0)], seed=0)


def training_on(path: Path) -> VPiTTraining:
    sources = DataConfig.model_validate({"sources": [{"path": str(path)}]})
    return build_training(vpit_recipe().model_copy(update={"data": sources}))


def write_lines(path: Path, *answers: list[dict[str, str]]) -> Path:
    path.write_text("".join(json.dumps({"messages": turns, "images": ["0.png"]}) + "\n" for turns in answers))
    return path


def test_free_running_similarity_is_measured_wherever_an_image_is_drawn(data: Path) -> None:
    """Behind a lead-in, behind a system turn, as an edit; each after exactly what stands before it in training."""
    asked, lead_in = {"role": "user", "content": "Draw it."}, {"role": "assistant", "content": "Here: <image>"}
    path = write_lines(
        data / "lead_in.jsonl", [asked, lead_in], [{"role": "system", "content": "Be brief."}, asked, lead_in]
    )
    method = training_on(path)
    measured = method.measure(seed=0)
    assert -1 <= measured["free_running_cosine"] <= 1
    stream = method._stream(0, 0, False)
    cut = before_first_target(stream)
    assert cut is not None
    prompt, image = cut
    start = method.model.boundary_tokens.token_ids[0]
    assert torch.equal(image, method.features.load(method.sources[0][0].images[0]))
    assert stream.spans[: len(prompt.spans)] == prompt.spans
    following = stream.spans[len(prompt.spans)]
    assert isinstance(following, TextSpan)
    assert following.token_ids == (start,)
    assert is_drawing(method.sources[0][0])
    assert is_drawing(method.sources[0][1])


def test_text_that_spells_a_boundary_token_is_refused(data: Path) -> None:
    turns = [{"role": "user", "content": "What is <image_start>?"}, {"role": "assistant", "content": "<image>"}]
    path = write_lines(data / "spelt.jsonl", turns)
    method = training_on(path)
    with pytest.raises(ValueError, match=r"spelt\.jsonl.* spells a boundary token"):
        method.build_batch([(0, 0, 0)], seed=0)


def test_features_that_are_no_numbers_name_their_file(data: Path) -> None:
    morph = build_vpit()
    encode = morph.encoder.features
    morph.encoder.features = lambda images: encode(images).masked_fill((images[:, :1, 0, 0] > 0)[..., None], torch.nan)
    bright = [path for path in sorted(data.glob("*.png")) if float(image_to_tensor(open_image(path), 32)[0, 0, 0]) > 0]
    features = image_features(morph.encoder, NUM_TOKENS, cache_dir=None)
    with pytest.raises(ValueError, match=rf"{bright[0]}: .* not finite"):
        features.prepare(str(path) for path in data.glob("*.png"))

"""Laws of a tower that reads images as an encoder's features, and of one that draws pixels."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from diptych.backbones.autoencoder import PixelSpace, load_image_space
from diptych.models import checkpoint, conversation, xfusion_training
from diptych.models.checkpoint import build_morph, load_morph, save_morph
from diptych.models.generate import Morph
from diptych.models.xfusion_training import XFusionTraining
from diptych.settings import ImageInputConfig
from diptych.tower_settings import VisionTowerConfig
from tiny_vpit import build_encoder
from tiny_xfusion import FakeAutoencoder, build_language, tiny_recipe

COLOURS = ("red", "green", "blue")
TOWERS: list[dict[str, Any]] = [
    {},
    {"boundary_tokens": False},
    *({"layer_design": name} for name in ("gated", "projection", "single")),
    {"x_fuse": "both"},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("features")
    draw, read, edit = [], [], []
    for number, name in enumerate(COLOURS):
        torch.manual_seed(number)
        pixels = (torch.rand(4, 4, 3) * 255).byte().numpy()
        Image.fromarray(pixels).resize((16, 16), Image.Resampling.NEAREST).save(folder / f"{name}.png")
        draw.append([f"Draw {name}.", "<image>", [f"{name}.png"]])
        read.append(["<image>\nWhat?", name, [f"{name}.png"]])
        edit.append(["<image>\nAnother.", "<image>", [f"{name}.png", "red.png"]])
    for file, rows in (("draw", draw), ("read", read), ("edit", edit)):
        lines = [
            json.dumps(
                {"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}], "images": images}
            )
            for q, a, images in rows
        ]
        (folder / f"{file}.jsonl").write_text("\n".join(lines) + "\n")
    network: Any = build_encoder().network
    network.network.save_pretrained(folder / "encoder")
    return folder


def build(folder: Path, *, autoencoder: Any = None, **settings: Any) -> XFusionTraining:
    recipe = tiny_recipe(
        data={"sources": [{"path": str(folder / f"{name}.jsonl")} for name in ("draw", "read", "edit")]},
        cache_dir=str(folder / "cache"),
        objective={"image_cond_dropout_prob": 0.1},
        **settings,
    )
    encoder = build_encoder() if recipe.image_input is not None else None
    autoencoder = autoencoder or FakeAutoencoder()
    morph = build_morph(recipe, language=build_language(), autoencoder=autoencoder, encoder=encoder, cached=False)
    training = XFusionTraining(recipe, morph)
    with torch.no_grad():
        for parameter in training.trainable_parameters().values():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return training


def with_features(folder: Path, *, with_latents: bool = False, **tower: Any) -> XFusionTraining:
    base = {"patch_size": 2, "time_conditioning": "adaln"}
    image_input = {"image_encoder": str(folder / "encoder"), "with_latents": with_latents}
    return build(folder, image_input=image_input, vision_tower=base | tower)


@pytest.mark.parametrize("tower", TOWERS, ids=str)
def test_what_is_read_are_features_and_what_is_drawn_latents(folder: Path, tower: dict[str, Any]) -> None:
    assert_reads(with_features(folder, **tower), latents=False)


@pytest.mark.parametrize("tower", TOWERS, ids=str)
def test_features_are_read_beside_latents(folder: Path, tower: dict[str, Any]) -> None:
    assert_reads(with_features(folder, with_latents=True, **tower), latents=True)


def test_the_encoder_is_asked_for_what_the_recipe_says(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []

    def load(name: str, **wanted: Any) -> Any:
        asked.append({"image_encoder": name, **wanted})
        return build_encoder()

    for module in (checkpoint, xfusion_training):
        monkeypatch.setattr(module, "load_image_encoder", load)
    name = str(folder / "encoder")
    read = {"image_encoder": name, "encoder_layer": 0, "encoder_image_size": 8}
    aligned = {"image_encoder": name, "layer": 1, "encoder_layer": -1, "encoder_image_size": 16}
    recipe = tiny_recipe(
        data={"sources": [{"path": str(folder / "draw.jsonl")}]},
        vision_tower={"patch_size": 2},
        image_input=read,
        alignment=aligned,
    )
    parts: dict[str, Any] = {"language": build_language(), "autoencoder": FakeAutoencoder()}
    XFusionTraining(recipe, build_morph(recipe, **parts, cached=False))
    assert asked == [
        {"image_encoder": name, "layer": 0, "image_size": 8},
        {"image_encoder": name, "layer": -1, "image_size": 16},
    ]


def assert_reads(training: XFusionTraining, *, latents: bool) -> None:
    """What is told of images that are read, and drawn after them, depends on their features, and on latents or not."""
    batch = training.build_batch([(0, 1, 0), (1, 2, 1), (2, 0, 2)], seed=0)
    assert len(batch.context_features) == 2
    with torch.no_grad():
        losses = training(batch)

    def changed(**changes: Any) -> tuple[float, float]:
        with torch.no_grad():
            found = training(replace(batch, **changes))
        return float(found["ce"].total - losses["ce"].total), float(found["flow"].total - losses["flow"].total)

    other = batch.batch.images.clone()
    other[~batch.batch.image_is_target] += 1
    assert [difference != 0 for difference in changed(batch=replace(batch.batch, images=other))] == [latents, latents]
    assert all(abs(difference) > 1e-6 for difference in changed(context_features=batch.context_features.flip(0)))


@pytest.mark.parametrize(
    ("with_latents", "names"),
    [(False, {"linear.weight", "linear.bias", "position", "boundary"}), (True, {"linear.weight", "linear.bias"})],
)
def test_every_new_weight_is_trained(folder: Path, with_latents: bool, names: set[str]) -> None:
    training = with_features(folder, with_latents=with_latents)
    losses = training(training.build_batch([(0, 1, 0), (1, 2, 1)], seed=0))
    (losses["ce"].total + losses["flow"].total).backward()
    gradients = {
        name: parameter.grad for name, parameter in training.trainable_parameters().items() if "feature_" in name
    }
    assert {name.rpartition("feature_embedder.")[2] for name in gradients} == names
    assert all(gradient is not None and gradient.abs().sum() > 0 for gradient in gradients.values())


@pytest.mark.parametrize("with_latents", [False, True])
def test_a_saved_morph_reads_as_before_and_checks_its_encoder(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, with_latents: bool
) -> None:
    morph = with_features(folder, with_latents=with_latents).morph
    save_morph(tmp_path / "morph", morph)
    monkeypatch.setattr("diptych.models.checkpoint.load_image_space", lambda name: FakeAutoencoder())
    monkeypatch.setattr("diptych.models.checkpoint.load_image_encoder", lambda *a, **k: build_encoder())
    loaded = load_morph(tmp_path / "morph", language_model=build_language())
    question = [{"role": "user", "content": [Image.open(folder / "red.png"), "What?"]}]
    options: dict[str, Any] = {"max_new_tokens": 8}
    assert loaded.generate(question, **options) == morph.generate(question, **options)
    other = [{"role": "user", "content": [Image.open(folder / "blue.png"), "Another."]}]
    drawn = loaded.generate(other, generation_mode="image", image_guidance_scale=2.0)[0]
    assert isinstance(drawn, Image.Image)
    config = json.loads((tmp_path / "morph" / "config.json").read_text())
    config["hashes"]["image_encoder"] = "1" * 64
    (tmp_path / "morph" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="image encoder"):
        load_morph(tmp_path / "morph", language_model=build_language())


@pytest.mark.parametrize("with_latents", [False, True])
def test_batched_answers_see_their_own_image(folder: Path, with_latents: bool) -> None:
    morph = with_features(folder, with_latents=with_latents).morph
    questions = [[{"role": "user", "content": [Image.open(folder / f"{c}.png"), "What?"]}] for c in COLOURS]
    options: dict[str, Any] = {"max_new_tokens": 6}
    assert morph.generate_batch(questions, **options) == [morph.generate(question, **options) for question in questions]


def test_a_request_s_image_is_opened_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    morph, opened = with_features(folder).morph, []
    open_image = conversation.open_image
    monkeypatch.setattr(conversation, "open_image", lambda path: opened.append(path) or open_image(path))
    pictures = [folder / "red.png", folder / "blue.png"]
    morph.generate([{"role": "user", "content": [*pictures, "Which?"]}], max_new_tokens=2)
    assert opened == pictures


class CountingAutoencoder(FakeAutoencoder):
    """Remembers how many images it was given."""

    def __init__(self) -> None:
        self.num_encoded = 0

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        self.num_encoded += len(images)
        return super().encode(images)


@pytest.mark.parametrize("is_large", [False, True], ids=["encoded at once", "encoded when drawn"])
def test_only_what_is_drawn_becomes_latents_and_only_what_is_read_features(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_large: bool
) -> None:
    """Of two images that are read, one that is drawn, one that is drawn and read again."""
    if is_large:
        monkeypatch.setattr("diptych.models.training_sources.PREPARED_IMAGES", 0)
    turns = [
        [("user", "<image>\nWhat?"), ("assistant", "red")],
        [("user", "<image>\nAnother."), ("assistant", "<image>")],
        [("user", "Draw."), ("assistant", "<image>"), ("user", "What?"), ("assistant", "white")],
    ]
    images = [["red.png"], ["green.png", "blue.png"], ["white.png"]]
    Image.new("RGB", (16, 16), "white").save(folder / "white.png")
    lines = [
        json.dumps({"messages": [{"role": role, "content": text} for role, text in turn], "images": own})
        for turn, own in zip(turns, images, strict=True)
    ]
    (folder / "mixed.jsonl").write_text("\n".join(lines) + "\n")
    recipe = tiny_recipe(
        data={"sources": [{"path": str(folder / "mixed.jsonl")}]},
        image_input={"image_encoder": str(folder / "encoder")},
        objective={"text_cond_dropout_prob": 1e-9, "image_cond_dropout_prob": 1e-9},
    )
    autoencoder, encoder = CountingAutoencoder(), build_encoder()
    num_read = []
    features = encoder.features
    monkeypatch.setattr(encoder, "features", lambda images: num_read.append(len(images)) or features(images))
    morph = build_morph(recipe, language=build_language(), autoencoder=autoencoder, encoder=encoder, cached=False)
    training = XFusionTraining(recipe, morph)
    batch = training.build_batch([(0, 0, 0), (1, 0, 1), (2, 0, 2)], seed=0)
    assert autoencoder.num_encoded == 2
    assert sum(num_read) == 3
    assert len(batch.context_features) == 3
    assert (~batch.batch.image_is_target).sum() == 3
    for number, name in ((1, "blue"), (2, "white")):
        (span,) = [
            span for span in training._streams.get_or_make((0, number, False, False), dict).images if span.is_target
        ]
        assert torch.equal(span.image, training.latents.load(str(folder / f"{name}.png")))
    question = [{"role": "user", "content": [Image.open(folder / "red.png"), "What?"]}]
    morph.generate(question, max_new_tokens=2)
    morph.generate(question, generation_mode="image", image_guidance_scale=2.0)
    assert autoencoder.num_encoded == 2


def test_features_lie_where_the_latents_beside_them_do(folder: Path) -> None:
    """A wide picture is cropped for both, also by an encoder that would take all of it."""
    training = with_features(folder, with_latents=True)
    morph: Any = training.morph
    morph.encoder.preprocessing = replace(morph.encoder.preprocessing, fit="squash")
    wide = Image.new("RGB", (48, 16), "white")
    wide.paste(Image.open(folder / "red.png"), (16, 0))
    requests = [
        morph._parse([{"role": "user", "content": [picture]}]) for picture in (wide, wide.crop((16, 0, 32, 16)))
    ]
    assert torch.equal(requests[0].latents[0], requests[1].latents[0])
    assert torch.equal(requests[0].features[0], requests[1].features[0])


def test_noise_on_features_is_refused() -> None:
    with pytest.raises(ValueError, match="context_noise noises latents"):
        tiny_recipe(image_input={}, objective={"context_noise": 0.5})


def test_pixels_are_drawn_and_read_as_they_are(folder: Path) -> None:
    space = load_image_space("pixels")
    assert isinstance(space, PixelSpace)
    images = torch.rand(2, 3, 8, 8) * 2 - 1
    assert torch.equal(space.decode(space.encode(images)), images)
    training = build(folder, autoencoder=space, vision_tower={"patch_size": 4, "time_conditioning": "adaln"})
    losses = training(training.build_batch([(0, 0, 0), (1, 1, 1)], seed=0))
    assert losses["flow"].count == 3 * 8 * 8
    assert isinstance(training.morph, Morph)
    drawn = training.morph.generate([{"role": "user", "content": "Draw red."}])[0]
    assert isinstance(drawn, Image.Image)
    assert drawn.size == (8, 8)


@pytest.mark.parametrize("tower", [{}, {"boundary_tokens": False}, {"layer_design": "projection"}], ids=str)
def test_features_begin_as_nothing_beside_the_latents_of_an_earlier_morph(
    folder: Path, tmp_path: Path, tower: dict[str, Any]
) -> None:
    sizes = {"patch_size": 2, "time_conditioning": "adaln"} | tower
    before = build(folder, vision_tower=sizes)
    save_morph(tmp_path / "morph", before.morph)
    image_input = {"image_encoder": str(folder / "encoder"), "with_latents": True}
    recipe = before.morph.recipe.model_copy(
        update={
            "image_input": ImageInputConfig(**image_input),
            "vision_tower": VisionTowerConfig(**sizes, init_from=str(tmp_path / "morph")),
        }
    )
    parts: dict[str, Any] = {"language": build_language(), "autoencoder": FakeAutoencoder(), "encoder": build_encoder()}
    training = XFusionTraining(recipe, build_morph(recipe, **parts, cached=False))
    picks = [(0, 1, 0), (1, 2, 1), (2, 0, 2)]
    losses = [one(one.build_batch(picks, seed=0)) for one in (before, training)]
    for name in ("ce", "flow"):
        assert torch.equal(losses[0][name].total, losses[1][name].total), name
    losses[1]["ce"].total.backward()
    gradient = training.trainable_parameters()["feature_embedder.linear.weight"].grad
    assert gradient is not None
    assert gradient.abs().sum() > 0
    save_morph(tmp_path / "after", training.morph)
    alone = recipe.model_copy(
        update={"vision_tower": VisionTowerConfig(**sizes, init_from=str(tmp_path / "after")), "image_input": None}
    )
    with pytest.raises(ValueError, match=r"image_input.encoder_layer null, not \(no image_input\)"):
        build_morph(alone, language=parts["language"], autoencoder=parts["autoencoder"], cached=False)
    others = {**parts, "encoder": build_encoder()}
    others["encoder"].hash = "1" * 64
    again = recipe.model_copy(update={"vision_tower": VisionTowerConfig(**sizes, init_from=str(tmp_path / "after"))})
    build_morph(again, **parts, cached=False)
    with pytest.raises(ValueError, match="image encoder"):
        build_morph(again, **others, cached=False)


@pytest.mark.parametrize("tower", [{}, {"layer_design": "projection"}], ids=str)
def test_matching_begins_as_nothing_and_each_of_its_weights_is_trained(
    folder: Path, tmp_path: Path, tower: dict[str, Any]
) -> None:
    sizes = {"patch_size": 2, "time_conditioning": "adaln", "text_pooling": True} | tower
    before = build(folder, vision_tower=sizes)
    save_morph(tmp_path / "morph", before.morph)
    matching = VisionTowerConfig(**sizes, text_matching=True, init_from=str(tmp_path / "morph"))
    recipe = before.morph.recipe.model_copy(update={"vision_tower": matching})
    morph = build_morph(recipe, language=build_language(), autoencoder=FakeAutoencoder(), cached=False)
    training = XFusionTraining(recipe, morph)
    batch = training.build_batch([(0, 1, 0), (1, 2, 1), (2, 0, 2)], seed=0)
    losses = [one(batch) for one in (before, training)]
    for name in ("ce", "flow"):
        assert torch.equal(losses[0][name].total, losses[1][name].total), name
    matcher: Any = training.trainable_parameters()
    with torch.no_grad():
        matcher["text_matcher.out.weight"].normal_(std=0.1)
    found = training(batch)
    (found["ce"].total + found["flow"].total).backward()
    for name in ("patches.weight", "words.weight", "out.weight", "out.bias"):
        assert matcher[f"text_matcher.{name}"].grad.abs().sum() > 0, name
    save_morph(tmp_path / "after", training.morph)
    load = {"language": build_language(), "autoencoder": FakeAutoencoder()}
    again = recipe.model_copy(
        update={"vision_tower": matching.model_copy(update={"init_from": str(tmp_path / "after")})}
    )
    kept = dict(build_morph(again, **load, cached=False).model.vision_tower.named_parameters())
    assert torch.equal(kept["text_matcher.out.weight"], matcher["text_matcher.out.weight"])


def test_matching_needs_pooled_text() -> None:
    with pytest.raises(ValueError, match="text_matching multiplies in what text_pooling pools; set text_pooling: true"):
        VisionTowerConfig(text_matching=True)


def test_training_goes_on_from_a_morph(folder: Path, tmp_path: Path) -> None:
    first = build(folder)
    save_morph(tmp_path / "morph", first.morph)
    tower = {"patch_size": 2, "time_conditioning": "adaln", "init_from": str(tmp_path / "morph")}
    recipe = tiny_recipe(vision_tower=tower)
    language, autoencoder = build_language(), FakeAutoencoder()
    morph = build_morph(recipe, language=language, autoencoder=autoencoder, cached=False)
    for name, parameter in morph.model.vision_tower.named_parameters():
        assert torch.equal(parameter, first.trainable_parameters()[name]), name
    with pytest.raises(ValueError, match="language model"):
        build_morph(recipe, language=build_language(seed=7), autoencoder=autoencoder, cached=False)
    wide = tiny_recipe(vision_tower=tower | {"patch_size": 4})
    with pytest.raises(ValueError, match=r"has vision_tower.patch_size 2, not 4"):
        build_morph(wide, language=language, autoencoder=autoencoder, cached=False)

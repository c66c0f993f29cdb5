"""Laws of probing: a linear class is found, noise gives chance, a group never stands on both sides."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from diptych.cli import app
from diptych.evaluate.linear_probe import probe, probe_emoji, tower_states
from diptych.models.checkpoint import build_morph
from tiny_vpit import build_encoder
from tiny_xfusion import FakeAutoencoder, build_language, build_tiny_morph, tiny_recipe

NUM = 400


def test_a_linear_class_is_found_and_noise_gives_chance() -> None:
    torch.manual_seed(0)
    labels = torch.randint(0, 4, (NUM,))
    groups = [f"thing {n}" for n in range(NUM)]
    told = torch.randn(NUM, 16) + 4 * torch.nn.functional.one_hot(labels, 16)
    found = probe(told, labels, groups)
    assert found.value > 0.9
    assert 0.15 * NUM < found.num < 0.25 * NUM
    assert found.chance < 0.5
    guessed = probe(torch.randn(NUM, 16), labels, groups)
    low, high = guessed.interval
    assert low < 0.3
    assert high > 0.2


def test_what_tells_the_group_alone_is_of_no_use_on_others() -> None:
    """Each group has a class of its own choice and features that name the group: memory must not be counted."""
    torch.manual_seed(0)
    group = torch.arange(NUM) // 4
    labels = torch.randint(0, 2, (NUM // 4,))[group]
    features = torch.nn.functional.one_hot(group, NUM // 4).float()
    assert probe(features, labels, [str(int(g)) for g in group]).value < 0.75


@pytest.mark.parametrize(
    "design",
    [{}, {"layer_design": "gated"}, {"layer_design": "projection"}, {"layer_design": "single"}, {"x_fuse": "both"}],
    ids=str,
)
def test_states_of_every_block_of_each_image_alone(design: dict[str, Any]) -> None:
    tower = {"patch_size": 2, "time_conditioning": "adaln"}
    morph = build_tiny_morph(vision_tower=tower | design)
    images = torch.rand(3, 3, 8, 8) * 2 - 1
    states = tower_states(morph, images)
    assert list(states) == ["latents", *(f"layer {layer}" for layer in morph.model.vision_tower.layers)]
    alone = tower_states(morph, images[1:2])
    for name, value in states.items():
        torch.testing.assert_close(value[1:2], alone[name], atol=1e-5, rtol=1e-5)
    noised, noise = (tower_states(morph, images, noise=time) for time in (0.8, 1.0))
    torch.testing.assert_close(noised["latents"], 0.2 * states["latents"] + 0.8 * noise["latents"])
    assert not torch.allclose(noised["layer 0"], states["layer 0"])
    assert not morph.model.vision_tower.blocks[0]._forward_hooks


@pytest.fixture
def data(tmp_path: Path) -> Path:
    entries = []
    for number in range(60):
        is_red = number % 2 == 0
        images = {}
        for style, lightness in (("fluent", 255), ("openmoji", 160)):
            path = tmp_path / style / f"{number}.png"
            path.parent.mkdir(exist_ok=True)
            level = lightness if is_red else 40
            Image.new("RGB", (8, 8), (level, level, level)).save(path)
            images[style] = f"{style}/{number}.png"
        entries.append({"name": f"thing {number}", "group": "light" if is_red else "dark", "images": images})
    (tmp_path / "concepts.json").write_text(json.dumps(entries))
    return tmp_path


def test_over_an_emoji_set(data: Path) -> None:
    scores = probe_emoji(build_tiny_morph(), data, batch_size=50)
    assert scores["latents"].value == 1
    assert all(score.num == scores["latents"].num for score in scores.values())


def test_the_command(data: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("diptych.models.checkpoint.load_morph", lambda name: build_tiny_morph())
    command = ["probe", "some-morph", "--data", str(data), "--out", str(tmp_path / "deep" / "scores.json")]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.stderr
    assert "layer 2" in result.stdout
    scores = json.loads((tmp_path / "deep" / "scores.json").read_text())["scores"]
    assert scores["latents"]["value"] == 1
    for options, said in ((["--label", "mood"], "unknown label"), (["--data", "nowhere"], "holds no emoji set")):
        refused = CliRunner().invoke(app, [*command, *options])
        assert refused.exit_code == 2
        assert said in refused.stderr


def test_what_cannot_be_probed_is_refused() -> None:
    with pytest.raises(ValueError, match="noise must lie"):
        tower_states(build_tiny_morph(), torch.zeros(1, 3, 8, 8), noise=2)
    with pytest.raises(ValueError, match="no vision tower"):
        tower_states(object(), torch.zeros(1, 3, 8, 8))


@pytest.mark.parametrize("with_latents", [False, True], ids=["in place of latents", "with latents"])
@pytest.mark.parametrize("design", [{}, {"layer_design": "projection"}, {"x_fuse": "both"}], ids=str)
def test_a_tower_that_reads_features_is_probed_by_them(
    design: dict[str, Any], with_latents: bool, data: Path, tmp_path: Path
) -> None:
    """Clean images are read as in use: behind every block but the last, and another picture's features change it."""
    encoder = build_encoder()
    network: Any = encoder.network
    network.network.save_pretrained(tmp_path / "encoder")
    recipe = tiny_recipe(
        vision_tower={"patch_size": 2, "time_conditioning": "adaln"} | design,
        image_input={"image_encoder": str(tmp_path / "encoder"), "with_latents": with_latents},
    )
    parts: dict[str, Any] = {"language": build_language(), "autoencoder": FakeAutoencoder(), "encoder": encoder}
    morph = build_morph(recipe, **parts, cached=False)
    scores = probe_emoji(morph, data, batch_size=50)
    assert list(scores) == ["latents", "features", *(f"layer {n}" for n in morph.model.vision_tower.layers[:-1])]
    assert scores["features"].value == 1
    noised = probe_emoji(morph, data, noise=0.5)
    assert list(noised) == ["latents", *(f"layer {n}" for n in morph.model.vision_tower.layers)]
    tower: Any = morph.model.vision_tower
    with torch.no_grad():
        tower.feature_embedder.linear.weight.normal_()
    images, shape = torch.zeros(2, 3, 8, 8), (2, tower.embedder.num_patches, encoder.feature_dim)
    one, other = (tower_states(morph, images, features=torch.randn(shape)) for _ in range(2))
    assert not torch.allclose(one["layer 0"], other["layer 0"])
    with pytest.raises(ValueError, match="features: needed where clean images are read by them"):
        tower_states(morph, images)

"""Laws of an aligned tower in training: what is compared with what, what learns, what it costs elsewhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from diptych.models.checkpoint import build_morph, load_morph, save_morph
from diptych.models.encoded_images import image_features
from diptych.models.xfusion_training import XFusionTraining
from tiny_vpit import build_encoder
from tiny_xfusion import FakeAutoencoder, build_language, tiny_recipe

NAMES = ("red", "green", "blue")
PICKS = [(0, 0, 1), (1, 1, 2), (2, 1, 0), (3, 0, 0)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("aligned")
    draw, read = [], []
    for number, name in enumerate(NAMES):
        torch.manual_seed(number)
        pixels = (torch.rand(4, 4, 3) * 255).byte().numpy()
        Image.fromarray(pixels).resize((16, 16), Image.Resampling.NEAREST).save(folder / f"{name}.png")
        draw.append([{"role": "user", "content": f"Draw {name}."}, {"role": "assistant", "content": "<image>"}])
        read.append([{"role": "user", "content": "<image>\nWhat?"}, {"role": "assistant", "content": name}])
    for file, conversations in (("draw", draw), ("read", read)):
        rows = zip(conversations, NAMES, strict=True)
        lines = [json.dumps({"messages": messages, "images": [f"{name}.png"]}) for messages, name in rows]
        (folder / f"{file}.jsonl").write_text("\n".join(lines) + "\n")
    network: Any = build_encoder().network
    network.network.save_pretrained(folder / "encoder")
    return folder


def build(
    folder: Path,
    *,
    tower: dict[str, Any] | None = None,
    encoder: Any = None,
    cache_dir: Path | None = None,
    **alignment: Any,
) -> XFusionTraining:
    """`cache_dir`: where features are kept; None: in memory alone."""
    base = {"patch_size": 2, "time_conditioning": "adaln"}
    settings = {"image_encoder": str(folder / "encoder"), "layer": 1, **alignment}
    recipe = tiny_recipe(
        data={"sources": [{"path": str(folder / f"{name}.jsonl")} for name in ("draw", "read")]},
        cache_dir=str(cache_dir),
        vision_tower=base | (tower or {}),
        alignment=settings,
    )
    parts: dict[str, Any] = {"language": build_language(), "autoencoder": FakeAutoencoder()}
    morph = build_morph(recipe, **parts, cached=cache_dir is not None)
    training = XFusionTraining(recipe, morph, encoder=encoder or build_encoder())
    with torch.no_grad():
        for parameter in training.trainable_parameters().values():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return training


@pytest.mark.parametrize(
    "tower", [{}, {"boundary_tokens": False}, {"x_fuse": "both"}, {"layer_design": "gated"}], ids=str
)
def test_each_image_is_compared_with_its_own_features(folder: Path, tower: dict[str, Any]) -> None:
    training = build(folder, tower=tower)
    whole = training.build_batch(PICKS, seed=0)
    losses = training(whole)
    assert training.loss_weights["align"] == 0.5
    assert losses["align"].count == training.loss_counts(whole)["align"] == 4 * 4
    alone = [training(training.build_batch([pick], seed=0))["align"].total for pick in PICKS]
    torch.testing.assert_close(losses["align"].total, torch.stack(alone).sum(), atol=1e-4, rtol=1e-4)
    encoded = image_features(build_encoder(), 4, cache_dir=None)
    path = str(folder / f"{NAMES[1]}.png")
    encoded.prepare([path])
    torch.testing.assert_close(training.build_batch([PICKS[0]], seed=0).features[0], encoded.load(path))


def test_the_encoder_sees_an_image_once_in_all_epochs_and_runs(folder: Path, tmp_path: Path) -> None:
    encoder = build_encoder()
    seen: list[int] = []
    encoder.network.register_forward_hook(lambda *_: seen.append(1))
    counts = []
    for _ in ("a run", "the next one"):
        training = build(folder, encoder=encoder, cache_dir=tmp_path)
        for epoch in range(2):
            training(training.build_batch([(6 * epoch + draw, draw % 2, draw // 2) for draw in range(6)], seed=0))
            counts.append(len(seen))
        training.flush()
    assert counts[0] > 0
    assert counts == counts[:1] * 4


def test_the_loss_can_be_learnt_for_clean_and_for_noised_images(folder: Path) -> None:
    training = build(folder, projector="mlp3")
    optimizer = torch.optim.Adam(training.trainable_parameters().values(), lr=3e-3)
    for source in (0, 1):
        picks = [(draw, source, draw) for draw in range(3)]
        values = []
        for _ in range(60):
            loss = training(training.build_batch(picks, seed=0))["align"]
            optimizer.zero_grad()
            loss.total.backward()
            optimizer.step()
            values.append(loss.total.item() / loss.count)
        assert values[-1] < 0.3 * values[0]


def test_blocks_behind_the_aligned_one_get_no_gradient_of_it(folder: Path) -> None:
    training = build(folder)
    training(training.build_batch(PICKS, seed=0))["align"].total.backward()
    moved = {
        name.split(".")[1]
        for name, p in training.model.vision_tower.blocks.named_parameters(prefix="blocks")
        if p.grad is not None and p.grad.any()
    }
    assert moved == {"0", "1"}


def test_the_head_is_part_of_the_morph(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    training = build(folder)
    training.save_pretrained(str(tmp_path))
    monkeypatch.setattr("diptych.models.checkpoint.load_image_space", lambda name: FakeAutoencoder())
    # Nor is the encoder asked, which may not be to be had where the morph is used.
    monkeypatch.delattr("diptych.models.xfusion_building.build_encoder_skeleton")
    loaded = load_morph(tmp_path, language_model=build_language())
    mine, theirs = training.model.vision_tower.alignment, loaded.model.vision_tower.alignment
    assert mine is not None
    assert all(torch.equal(a, b) for a, b in zip(mine.parameters(), theirs.parameters(), strict=True))


@pytest.mark.parametrize("layer", [2, 7])
def test_a_layer_without_a_block_or_with_the_last_one_is_refused(folder: Path, layer: int) -> None:
    with pytest.raises(ValueError, match=rf"alignment.layer {layer} .* choose one of: 0, 1"):
        build(folder, layer=layer)


def test_without_alignment_there_is_no_such_loss(folder: Path) -> None:
    recipe = tiny_recipe(data={"sources": [{"path": str(folder / "draw.jsonl")}]}, cache_dir=str(folder / "cache"))
    morph = build_morph(recipe, language=build_language(), autoencoder=FakeAutoencoder(), cached=False)
    training = XFusionTraining(recipe, morph)
    assert training(training.build_batch([(0, 0, 0)], seed=0)).keys() == {"ce", "flow"}


@pytest.mark.parametrize(
    ("changes", "is_kept"),
    [({"weight": 0.1}, True), ({"projector": "mlp3"}, False), ({"layer": 0}, False), ({"encoder_layer": 1}, False)],
    ids=str,
)
def test_a_start_brings_the_head_of_the_same_alignment_alone(
    folder: Path, tmp_path: Path, changes: dict[str, Any], is_kept: bool
) -> None:
    first = build(folder)
    save_morph(tmp_path, first.morph)
    settings = {"image_encoder": str(folder / "encoder"), "layer": 1, **changes}
    base = {"patch_size": 2, "time_conditioning": "adaln"}
    recipe = tiny_recipe(vision_tower=base | {"init_from": str(tmp_path)}, alignment=settings)
    second = build_morph(recipe, language=build_language(), autoencoder=FakeAutoencoder(), cached=False)
    theirs = first.trainable_parameters()
    for name, tensor in second.model.vision_tower.named_parameters():
        if is_kept or not name.startswith("alignment."):
            assert torch.equal(tensor, theirs[name]), name
        else:
            assert name not in theirs or not torch.equal(tensor, theirs[name]), name

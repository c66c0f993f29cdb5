"""`diptych reconstruct`: an image in, the same image drawn from its visual tokens out, and one line for bad input."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner

from diptych import cli
from tiny_pixel_decoder import IMAGE_SIZE, build_decoder, decoder_recipe, write_parts


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With the decoder in decoder/, and in the folder of a VPiT morph, vpit/."""
    folder = write_parts(tmp_path_factory.mktemp("parts"))
    recipe = decoder_recipe(folder)
    decoder = build_decoder(recipe)
    decoder.save_pretrained(folder / "decoder")
    decoder.save_pretrained(folder / "vpit" / "pixel_decoder")
    vpit = recipe.model_copy(update={"method": "vpit"}).model_dump(mode="json")
    (folder / "vpit" / "config.json").write_text(
        json.dumps({"format": 1, "hashes": {}, "weights_sha256": "", "recipe": vpit})
    )
    return folder


def call(*arguments: object) -> Any:
    return CliRunner().invoke(cli.app, ["reconstruct", *map(str, arguments)])


def test_it_has_help() -> None:
    result = call("--help")
    assert result.exit_code == 0
    for option in ("--out", "--guidance-scale", "--num-inference-steps", "--seed"):
        assert option in result.stdout


@pytest.mark.parametrize("morph", ["decoder", "vpit"])
def test_images_are_drawn_again_beside_their_originals(parts: Path, tmp_path: Path, morph: str) -> None:
    images = [parts / "data" / "0.png", parts / "data" / "1.png"]
    result = call(parts / morph, *images, "--out", tmp_path / "out", "--num-inference-steps", 2)
    assert result.exit_code == 0, result.stderr
    names = ["0-reconstructed.png", "1-reconstructed.png", "reconstructions.png"]
    assert result.stdout.split() == [str(tmp_path / "out" / name) for name in names]
    sizes = []
    for name in names:
        with Image.open(tmp_path / "out" / name) as picture:
            sizes.append(picture.size)
    assert sizes[:2] == [(IMAGE_SIZE, IMAGE_SIZE)] * 2
    assert sizes[2][0] > 4 * 128


def test_the_same_seed_gives_the_same_image(parts: Path, tmp_path: Path) -> None:
    made = []
    for seed in (1, 1, 2):
        result = call(parts / "decoder", parts / "data" / "0.png", "--out", tmp_path, "--seed", seed)
        assert result.exit_code == 0, result.stderr
        made.append((tmp_path / "0-reconstructed.png").read_bytes())
    assert made[0] == made[1] != made[2]


def test_images_of_one_name_do_not_overwrite_each_other(parts: Path, tmp_path: Path) -> None:
    (tmp_path / "0.png").write_bytes((parts / "data" / "1.png").read_bytes())
    out = tmp_path / "out"
    result = call(parts / "decoder", parts / "data" / "0.png", tmp_path / "0.png", "--out", out)
    assert result.exit_code == 0, result.stderr
    assert sorted(path.name for path in out.iterdir()) == [
        "0-2-reconstructed.png",
        "0-reconstructed.png",
        "reconstructions.png",
    ]


@pytest.mark.parametrize(
    ("morph", "image", "says"),
    [
        ("decoder", "nothing.png", "nothing.png does not exist"),
        ("decoder", "cut.png", "cut.png is corrupt or truncated"),
        ("decoder", "text.png", "it is corrupt"),
        ("nothing", "data/0.png", "there is no morph at"),
        ("data", "data/0.png", "is not a morph"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(parts: Path, tmp_path: Path, morph: str, image: str, says: str) -> None:
    (parts / "cut.png").write_bytes((parts / "data" / "0.png").read_bytes()[:60])
    (parts / "text.png").write_text("no image")
    result = call(parts / morph, parts / image, "--out", tmp_path / "out")
    assert result.exit_code == 2
    (line,) = result.stderr.strip().splitlines()
    assert line.startswith("error: ")
    assert says in line
    assert not list(tmp_path.glob("out/*.png"))


def test_an_out_that_cannot_be_made_is_one_line(parts: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    result = call(parts / "decoder", parts / "data" / "0.png", "--out", tmp_path / "file" / "x")
    assert result.exit_code == 2
    assert "cannot be made" in result.stderr

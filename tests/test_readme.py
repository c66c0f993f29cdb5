"""Law: what README.md tells a reader to type works as it stands, at tiny scale, in the order it is told."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from PIL import Image

from diptych.backbones.autoencoder import load_autoencoder
from diptych.cli import app
from diptych.config import build_recipe
from diptych.models.checkpoint import build_morph, save_morph
from diptych.models.vpit_checkpoint import build_vpit_morph, save_vpit
from tiny_xfusion import build_language

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    """The fenced blocks of one language, without their indent."""
    found = re.findall(rf"^( *)```{language}\n(.*?)^ *```$", README, flags=re.MULTILINE | re.DOTALL)
    return [re.sub(rf"^{indent}", "", block, flags=re.MULTILINE) for indent, block in found]


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder like a reader's checkout after `make demo`, with a tiny morph, and the reader's own data and recipe."""
    folder = tmp_path_factory.mktemp("reader")
    language = build_language("llama")
    language.save_pretrained(folder / "llm")
    settings = yaml.safe_load((ROOT / "recipes" / "own.yaml").read_text(encoding="utf-8"))
    settings |= {"language_model": str(folder / "llm"), "data": {"sources": [{"path": "samples.jsonl"}]}}
    settings["cache_dir"] = str(folder / "cache")
    settings["sample"]["num_inference_steps"] = 2
    (folder / "my-recipe.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    (folder / "samples.jsonl").write_text(blocks("json")[0], encoding="utf-8")
    Image.new("RGB", (64, 64), "orange").save(folder / "cat.png")
    morph = build_morph(build_recipe(settings), autoencoder=load_autoencoder("emoji-tiny"), cached=False)
    save_morph(folder / "runs" / "demo" / "morph", morph)
    return folder


@pytest.fixture
def vpit_reader(reader: Path) -> Path:
    """The same after `make demo METHOD=vpit`, with its own encoder and pixel decoder around a tiny language model."""
    settings = yaml.safe_load((ROOT / "recipes" / "demo-vpit.yaml").read_text(encoding="utf-8"))
    settings["language_model"] = str(reader / "llm")
    settings["vpit"] |= {"first_trained_layer": 1}
    morph = build_vpit_morph(build_recipe(settings), cached=False)
    save_vpit(reader / "runs" / "demo-vpit" / "morph", morph)
    return reader


def run(command: str, folder: Path) -> str:
    """Runs a line of the README, with the interpreter of these tests in place of .venv, and tiny numbers."""
    command = re.sub(r"^(\.venv/bin/)?diptych", f"{sys.executable} -m diptych", command)
    launcher = f"{sys.executable} -m torch.distributed.run --nproc-per-node 2"
    command = command.replace("torchrun --nproc-per-node 8", launcher)
    command = re.sub(r"(train my-recipe.yaml)( train\.max_steps=\d+)?", r"\1 train.max_steps=2", command)
    done = subprocess.run(
        command, shell=True, cwd=folder, capture_output=True, text=True, check=False, timeout=250, env=os.environ
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def commands() -> list[str]:
    lines = [line.split("  #")[0].strip() for block in blocks("bash") for line in block.splitlines()]
    return [line for line in lines if line]


def test_the_commands_are_the_ones_that_exist() -> None:
    """The table of commands holds exactly those of `diptych`."""
    told = set(re.findall(r"^\| `diptych ([\w-]+)", README, flags=re.MULTILINE))
    known = {command.name for command in app.registered_commands} | {group.name for group in app.registered_groups}
    assert told == known


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z]+):", makefile, flags=re.MULTILINE))
    text = README + (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^make ([a-z]+)", text, flags=re.MULTILINE)) <= targets


def test_links_lead_somewhere() -> None:
    for link in re.findall(r"\]\(([^)#]+)\)", README):
        assert link.startswith("https://") or (ROOT / link).exists(), link


@pytest.mark.assets("smollm2-135m-instruct", "vit-s14-focus")
@pytest.mark.timeout(600)
def test_every_command_runs(reader: Path, vpit_reader: Path) -> None:
    assert vpit_reader == reader
    typed = [line for line in commands() if not line.startswith("make ")]
    assert len(typed) >= 5
    for line in typed:
        run(line, reader)
    assert (reader / "drawn" / "image-0.png").is_file()
    assert (reader / "answered" / "text.txt").is_file()
    assert (reader / "runs" / "mine" / "morph").is_dir()


def test_the_python_runs(reader: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(reader)
    for block in blocks("python"):
        names: dict[str, object] = {}
        exec(compile(block, "README.md", "exec"), names)
        assert isinstance(names["image"], Image.Image)
        assert isinstance(names["answer"], str)

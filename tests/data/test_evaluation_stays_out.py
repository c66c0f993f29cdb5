"""Law: nothing that models are judged by enters training. BIG-bench (the package bigbench) is for evaluation alone."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import diptych
from diptych.commands import datasets
from diptych.data.builders.emoji import PACKAGES

SOURCE = Path(diptych.__file__).parent
RECIPES = Path(__file__).parents[2] / "recipes"
MAY_NAME_IT = ("backbones/", "evaluate/", "commands/")
BIG_BENCH = re.compile(r"big[\s_.-]?bench", re.IGNORECASE)
OF_SETS = {
    "openmoji",
    "fluent-emoji-3d",
    "emojibase-data",
    "easy-vqa",
    *(f"fluent-emoji-anim-{number}" for number in range(1, 5)),
}


@pytest.mark.parametrize("name", ["bigbench", "BIG-bench", "big_bench", "BigBench"])
def test_however_it_is_written_it_is_found(name: str) -> None:
    assert BIG_BENCH.search(f"load('{name}')")


def test_nothing_that_makes_or_reads_training_data_names_it() -> None:
    paths = [*SOURCE.rglob("*.py"), *RECIPES.rglob("*.yaml")]
    assert len(paths) > 100
    naming = [
        str(path)
        for path in paths
        if not (path.is_relative_to(SOURCE) and path.relative_to(SOURCE).as_posix().startswith(MAY_NAME_IT))
        and BIG_BENCH.search(path.read_text(encoding="utf-8"))
    ]
    assert not naming


def test_sets_are_built_of_named_packages_alone() -> None:
    """Each package that a builder is given stands here; another is to be thought about, and its cards with it."""
    named = {*PACKAGES.values(), *datasets._CLIP_ASSETS}
    for node in ast.walk(ast.parse(Path(datasets.__file__).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "asset_path":
            (argument,) = node.args
            named |= {argument.value} if isinstance(argument, ast.Constant) else set()
    assert named == OF_SETS
    users = {path.relative_to(SOURCE).as_posix() for path in SOURCE.rglob("*.py") if "asset_path(" in path.read_text()}
    assert {path for path in users if not path.startswith(("backbones/", "evaluate/"))} == {
        "commands/datasets.py",
        "studies/demo.py",
    }

"""Laws of the house: imports run downwards only, siblings stay apart, files stay short and say what they are."""

from __future__ import annotations

import ast
import importlib
import pkgutil
import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import diptych

SOURCE = Path(diptych.__file__).parent
ROOT = SOURCE.parent.parent
ARCHITECTURE = ROOT / "docs" / "architecture.md"
MODULES = sorted(path.relative_to(SOURCE) for path in SOURCE.rglob("*.py"))
HARNESSES = {
    ("diptych.harnesses.lm_eval_model", "lm_eval"),
    ("diptych.harnesses.lmms_eval_model", "lmms_eval"),
}
"""Modules whose classes are made of one of a package that has an environment of its own (`make test-harnesses`)."""
VAGUE = {"util", "utils", "misc", "common", "helper", "helpers", "stuff", "tools"}


def read_floors(table: str) -> dict[str, int]:
    """Room -> floor, from the table in docs/architecture.md; a room is a top-level folder or file of the package."""
    floors: dict[str, int] = {}
    for floor, rooms in re.findall(r"^\| (\d+) \| (.+?) \|", table, flags=re.MULTILINE):
        for room in re.findall(r"`([^`]+)`", rooms):
            name = room.split("/")[0].removesuffix(".py")
            assert floors.setdefault(name, int(floor)) == int(floor), f"{name} stands on two floors"
    return floors


FLOORS = read_floors(ARCHITECTURE.read_text(encoding="utf-8"))
# The package's own face names what lies anywhere, lazily; its entry is part of the command line.
ENTRIES = {"__init__": max(FLOORS.values()) + 1, "__main__": FLOORS["cli"] + 1}


def imported_rooms(code: str, module: Path) -> list[tuple[int, str]]:
    """(line, room) of every import of this package, wherever in the code it stands."""
    found: list[tuple[int, str]] = []
    for node in ast.walk(ast.parse(code)):
        names: list[str] = []
        if not isinstance(node, ast.Import | ast.ImportFrom):
            continue
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            assert node.level == 0, f"{module}:{node.lineno}: imports are absolute here"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            package, _, rest = name.partition(".")
            room = rest.split(".")[0]
            if package == "diptych" and ((SOURCE / room).is_dir() or (SOURCE / f"{room}.py").is_file()) and room:
                found.append((node.lineno, room))
    return found


def violations(code: str, module: Path) -> list[str]:
    """What in this module's code goes against the law."""
    room = module.parts[0].removesuffix(".py")
    floor = FLOORS.get(room, ENTRIES.get(room))
    if floor is None:
        return [f"{module}: its room is on no floor of docs/architecture.md"]
    wrong = []
    for line, other in imported_rooms(code, module):
        below = FLOORS.get(other)
        if below is None:
            wrong.append(f"{module}:{line}: imports {other}, which is on no floor of docs/architecture.md")
        elif below > floor:
            wrong.append(f"{module}:{line}: floor {floor} imports {other} of floor {below}")
        elif below == floor and other != room and (SOURCE / other).is_dir() and (SOURCE / room).is_dir():
            wrong.append(f"{module}:{line}: {room} imports its sibling {other}")
    return wrong


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_imports_run_downwards_only(module: Path) -> None:
    assert violations((SOURCE / module).read_text(encoding="utf-8"), module) == []


@pytest.mark.parametrize(
    ("module", "code"),
    [
        ("nn/freeze.py", "from diptych.models.method import Method"),
        ("nn/freeze.py", "def f():\n    import diptych.train.loop"),
        ("nn/freeze.py", "from diptych import train"),
        ("nn/heads.py", "from diptych.diffusion.path import add_noise"),
        ("data/samples.py", "from diptych.backbones.assets import asset_path"),
        ("train/loop.py", "from diptych.evaluate import report"),
        ("config.py", "from diptych.nn import heads"),
        ("studies/demo.py", "from diptych.cli import app"),
        ("attic/thing.py", "import torch"),
    ],
)
def test_the_law_catches_a_planted_violation(module: str, code: str) -> None:
    assert len(violations(code, Path(module))) == 1


def test_the_law_lets_pass_what_is_right() -> None:
    code = "import torch\nfrom diptych import __version__, config\nfrom diptych.nn.heads import patchify"
    assert violations(code, Path("models/xfusion.py")) == []


def test_the_page_and_the_tree_agree() -> None:
    """docs/architecture.md names every file of the package, and none that is not there."""
    named = set()
    for rooms, inside in re.findall(r"^\| \d+ \| (.+?) \| (.+?) \|$", ARCHITECTURE.read_text(), flags=re.MULTILINE):
        (room,) = re.findall(r"`([^`]+)`", rooms)
        files = [room] if room.endswith(".py") else re.findall(r"`((?:\w+/)?\w+\.py)`", inside)
        folder = Path() if room.endswith(".py") else Path(room)
        named |= {folder / name for name in files}
    tree = {module for module in MODULES if module.name not in ("__init__.py", "__main__.py")}
    assert {str(path) for path in named - tree} == set(), "on the page, not in the tree"
    assert {str(path) for path in tree - named} == set(), "in the tree, not on the page"


def test_files_are_short_and_their_names_say_something() -> None:
    long = [str(m) for m in MODULES if len((SOURCE / m).read_text(encoding="utf-8").splitlines()) > 400]
    vague = [str(m) for m in MODULES if {part.removesuffix(".py") for part in m.parts} & VAGUE]
    names = [m.name for m in MODULES if m.name != "__init__.py"]
    assert long == []
    assert vague == []
    # checkpoint.py is a morph's in models/ and a run's in train/, as docs/architecture.md says.
    assert {name for name in names if names.count(name) > 1} <= {"checkpoint.py"}


def test_every_module_imports_and_none_brings_torchvision() -> None:
    names = [
        info.name for info in pkgutil.walk_packages([str(SOURCE)], "diptych.") if not info.name.endswith("__main__")
    ]
    assert len(names) > 20
    lacking = set()
    for name in names:
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            lacking.add((name, error.name))
    assert lacking <= HARNESSES
    assert "torchvision" not in sys.modules


def test_nothing_that_diptych_requires_requires_torchvision() -> None:
    """Walks the installed requirements, `dev` included: pip never has a reason to fetch a torchvision build."""
    todo, seen = [("diptych", frozenset({"dev"}))], set()
    try:
        requires("diptych")
    except PackageNotFoundError:
        pytest.skip("diptych is not installed here (PYTHONPATH); make test installs it")
    while todo:
        name, extras = todo.pop()
        if (name, extras) in seen:
            continue
        seen.add((name, extras))
        try:
            lines = requires(name) or []
        except PackageNotFoundError:
            continue  # required on another platform or Python
        for requirement in map(Requirement, lines):
            marker = requirement.marker
            if marker is None or any(marker.evaluate({"extra": extra}) for extra in extras | {""}):
                todo.append((requirement.name.lower(), frozenset(requirement.extras)))
    names = {name for name, _ in seen}
    assert {"torch", "transformers", "diffusers"} <= names
    assert not names & {"torchvision", "torchaudio"}


def test_no_pickle_is_read_and_no_code_of_others_is_trusted() -> None:
    """`torch.load` only with weights_only=True; never pickle; trust_remote_code only as the user's recipe says."""
    wrong = []
    for module in MODULES:
        for node in ast.walk(ast.parse((SOURCE / module).read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [alias.name for alias in node.names] + [getattr(node, "module", "") or ""]
                if {name.split(".")[0] for name in names} & {"pickle", "dill", "joblib", "torchvision"}:
                    wrong.append(f"{module}:{node.lineno}: {names}")
            if isinstance(node, ast.Call):
                keywords = {k.arg: getattr(k.value, "value", None) for k in node.keywords}
                called = ast.unparse(node.func)
                if called == "torch.load" and keywords.get("weights_only") is not True:
                    wrong.append(f"{module}:{node.lineno}: torch.load without weights_only=True")
                if keywords.get("trust_remote_code") is True:
                    wrong.append(f"{module}:{node.lineno}: trust_remote_code=True")
    assert wrong == []


def test_import_of_the_package_is_light() -> None:
    code = (
        "import sys, diptych; sys.exit(any(m in sys.modules for m in ('torch', 'transformers', 'pydantic', 'typer')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

"""Law of the plug-in: installing diptych tells lmms-eval of it, and costs lmms-eval no import of a model."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest

from diptych.harnesses import lmms_eval_plugin

PYPROJECT = Path(__file__).parents[2] / "pyproject.toml"


def test_the_entry_point_names_the_manifest_of_a_class_that_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    @dataclass
    class ModelManifest:
        model_id: str
        chat_class_path: str

    registry = ModuleType("lmms_eval.models.registry_v2")
    registry.__dict__["ModelManifest"] = ModelManifest
    for name in ("lmms_eval", "lmms_eval.models"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, registry.__name__, registry)
    named = tomllib.loads(PYPROJECT.read_text())["project"]["entry-points"]["lmms_eval.models"]["diptych"]
    assert named == f"{lmms_eval_plugin.__name__}:manifest"
    made = lmms_eval_plugin.manifest()
    assert made.model_id == "diptych"
    module, _, name = made.chat_class_path.rpartition(".")
    source = Path(lmms_eval_plugin.__file__).with_name(f"{module.rpartition('.')[2]}.py").read_text()
    assert f"class {name}(lmms):" in source


def test_the_plugin_is_light() -> None:
    code = "import sys, diptych.harnesses.lmms_eval_plugin; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

"""Laws that the source itself must keep: no pickle, no code from elsewhere, no torchvision."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from pathlib import Path

import pytest

import diptych

SOURCE = Path(diptych.__file__).parent
MODULES = sorted(SOURCE.rglob("*.py"))
FORBIDDEN = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "torchvision"}
TORCH_LOAD_ALLOWED = {"backbones/efficientnet_lite.py"}
TORCHSCRIPT_ALLOWED = {"evaluate/metrics/feature_networks.py"}
"""A TorchScript file is a program: only the user's own, named by an option that says so."""


@functools.cache
def parsed() -> list[tuple[str, list[ast.AST]]]:
    return [
        (path.relative_to(SOURCE).as_posix(), list(ast.walk(ast.parse(path.read_text(encoding="utf-8")))))
        for path in MODULES
    ]


def nodes(kind: type) -> Iterator[tuple[str, ast.AST]]:
    for path, found in parsed():
        yield from ((path, node) for node in found if isinstance(node, kind))


def test_there_is_source_to_look_at() -> None:
    assert len(MODULES) > 20


def test_nothing_imports_pickle_or_torchvision() -> None:
    found = [
        (path, alias.name)
        for path, node in nodes(ast.Import)
        for alias in node.names  # pyright: ignore[reportAttributeAccessIssue]
        if alias.name.split(".")[0] in FORBIDDEN
    ]
    found += [
        (path, node.module)  # pyright: ignore[reportAttributeAccessIssue]
        for path, node in nodes(ast.ImportFrom)
        if (node.module or "").split(".")[0] in FORBIDDEN  # pyright: ignore[reportAttributeAccessIssue]
    ]
    assert found == []


def test_torch_load_reads_the_pinned_asset_only_and_weights_only() -> None:
    calls = [
        (path, {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords})
        for path, node in nodes(ast.Call)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load"
    ]
    assert {path for path, _ in calls} == TORCH_LOAD_ALLOWED
    assert all(keywords.get("weights_only") == "True" for _, keywords in calls)


def test_torchscript_is_loaded_where_the_user_names_the_file_and_arrays_never_by_pickle() -> None:
    calls = [(path, node) for path, node in nodes(ast.Call) if isinstance(node, ast.Call)]
    assert {path for path, node in calls if ast.unparse(node.func) == "torch.jit.load"} == TORCHSCRIPT_ALLOWED
    arrays = [node for _, node in calls if ast.unparse(node.func) in ("numpy.load", "np.load")]
    assert arrays
    for node in arrays:
        assert {k.arg: ast.unparse(k.value) for k in node.keywords}.get("allow_pickle") == "False"


@pytest.mark.parametrize("name", ["trust_remote_code", "allow_pickle", "shell"])
def test_no_call_switches_on_what_executes_foreign_code(name: str) -> None:
    switched_on = [
        path
        for path, node in nodes(ast.keyword)
        if isinstance(node, ast.keyword) and node.arg == name and ast.unparse(node.value) == "True"
    ]
    assert switched_on == []
    defaults_on = [
        path
        for path, node in nodes(ast.FunctionDef)
        if isinstance(node, ast.FunctionDef)
        for argument, default in zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True)
        if argument.arg == name and default is not None and ast.unparse(default) != "False"
    ]
    assert defaults_on == []


def test_nothing_calls_eval_or_exec() -> None:
    calls = [
        path
        for path, node in nodes(ast.Call)
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("eval", "exec", "os.system", "os.popen")
    ]
    assert calls == []

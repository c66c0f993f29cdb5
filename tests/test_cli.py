"""What a user of the command line meets: quick help, one line per error, exit codes that scripts can trust."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from typer.testing import CliRunner

import diptych
from diptych import cli

RECIPE: dict[str, Any] = {"output_dir": "unused", "data": {"sources": [{"path": "none.jsonl"}]}}
COMMANDS = (
    *("train", "inspect", "generate", "eval", "eval-reference", "report", "demo"),
    *("data", "assets", "data build", "data show", "assets fetch"),
)


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command itself, as a user's shell starts it."""
    return subprocess.run(
        [sys.executable, "-m", "diptych", *arguments],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | environment,
        timeout=120,
    )


def call(*arguments: str) -> Any:
    """The command in this process."""
    return CliRunner().invoke(cli.app, list(arguments))


def write_recipe(folder: Path, **changes: Any) -> str:
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(RECIPE | {"output_dir": str(folder / "out")} | changes), encoding="utf-8")
    return str(path)


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; sys.argv = ['diptych', '--help']\n"
        "from diptych.__main__ import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'numpy', 'pydantic', 'transformers', 'PIL', 'yaml', 'rich'} & set(sys.modules)\n"
        "sys.exit(f'{heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_version_is_the_package_s() -> None:
    assert run("--version").stdout == f"diptych {diptych.__version__}\n"
    assert call("--version").stdout == f"diptych {diptych.__version__}\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str) -> None:
    result = call(*command.split(), "--help")
    assert result.exit_code == 0
    assert "Usage:" in result.stdout


def test_help_lists_the_commands() -> None:
    words = run("--help").stdout.split()
    assert {"train", "inspect", "generate", "data", "assets", "demo"} <= set(words)


def errors_of(result: Any) -> str:
    """Checks that what went wrong is one line on stderr and exit code 2."""
    lines = result.stderr.strip().splitlines()
    assert result.exit_code == 2
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    return lines[0]


def test_a_misspelt_key_is_one_line_that_names_the_right_one(tmp_path: Path) -> None:
    done = run("train", write_recipe(tmp_path, learning_rate=1.0, train={"lerning_rate": 1.0}))
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert "did you mean 'train.learning_rate'?" in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["train", "nothing.yaml"], "nothing.yaml does not exist"),
        (["inspect", "nothing.yaml"], "nothing.yaml does not exist"),
        (["generate", "no-such-morph", "Draw a cat."], "no-such-morph"),
        (["generate", "m", "What?", "--image", "nothing.png"], "nothing.png does not exist"),
        (["generate", "m", "  "], "prompt is empty"),
        (["data", "show", "nothing"], "nothing does not exist"),
        (["assets", "fetch", "smolm2"], "smolm2"),
        (["assets", "fetch"], "--default"),
        (["assets", "verify", "openmojy"], "did you mean openmoji"),
        (["demo", "--method", "chameleon"], "the demo knows: xfusion, vpit"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_is_not_there_is_one_line(
    arguments: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert says in errors_of(call(*arguments))


def test_an_override_that_is_wrong_is_one_line(tmp_path: Path) -> None:
    assert "train.max_steps" in errors_of(call("train", write_recipe(tmp_path), "train.max_steps=soon"))
    assert "key=value" in errors_of(call("train", write_recipe(tmp_path), "quickly"))


def test_a_recipe_without_its_data_is_one_line(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, method="autoencoder")
    assert "none.jsonl" in errors_of(call("train", recipe))


@pytest.mark.parametrize(
    "arguments", [["train"], ["generate", "m"], ["nonsense"], ["generate", "m", "p", "--num-images", "0"], []]
)
def test_wrong_usage_is_exit_code_2(arguments: list[str]) -> None:
    assert call(*arguments).exit_code == 2


def test_an_out_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    assert "cannot be made" in errors_of(call("generate", "m", "Draw.", "--out", str(file / "x")))


def failing_app(error: BaseException) -> typer.Typer:
    app = typer.Typer(cls=cli.PlainErrors, pretty_exceptions_enable=False)

    @app.command()
    def fail() -> None:
        raise error

    app.callback()(lambda: None)
    return app


def test_ctrl_c_is_130() -> None:
    assert CliRunner().invoke(failing_app(KeyboardInterrupt()), ["fail"]).exit_code == 130


def test_an_unexpected_error_keeps_its_traceback() -> None:
    result = CliRunner().invoke(failing_app(RuntimeError("a fault")), ["fail"])
    assert result.exit_code == 1
    assert isinstance(result.exception, RuntimeError)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_a_disk_that_fails_is_one_line_with_a_remedy(number: int) -> None:
    result = CliRunner().invoke(failing_app(OSError(number, os.strerror(number), "out/image-0.png")), ["fail"])
    assert f"out/image-0.png: {os.strerror(number)}; free some space" in errors_of(result)


def test_an_error_of_many_lines_becomes_one() -> None:
    result = CliRunner().invoke(failing_app(ValueError("first\n  second\nthird")), ["fail"])
    assert result.stderr == "error: first second third\n"


def test_a_terminal_sees_red() -> None:
    assert cli.format_error("wrong", colour=True) == "\x1b[31merror: wrong\x1b[0m"


def test_assets_are_listed_with_licence_and_origin() -> None:
    from diptych.backbones.assets import list_assets

    listed = call("assets", "list").stdout
    for asset in list_assets():
        for word in (asset.name, asset.version, asset.licence, asset.origin):
            assert word in listed


def test_a_contact_sheet_of_a_small_data_set(tmp_path: Path) -> None:
    from PIL import Image

    Image.new("RGB", (16, 16), "red").save(tmp_path / "a.png")
    record = '{"messages": [{"role": "user", "content": "Draw it."}, {"role": "assistant", "content": "<image>"}], '
    (tmp_path / "samples.jsonl").write_text(record + '"images": ["a.png"]}\n', encoding="utf-8")
    result = call("data", "show", str(tmp_path), "--num", "1", "--out", str(tmp_path / "sheets" / "sheet.png"))
    assert result.exit_code == 0, result.stderr
    with Image.open(tmp_path / "sheets" / "sheet.png") as sheet:
        assert sheet.width > 16


def test_inspect_writes_its_numbers(tmp_path: Path) -> None:
    recipe = Path(__file__).parent.parent / "recipes" / "autoencoder.yaml"
    result = call("inspect", str(recipe), "--gflops", "100", "--out", str(tmp_path / "deep" / "account.json"))
    assert result.exit_code == 0, result.stderr
    (account,) = json.loads((tmp_path / "deep" / "account.json").read_text())
    assert account["recipe"]["method"] == "autoencoder"
    total = sum(part["forward"] for part in account["flops_by_part"])
    assert account["flops_per_step"]["forward"] == pytest.approx(total)
    alone, of_eight = (sum(account["bytes_of_a_rank"][num].values()) for num in ("1", "8"))
    assert sum(account["parameters"]["trained"].values()) * 16 <= alone > of_eight


def test_inspect_of_the_autoencoder_needs_no_data() -> None:
    recipe = Path(__file__).parent.parent / "recipes" / "autoencoder.yaml"
    result = call("inspect", str(recipe), "--gflops", "100")
    assert result.exit_code == 0, result.stderr
    assert {"parameters", "memory,", "time", "trained", "samples"} <= set(result.stdout.split())

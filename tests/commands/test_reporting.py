"""`diptych report`: a page in --out; one line for what is no run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from diptych import cli
from toy_runs import write_run


def call(*arguments: object) -> Any:
    return CliRunner().invoke(cli.app, ["report", *map(str, arguments)])


def test_the_page_is_written_where_it_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = write_run(tmp_path / "run")
    result = call(run)
    assert (result.exit_code, result.stdout.strip()) == (0, "report.html"), result.stderr
    assert "<title>Run run</title>" in (tmp_path / "report.html").read_text(encoding="utf-8")
    assert call(run, write_run(tmp_path / "other"), "--out", "pages/both.html").exit_code == 0
    assert "<title>2 runs</title>" in (tmp_path / "pages" / "both.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nowhere"], "there is no folder nowhere"),
        (["notes"], "notes is no run: it holds no recipe.yaml and no log.jsonl"),
        (["run", "--out", "run"], "--out run is a folder"),
        (["run", "run"], "run is given twice"),
    ],
)
def test_wrong_use_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], says: str
) -> None:
    write_run(tmp_path / "run")
    (tmp_path / "notes").mkdir()
    monkeypatch.chdir(tmp_path)
    result = call(*arguments)
    assert result.exit_code == 2
    (line,) = result.stderr.strip().splitlines()
    assert says in line
    assert not (tmp_path / "report.html").exists()

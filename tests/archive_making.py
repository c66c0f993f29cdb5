"""Small wheels and tarballs, honest and hostile, for the tests of fetching and unpacking."""

from __future__ import annotations

import hashlib
import io
import tarfile
import zipfile
from pathlib import Path
from typing import Any

from diptych.backbones.assets import Asset

CONTENT = {
    "package/data/a.txt": b"a" * 5000,
    "package/data/b.bin": bytes(range(256)) * 9,
    "package/LICENSE": b"licence\n",
    "package/data/.hidden": b"left out",
    "package/code.py": b"raise SystemExit('executed')\n",
}


def make_zip(path: Path, content: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in content.items():
            info = zipfile.ZipInfo("placeholder")
            # Set afterwards: the constructor cleans names.
            info.filename = name
            info.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(info, data)
    return path


def make_tar(path: Path, content: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, data in content.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def make_asset(archive: Path, **changes: Any) -> Asset:
    """An asset pinned to this archive."""
    size = archive.stat().st_size
    settings: dict = {
        "name": "trial",
        "kind": "pypi" if archive.suffix == ".whl" else "npm",
        "package": "trial-package",
        "version": "1.0",
        "sha256": hashlib.sha256(archive.read_bytes()).hexdigest(),
        "licence": "MIT",
        "origin": "a test",
        "size": size,
        "unpacked_size": sum(map(len, CONTENT.values())),
        "holds": "data/",
        "strip": "package/",
    }
    return Asset(**(settings | changes))


def files_below(folder: Path) -> list[str]:
    """Every file below a folder, hidden ones too, but for lock files (which stay, and are empty)."""
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file() and p.suffix != ".lock")

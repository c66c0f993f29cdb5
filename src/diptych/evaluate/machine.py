"""What a measurement was made on: every score carries it."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path

import torch

import diptych


def describe_machine() -> dict[str, str]:
    """CPU or GPU, cores, and the versions and commit that made a number."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else _cpu_name()
    return {
        "device": device,
        "cores": str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "diptych": diptych.__version__,
        "commit": _commit(),
    }


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _commit() -> str:
    """Of the checkout that this code runs from, `-edited` where its files are not those of the commit; an installed
    package in some other checkout is none of it."""
    folder = Path(diptych.__file__).resolve().parent
    if not (folder.parent.parent / ".git").exists():
        return "installed"
    commit = _git(folder, "rev-parse", "--short=12", "HEAD")
    if not commit:
        return "unknown"
    return f"{commit}-edited" if _git(folder, "status", "--porcelain", "--", ".") else commit


def _git(folder: Path, *arguments: str) -> str:
    """What it says; nothing where it fails."""
    try:
        answer = subprocess.run(
            ["git", *arguments], cwd=folder, capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return answer.stdout.strip()

"""The folder that a command writes into."""

from __future__ import annotations

import os
from pathlib import Path


def prepare_output(out: Path) -> None:
    """Makes the folder. Raises ValueError, before minutes of work, if it cannot be made or written to."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"--out {out} cannot be made: {error.strerror}; give another folder") from error
    if not os.access(out, os.W_OK):
        raise ValueError(f"--out {out} cannot be written to; give another folder")

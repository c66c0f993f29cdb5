"""What a run leaves besides its checkpoints: grids of samples and the morph, each whole or not there."""

from __future__ import annotations

import io
import shutil
from pathlib import Path

from PIL import Image
from torch import Tensor

from diptych.models.method import Method
from diptych.train.durable import publish_folder, replace_file, temporary_beside


def write_grid(path: Path, grid: Image.Image) -> None:
    """Writes a PNG, making its folder."""
    path.parent.mkdir(exist_ok=True)
    data = io.BytesIO()
    grid.save(data, format="PNG")
    replace_file(path, data.getvalue())


def write_morph(method: Method, morph: Path, weights: dict[str, Tensor] | None) -> None:
    """Writes a morph, taking the place of the one there only when complete. `weights`: see `Method.save_pretrained`."""
    temporary = temporary_beside(morph)
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        method.save_pretrained(str(temporary), weights=weights)
        for path in temporary.rglob("*"):
            if path.is_file():
                path.chmod(0o644)  # safetensors writes files that only their owner may read
        publish_folder(temporary, morph)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise

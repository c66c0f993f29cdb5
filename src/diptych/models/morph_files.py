"""The files of a morph: found, read strictly, replaced whole."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

import diptych

CONFIG, WEIGHTS = "config.json", "model.safetensors"
FORMAT = 1


def find_morph(path: str | Path) -> Path:
    """The folder of a morph: a path, the name of one that Diptych carries, or a Hub id (fetched)."""
    folder = Path(path)
    if (folder / CONFIG).is_file():
        return folder
    if folder.exists():
        raise ValueError(
            f"{folder} is not a morph: it has no {CONFIG}; give a folder written by diptych train, "
            "such as runs/demo/morph"
        )
    for root in carried_roots():
        if (root / str(path) / CONFIG).is_file():
            return root / str(path)
    parts = str(path).split("/")
    if len(parts) == 2 and all(parts) and not str(path).startswith("."):
        from huggingface_hub import snapshot_download

        try:
            return Path(snapshot_download(str(path), allow_patterns=[f"**{CONFIG}", f"**{WEIGHTS}"]))
        except Exception as error:
            raise ValueError(
                f"morph {str(path)!r} is no folder here, and could not be fetched from the Hub: {error}"
            ) from error
    carried = sorted(p.parent.name for root in carried_roots() for p in root.glob(f"*/{CONFIG}"))
    raise ValueError(
        f"there is no morph at {path}; give a folder written by diptych train, a Hub id, or one of: "
        f"{', '.join(carried) or 'none carried'}"
    )


def carried_roots() -> list[Path]:
    """Where the morphs that come with Diptych lie: inside the package, or beside it in a checkout."""
    package = Path(diptych.__file__).parent
    return [root for root in (package / "morphs", package.parent.parent / "morphs") if root.is_dir()]


def read_config(path: Path) -> dict[str, Any]:
    """A morph's config. Raises ValueError if it is damaged or of another format."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is not valid JSON ({error}); the morph is damaged: copy it again") from error
    if not isinstance(config, dict) or config.get("format") != FORMAT or not {"hashes", "recipe"} <= config.keys():
        raise ValueError(
            f"{path} is not the config of a morph of format {FORMAT}; train it again with this version of Diptych"
        )
    return config


def check_hashes(
    folder: Path, expected: Mapping[str, str], actual: Mapping[str, str], names: Mapping[str, str]
) -> None:
    """Raises ValueError if a frozen part is not the one that the morph was trained beside; `names`: what it names."""
    for part, wanted in expected.items():
        found = actual.get(part)
        if found != wanted:
            raise ValueError(
                f"{folder} was trained beside a {part.replace('_', ' ')} with hash {wanted[:16]}, but the one loaded "
                f"has {str(found)[:16]}; give the one it was trained with (it names {names.get(part)!r})"
            )


def load_tensors(own: Mapping[str, Tensor], path: Path) -> None:
    """Loads a file into these tensors, strictly; raises ValueError that lists all that does not match."""
    try:
        stored = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path} cannot be read ({error}); it is missing or damaged: copy the morph again") from error
    problems = [f"missing {name}" for name in own.keys() - stored.keys()]
    problems += [f"unexpected {name}" for name in stored.keys() - own.keys()]
    problems += [
        f"{name} has shape {tuple(stored[name].shape)}, expected {tuple(own[name].shape)}"
        for name in own.keys() & stored.keys()
        if stored[name].shape != own[name].shape
    ]
    if problems:
        raise ValueError(f"{path} does not fit the model of its config: " + "; ".join(sorted(problems)))
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(stored[name])


def replace_whole(path: Path, write: Callable[[Path], Any]) -> None:
    """Writes to a temporary name and renames, so that a reader never sees half a file."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        write(temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)

"""The files of a morph: found, read strictly, replaced whole."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

import diptych
from diptych.backbones.cache_folder import hash_file
from diptych.backbones.hub_loading import find_folder
from diptych.backbones.language import LanguageModel, load_language_model
from diptych.config import Recipe, build_recipe

CONFIG, WEIGHTS = "config.json", "model.safetensors"
FORMAT = 1
REQUIRED = {"hashes", "recipe", "weights_sha256"}


def find_morph(path: str | Path) -> Path:
    """The folder of a morph: a path, the name of one that Diptych carries, or a Hub id (fetched)."""
    folder = Path(path).expanduser()
    if (found := find_local_morph(path)) is not None:
        return found
    if folder.exists():
        raise ValueError(
            f"{folder} is not a morph: it has no {CONFIG}; give a folder written by diptych train, "
            "such as runs/demo/morph"
        )
    carried = sorted(p.parent.name for root in carried_roots() for p in root.glob(f"*/{CONFIG}"))
    parts = str(path).split("/")
    if len(parts) == 2 and all(parts) and not str(path).startswith("."):
        files = (f"**{CONFIG}", f"**{WEIGHTS}")
        return find_folder(str(path), what="morph", patterns=files, embedded=tuple(carried))
    raise ValueError(
        f"there is no morph at {path}; give a folder written by diptych train, a Hub id, or one of: "
        f"{', '.join(carried) or 'none carried'}"
    )


def find_local_morph(path: str | Path) -> Path | None:
    """As `find_morph`, of what is on this machine without a look into the Hub's cache; None: there is none."""
    own = Path(path).expanduser()
    folders = [own] if own.exists() else [root / str(path) for root in carried_roots()]
    return next((folder for folder in folders if (folder / CONFIG).is_file()), None)


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
    if not isinstance(config, dict) or config.get("format") != FORMAT or not config.keys() >= REQUIRED:
        raise ValueError(
            f"{path} is not the config of a morph of format {FORMAT}; train it again with this version of Diptych"
        )
    return config


def write_morph_files(
    folder: str | Path, tensors: Mapping[str, Tensor], *, recipe: Recipe, hashes: Mapping[str, str], **more: Any
) -> None:
    """Writes a morph's two files: the tensors in the recipe's `morph_dtype`, and a config that vouches for them.

    `more`: what else the config holds. The config's recipe names no folder of the machine that it was trained on.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    dtype = torch.bfloat16 if recipe.morph_dtype == "bfloat16" else torch.float32
    stored = {name: tensor.detach().to("cpu", dtype).contiguous() for name, tensor in tensors.items()}
    replace_whole(folder / WEIGHTS, lambda path: save_file(stored, path, metadata={"format": "pt"}))
    train = recipe.train.model_copy(update={"resume_from_checkpoint": None})
    portable = recipe.model_copy(update={"output_dir": ".", "cache_dir": None, "train": train})
    config = {
        "format": FORMAT,
        "diptych_version": diptych.__version__,
        "hashes": dict(hashes),
        "weights_sha256": hash_file(folder / WEIGHTS),
        **more,
        "recipe": portable.model_dump(mode="json"),
    }
    replace_whole(folder / CONFIG, lambda path: path.write_text(json.dumps(config, indent=2), encoding="utf-8"))


def read_recipe(folder: Path, config: Mapping[str, Any], *, trust_remote_code: bool = False) -> Recipe:
    """The recipe in a morph's config. Raises ValueError if it asks to run code of a repository, and nobody who loads
    the morph said that this code is trusted: a file may not decide over that."""
    recipe = build_recipe(config["recipe"], origin=str(folder / CONFIG))
    if recipe.trust_remote_code and not trust_remote_code:
        raise ValueError(
            f"{folder} asks to run code from the repository of {recipe.language_model!r}; if you trust that code, say "
            "so with --trust-remote-code (in Python: trust_remote_code=True)"
        )
    return recipe


def find_language(
    folder: Path, config: Mapping[str, Any], recipe: Recipe, given: str | LanguageModel | None
) -> LanguageModel:
    """The base language model of a morph: the one given, or what the recipe names. Its hash is compared before
    anything is built upon it. Raises ValueError that names the morph, the model and the remedy."""
    if isinstance(given, LanguageModel):
        language = given
    else:
        try:
            name = given or recipe.language_model
            language = load_language_model(name, trust_remote_code=recipe.trust_remote_code)
        except ValueError as error:
            hint = "" if given else "; or say where it lies with --language-model (in Python: language_model=)"
            raise ValueError(f"the language model of {folder}: {error}{hint}") from error
    wanted = {"language_model": config["hashes"].get("language_model", "")}
    check_hashes(folder, wanted, {"language_model": language.hash}, {"language_model": recipe.language_model})
    return language


def check_hashes(
    folder: Path, expected: Mapping[str, str], actual: Mapping[str, str], names: Mapping[str, str]
) -> None:
    """Raises ValueError if a frozen part is not the one that the morph was trained beside; `names`: what it names."""
    for part, wanted in expected.items():
        found = actual.get(part)
        if found != wanted:
            raise ValueError(
                f"{folder} was trained beside a {part.replace('_', ' ')} with hash {wanted[:16]}, but the one loaded "
                f"has {str(found)[:16]}; give the one it was trained with (it names {names.get(part)!r}"
                f"{'; with --language-model, if it lies elsewhere' if part == 'language_model' else ''})"
            )


def load_tensors(own: Mapping[str, Tensor], path: Path, *, sha256: str, optional: Collection[str] = ()) -> set[str]:
    """Loads a file into these tensors, strictly, and gives the names of those that it filled; `optional` ones may be
    missing on either side. Raises ValueError if its SHA-256 is another, and one that lists all that does not match."""
    try:
        if (found := hash_file(path)) != sha256:
            raise ValueError(
                f"{path} is damaged: its SHA-256 begins with {found[:16]}, its config says {sha256[:16]}; "
                "copy the morph again"
            )
        stored = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path} cannot be read ({error}); it is missing or damaged: copy the morph again") from error
    found_names = own.keys() & stored.keys()
    problems = [f"missing {name}" for name in own.keys() - stored.keys() - set(optional)]
    problems += [f"unexpected {name}" for name in stored.keys() - own.keys() - set(optional)]
    problems += [
        f"{name} has shape {tuple(stored[name].shape)}, expected {tuple(own[name].shape)}"
        for name in found_names
        if stored[name].shape != own[name].shape
    ]
    if problems:
        raise ValueError(f"{path} does not fit the model of its config: " + "; ".join(sorted(problems)))
    with torch.no_grad():
        for name in found_names:
            own[name].copy_(stored[name])
    return found_names


def tensor_names(path: Path) -> set[str]:
    """Names of the tensors in a file. Raises ValueError if it is missing or damaged."""
    try:
        with safe_open(path, "pt") as file:
            return set(file.keys())
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path} cannot be read ({error}); it is missing or damaged: copy the morph again") from error


def replace_whole(path: Path, write: Callable[[Path], Any]) -> None:
    """Writes to a temporary name and renames, so that a reader never sees half a file."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        write(temporary)
        temporary.chmod(0o644)  # safetensors writes files that only their owner may read
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)

"""Loads Hugging Face models from a local folder or the Hub: safetensors only, errors in the user's words."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError
from safetensors import SafetensorError
from transformers.utils import logging as transformers_logging

HUB_FILES: tuple[str, ...] = ("*.json", "*.safetensors", "*.txt", "*.model", "*.jinja", "*.tiktoken")
HUB_CODE = "*.py"
HUB_DUPLICATES = ("*/*", "consolidated*")
"""The same weights once more in another format, as some repositories hold them."""
ANSWER_SECONDS = 5.0
"""So long the Hub has to say whether it has a repository."""


@contextmanager
def quiet_loading() -> Iterator[None]:
    """Without transformers' progress bars: what is loaded from disk is there in a moment."""
    was_on = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_on:
            transformers_logging.enable_progress_bar()


@contextmanager
def quiet_diffusers() -> Iterator[None]:
    """Without diffusers' words on config keys that it wrote itself, or that other classes of a family use."""
    from diffusers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


def resolve_folder(name: str, *, what: str, embedded: tuple[str, ...] = (), trust_remote_code: bool = False) -> Path:
    """The local folder of a transformers model: `name` itself if it is one, else the Hub's snapshot of that id.

    Raises ValueError that says what was looked for where: no such folder, no such id, no network, no safetensors.
    """
    patterns = (*HUB_FILES, HUB_CODE) if trust_remote_code else HUB_FILES
    folder = find_folder(name, what=what, embedded=embedded, patterns=patterns, but_not=HUB_DUPLICATES)
    if not (folder / "config.json").is_file():
        raise ValueError(f"{what} {name!r}: the folder has no config.json; save a model there with save_pretrained")
    _require_safetensors(folder, name, what)
    return folder


def find_folder(
    name: str, *, what: str, patterns: tuple[str, ...], but_not: tuple[str, ...] = (), embedded: tuple[str, ...] = ()
) -> Path:
    """The folder `name`, or the Hub's snapshot of that id with the files of these patterns, fetched.

    Raises ValueError that says what was looked for where: no such folder, no such id, no network.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    near = difflib.get_close_matches(name, embedded, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else f"; embedded: {', '.join(embedded)}" if embedded else ""
    if name.startswith((".", "/", "~")) or name.count("/") > 1 or path.is_file():
        raise ValueError(f"{what} {name!r}: there is no such folder{hint}")
    try:
        return Path(snapshot_download(name, allow_patterns=list(patterns), ignore_patterns=list(but_not) or None))
    except HFValidationError as error:
        raise ValueError(f"{what} {name!r} is neither a folder nor a Hugging Face id{hint}") from error
    except Exception as error:
        if not is_of_the_hub(error):
            raise
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(
            f"{what} {name!r} is no folder and could not be fetched from the Hugging Face Hub: {reason}{hint}. "
            "Check the name and the network, or give the folder of a saved model"
        ) from error


def is_of_the_hub(error: Exception) -> bool:
    """Whatever the Hub's client meets (no network, no such id, a gated one, a full disk) is an OSError or of httpx."""
    return isinstance(error, OSError) or type(error).__module__.startswith(("httpx", "huggingface_hub"))


def fetch_file(name: str, path: str) -> Path:
    """One small file of a repository of the Hub, or where the Hub does not answer, as it was fetched before.

    The Hub is asked for the repository once: `hf_hub_download` asks six times, for half a minute, before it says that
    there is no network, and whoever misspelt a name waits for it. Raises what the Hub's client raises.
    """
    try:
        HfApi().model_info(name, timeout=ANSWER_SECONDS)
    except (HFValidationError, RepositoryNotFoundError):
        raise
    except Exception as error:
        if not is_of_the_hub(error):
            raise
        try:
            return Path(hf_hub_download(name, path, local_files_only=True))
        except OSError:
            raise error from None
    return Path(hf_hub_download(name, path))


def load_pretrained(auto_class: Any, folder: Path, *, name: str, what: str, **options: Any) -> Any:
    """`auto_class.from_pretrained(folder)` from local files only, safetensors only; all weights must fit.

    Raises ValueError that names the model: a family unknown to transformers, code that was not trusted, missing or
    damaged files, tensors that are missing or of another shape.
    """
    is_model = "dtype" in options
    if is_model:
        options |= {"use_safetensors": True, "output_loading_info": True}
    try:
        with quiet_loading():
            loaded = auto_class.from_pretrained(folder, local_files_only=True, **options)
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(f"{what} {name!r} could not be loaded from {folder}: {reason}") from error
    if not is_model:
        return loaded
    model, info = loaded
    if missing := sorted(info["missing_keys"]):
        raise ValueError(f"{what} {name!r}: {folder} lacks {len(missing)} weights: {', '.join(missing[:8])} ...")
    if mismatched := sorted(str(key) for key in info["mismatched_keys"]):
        raise ValueError(f"{what} {name!r}: weights of another shape in {folder}: {', '.join(mismatched[:8])}")
    return model


def _require_safetensors(folder: Path, name: str, what: str) -> None:
    if not any(folder.glob("*.safetensors")):
        raise ValueError(
            f"{what} {name!r} has no *.safetensors; pickled weights (.bin, .pth) are never read: convert the model "
            "with save_pretrained where you trust it"
        )

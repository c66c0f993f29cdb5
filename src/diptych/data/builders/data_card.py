"""A built data set: a folder that appears whole or not at all, with a card of its counts, licences and splits."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

CARD_NAME = "card.json"


@dataclass(frozen=True)
class Licence:
    """Where pictures or words come from, and under which terms."""

    source: str
    version: str
    licence: str
    origin: str
    used_for: str


def with_changed_pictures(licences: tuple[Licence, ...]) -> tuple[Licence, ...]:
    """For a set that recolours pictures or makes scenes of them: it says so of pictures; names stay as they are."""
    return tuple(
        replace(entry, used_for=f"{entry.used_for}; changed here") if "pictures" in entry.used_for else entry
        for entry in licences
    )


@dataclass(frozen=True)
class DataCard:
    """What a data set holds. `settings` are all that its content follows from: equal settings, equal data set."""

    name: str
    description: str
    settings: dict[str, Any]
    counts: dict[str, int]
    num_samples: dict[str, int]
    splits: dict[str, str]
    licences: tuple[Licence, ...]

    def to_markdown(self) -> str:
        lines = [f"# {self.name}", "", self.description, "", "| what | count |", "|---|---|"]
        lines += [f"| {what} | {count:,} |" for what, count in self.counts.items()]
        lines += [f"| samples in `{name}` | {count:,} |" for name, count in self.num_samples.items()]
        lines += ["", "## Splits", ""] + [f"- `{name}`: {text}" for name, text in self.splits.items()]
        lines += ["", "## Licences", "", "| source | version | licence | used for |", "|---|---|---|---|"]
        lines += [
            f"| [{entry.source}]({entry.origin}) | {entry.version} | {entry.licence} | {entry.used_for} |"
            for entry in self.licences
        ]
        lines += ["", "## Settings", ""] + [f"- {key}: {json.dumps(value)}" for key, value in self.settings.items()]
        return "\n".join(lines) + "\n"


def write_card(folder: Path, card: DataCard) -> None:
    (folder / CARD_NAME).write_text(json.dumps(asdict(card), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    (folder / "card.md").write_text(card.to_markdown(), encoding="utf-8")


def read_card(folder: str | Path) -> DataCard:
    """The card of a built data set. Raises ValueError if the folder has none, or a damaged one."""
    path = Path(folder) / CARD_NAME
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        licences = tuple(Licence(**entry) for entry in entries.pop("licences"))
        return DataCard(**entries, licences=licences)
    except FileNotFoundError:
        raise ValueError(f"{folder} is no built data set: it has no {CARD_NAME}") from None
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"card {path} is damaged ({error}); delete the folder and build it again") from error


class OtherSettingsError(ValueError):
    """A folder holds a built data set, but of other settings, or of another version of its builder."""


def is_built(out: Path, settings: dict[str, Any]) -> bool:
    """Whether `out` already holds the data set with these settings, all its sample files included.

    Raises ValueError if it holds anything else: a built set of other settings (OtherSettingsError), or files of the
    user.
    """
    if not out.exists() and not out.is_symlink():
        return False
    if not out.is_dir():
        raise ValueError(f"{out} is a file; give a folder for the data set")
    if not any(out.iterdir()):
        return False
    if not (out / CARD_NAME).is_file():
        raise ValueError(f"folder {out} is not empty and holds no data set; give another folder, or empty it")
    card = read_card(out)
    theirs = json.loads(json.dumps(settings))
    if card.settings != theirs:
        differing = sorted(
            key for key in {*card.settings, *theirs} if card.settings.get(key, ...) != theirs.get(key, ...)
        )
        raise OtherSettingsError(
            f"folder {out} holds a data set with other settings ({', '.join(differing)}); "
            "give another folder, or delete it"
        )
    missing = [name for name in card.num_samples if not (out / name).is_file()]
    if missing:
        raise ValueError(f"the data set in {out} has lost {', '.join(missing)}; delete the folder and build it again")
    return True


@contextmanager
def building(out: Path) -> Iterator[Path]:
    """A temporary folder beside `out` that takes its place when the block ends, and is removed if it fails."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{out.name}.building-", dir=out.parent))
    except OSError as error:
        raise ValueError(f"folder {out} cannot be made: {error.strerror}") from error
    try:
        yield folder
        folder.chmod(0o755)
        os.replace(folder, out)
    except OSError as error:
        raise ValueError(f"data set {out} could not be written: {error}; nothing is left of it") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)

"""The folder of a run: rows appended batch by batch and forced to the disk, images beside them, the stamp first.

stamp.json        what the run is made with, and its suites
results.jsonl     one row per example; a line that a crash cut short is dropped at the next call
images/SUITE/     drawn images, named by rows
scores.json, report.html    made of the rows, when all are there
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from PIL import Image

from diptych.evaluate.stamp import Stamp, stamp_differences
from diptych.evaluate.suite import Row
from diptych.models.morph_files import replace_whole

STAMP, ROWS, SCORES, REPORT = "stamp.json", "results.jsonl", "scores.json", "report.html"
_NUM_TOLD = 6


class ResultFiles:
    """A run's folder, held by one process. By `open_results`."""

    def __init__(self, folder: Path, stamp: Stamp) -> None:
        self.folder = folder
        self.stamp = stamp
        self.rows: dict[tuple[str, str], Row] = {
            (row.suite, row.id): row
            for row in read_rows(folder, repair=True)
            if all((folder / image).is_file() for image in row.images)  # one whose image is gone is asked again
        }

    def of_suite(self, suite: str) -> dict[str, Row]:
        """Rows by id of the example."""
        return {id: row for (name, id), row in self.rows.items() if name == suite}

    def save_image(self, suite: str, id: str, number: int, image: Image.Image) -> str:
        """Writes a PNG to the disk; gives its path relative to the folder."""
        words = re.sub(r"[^A-Za-z0-9]+", "-", id).strip("-")[:60]
        path = f"images/{suite}/{words}-{hashlib.sha256(id.encode()).hexdigest()[:8]}-{number}.png"
        (self.folder / path).parent.mkdir(parents=True, exist_ok=True)
        replace_whole(self.folder / path, lambda partial: image.save(partial, format="PNG"))
        return path

    def append(self, rows: Sequence[Row]) -> None:
        """One write and one fsync; what was appended survives whatever comes."""
        lines = "".join(json.dumps(asdict(row), ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
        with (self.folder / ROWS).open("ab") as file:
            file.write(lines.encode())
            file.flush()
            os.fsync(file.fileno())
        self.rows |= {(row.suite, row.id): row for row in rows}

    def write_scores(self, scores: Mapping[str, Any]) -> None:
        write_json(self.folder / SCORES, scores)

    def write_report(self, page: str) -> None:
        replace_whole(self.folder / REPORT, lambda path: path.write_text(page, encoding="utf-8"))


@contextmanager
def open_results(folder: Path, stamp: Stamp) -> Iterator[ResultFiles]:
    """Starts or goes on with a run. `stamp["suites"]`: by name, of the suites asked for; more may join later.

    Raises ValueError if another process holds the folder, and if a run with another stamp stands there, saying what
    differs.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ValueError(
                f"another evaluation is writing into {folder}; wait for it, or give another --out"
            ) from error
        stamp = _join(folder, stamp)
        write_json(folder / STAMP, stamp)
        (folder / ROWS).touch()
        _sync_names(folder)
        yield ResultFiles(folder, stamp)


def _join(folder: Path, stamp: Stamp) -> Stamp:
    if not (folder / STAMP).exists():
        if (folder / ROWS).exists():
            raise ValueError(f"{folder} holds {ROWS} without {STAMP}: nobody knows of what; give another --out")
        return stamp
    earlier = read_json(folder / STAMP)
    shared = [name for name in stamp["suites"] if name in earlier["suites"]]
    one, other = (_decisive(s, shared) for s in (earlier, stamp))
    if found := stamp_differences(one, other):
        told = "; ".join(found[:_NUM_TOLD]) + (f"; and {len(found) - _NUM_TOLD} more" if found[_NUM_TOLD:] else "")
        raise ValueError(f"{folder} holds a run made otherwise ({told}); give another --out, or delete it")
    return {**stamp, "suites": earlier["suites"] | stamp["suites"]}


def _decisive(stamp: Stamp, suites: Sequence[str]) -> Stamp:
    """What of a stamp may change a score: not how the morph was named, whose hash stands there, nor how many cores."""
    machine = {key: value for key, value in stamp.get("machine", {}).items() if key != "cores"}
    kept = {key: value for key, value in stamp.items() if key != "morph"}
    return {**kept, "machine": machine, "suites": {name: stamp["suites"][name] for name in suites}}


def _sync_names(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_rows(folder: Path, *, repair: bool = False) -> list[Row]:
    """All rows; where an example stands twice, the later one counts. A last line without an end was cut by a crash: it
    is passed over, and with `repair` taken off the file.

    Raises ValueError, naming the line, for any other that is no row.
    """
    path = folder / ROWS
    if not path.exists():
        return []
    data = path.read_bytes()
    whole = data.rfind(b"\n") + 1
    if repair and whole < len(data):
        os.truncate(path, whole)
    rows = []
    for number, line in enumerate(data[:whole].splitlines(), start=1):
        try:
            entry: dict[str, Any] = json.loads(line)
            entry |= {key: tuple(entry[key]) for key in ("inputs", "images")}
            rows.append(Row(**entry))
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{path}, line {number}, is no row of results ({error}); delete the folder") from error
    return rows


def read_json(path: Path) -> dict[str, Any]:
    """Raises ValueError for a file that is missing or damaged."""
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise ValueError(f"{path.parent} holds no {path.name}; give the --out of a diptych eval") from None
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({error}); evaluate again into another folder") from error


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    content = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    replace_whole(path, lambda partial: partial.write_text(content, encoding="utf-8"))

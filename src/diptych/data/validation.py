"""Everything of a recipe's data read once, before a training meets it: counts, and every problem by source and kind."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from diptych.data.recently_used import RecentlyUsed
from diptych.data.references import content_hash, memory_key, open_reference
from diptych.data.samples import RecordError, Sample
from diptych.data.sources import Source
from diptych.sequence import Sequence as Stream
from diptych.sequence import TextSpan

EXAMPLES_KEPT = 3
HELD_OUT = "held out"
UNREAD = "held-out record"
Progress = Callable[[str, int, int], None]
BuildStream = Callable[[Sample], Stream]
LookedAt = RecentlyUsed[str, "str | ValueError"]
IMAGES_REMEMBERED = 100_000
"""What was found of an image, so that one that many samples show is opened once."""


@dataclass
class SourceReport:
    """What one source holds. `problems`: by kind, how many samples, and the first few of them in words."""

    name: str
    num_records: int
    num_samples: int = 0
    context_images: int = 0
    target_images: int = 0
    tokens: int = 0
    supervised_tokens: int = 0
    longest: int = 0
    shared_images: int = 0
    problems: dict[str, tuple[int, list[str]]] = field(default_factory=dict)

    @property
    def num_bad(self) -> int:
        return sum(count for count, _ in self.problems.values())

    def add_problem(self, kind: str, reason: str) -> None:
        count, examples = self.problems.get(kind, (0, []))
        self.problems[kind] = (count + 1, [*examples, reason][:EXAMPLES_KEPT])

    def as_dict(self) -> dict[str, Any]:
        numbers = {name: value for name, value in vars(self).items() if name != "problems"}
        problems = {kind: {"count": count, "examples": shown} for kind, (count, shown) in self.problems.items()}
        return numbers | {"problems": problems}


def validate_sources(
    sources: Sequence[Source],
    *,
    held_out: Sequence[Source] = (),
    build_stream: BuildStream | None = None,
    look_at_images: bool = True,
    progress: Progress = lambda what, done, total: None,
) -> list[SourceReport]:
    """Reads every record, opens every image, and builds every sequence (`build_stream`: as training would).

    A sample has one problem, the first that is found: a bad record (RecordError's kinds), "roles" (turns that do not
    alternate, or no answer), "image" (unreadable or huge), "held out" (the same words and images stand in `held_out`),
    "too long" or "no loss" (of `build_stream`). `shared_images`: images that held-out samples show too. A file of
    `held_out` that stands there more than once is read in more than one way. Where a record or an image of it can be
    read in none, nothing can be said of it: its file gets a report too, at the end, with the problem "held-out record".
    """
    kept_samples, kept_images, unread = _held_out_contents(held_out, look_at_images, progress)
    reports = []
    images = _looked_at()
    for source in sources:
        report = SourceReport(source.config.path, len(source))
        for number, sample in _samples(source, progress):
            where = source.where(number)
            if isinstance(sample, RecordError):
                report.add_problem(sample.kind, str(sample))
                continue
            if (wrong := find_role_problem(sample)) is not None:
                report.add_problem("roles", f"{where}: {wrong}")
                continue
            seen = [_look(image, images, look_at_images) for image in sample.images]
            broken = next((one for one in seen if isinstance(one, ValueError)), None)
            if broken is not None:
                report.add_problem("image", f"{where}: {broken}")
                continue
            hashes = [one for one in seen if isinstance(one, str)]
            if _content(sample, hashes) in kept_samples:
                report.add_problem(HELD_OUT, f"{where}: a held-out sample has the same words and images")
                continue
            report.shared_images += sum(one in kept_images for one in hashes)
            try:
                stream = None if build_stream is None else build_stream(sample)
            except ValueError as error:
                report.add_problem(str(getattr(error, "kind", "unusable")), f"{where}: {error}")
                continue
            _count(report, sample, stream)
        reports.append(report)
    return reports + unread


def find_role_problem(sample: Sample) -> str | None:
    """What is wrong with whose turn it is: a system turn that is not the first, two turns of one role in a row, no
    answer at the end."""
    roles = [message.role for message in sample.messages]
    if "system" in roles[1:]:
        return "a system turn stands behind the first turn"
    turns = [role for role in roles if role != "system"]
    for place, (one, other) in enumerate(pairwise(turns), start=2):
        if one == other:
            return f"turn {place} is the {other}'s like the one before it"
    if not turns or turns[-1] != "assistant":
        return "nobody answers at the end"
    return None


def _samples(source: Source, progress: Progress) -> Iterator[tuple[int, Sample | RecordError]]:
    total = len(source)
    for number in range(total):
        if number % 256 == 0:
            progress(source.config.path, number, total)
        try:
            yield number, source[number]
        except RecordError as error:
            yield number, error
    progress(source.config.path, total, total)


def _held_out_contents(
    sources: Sequence[Source], look_at_images: bool, progress: Progress
) -> tuple[set[str], set[str], list[SourceReport]]:
    """Of held-out samples: words and images together, and each image; of files with unread records, a report."""
    contents, images = set(), set()
    unread: dict[str, list[dict[int, str]]] = {}
    seen = _looked_at()
    for source in sources:
        bad: dict[int, str] = {}
        for number, sample in _samples(source, progress):
            if isinstance(sample, RecordError):
                bad[number] = str(sample)
                continue
            found = [_look(image, seen, look_at_images) for image in sample.images]
            hashes = [one for one in found if isinstance(one, str)]
            images.update(hashes)
            broken = next((one for one in found if isinstance(one, ValueError)), None)
            if broken is None:
                contents.add(_content(sample, hashes))
            else:
                bad[number] = f"{source.where(number)}: {broken}"
        unread.setdefault(source.config.path, []).append(bad)
    lengths = {source.config.path: len(source) for source in sources}
    reports = [_unread_report(path, lengths[path], ways) for path, ways in unread.items()]
    return contents, images, [report for report in reports if report.problems]


def _unread_report(path: str, length: int, ways: list[dict[int, str]]) -> SourceReport:
    """`ways`: of each way of reading the file, what was wrong with which records."""
    in_none = sorted(set.intersection(*map(set, ways)))
    report = SourceReport(f"{path} (held out)", length, length - len(in_none))
    for number in in_none:
        report.add_problem(UNREAD, ways[0][number])
    return report


def _looked_at() -> LookedAt:
    return RecentlyUsed(IMAGES_REMEMBERED)


def _look(image: str, seen: LookedAt, look: bool) -> str | ValueError:
    """The content's hash of an image that can be opened; its name where nobody is to look."""

    def open_it() -> str | ValueError:
        try:
            open_reference(image)
            return content_hash(image)
        except ValueError as error:
            return error

    return seen.get_or_make(memory_key(image), open_it) if look else image


def _content(sample: Sample, hashes: Sequence[str]) -> str:
    words = [(message.role, message.parts) for message in sample.messages]
    return hashlib.sha256(repr((words, list(hashes))).encode()).hexdigest()


def _count(report: SourceReport, sample: Sample, stream: Stream | None) -> None:
    report.num_samples += 1
    num_targets = len(sample.target_images())
    report.target_images += num_targets
    report.context_images += len(sample.images) - num_targets
    if stream is None:
        return
    report.tokens += len(stream)
    report.longest = max(report.longest, len(stream))
    for span in stream.spans:
        if isinstance(span, TextSpan):
            report.supervised_tokens += sum(span.loss)
        elif span.is_target:
            report.supervised_tokens += len(span)

"""The contract of a suite: what it needs, which examples it holds, how a morph answers them, what an answer scores.

A suite is a class with the members of `Suite`, named in suites/known_suites.py. The harness chooses examples, asks in
batches, writes a row for each, and sums up: no suite opens a file of results.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

from PIL import Image

from diptych.backbones.cache_folder import hash_file
from diptych.data.images import open_image
from diptych.data.samples import Message
from diptych.evaluate.answering import Sampling
from diptych.evaluate.bootstrap import Estimate, estimate_mean
from diptych.evaluate.naming import normalise_answer
from diptych.evaluate.scores import Score
from diptych.models.conversation import Ability, Conversation

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how many are done, and of how many."""
Scores = dict[str, float]
"""Of one example, by name of the metric; finite. A metric that says nothing of an example is left out."""
REMEDIES: Mapping[Ability, str] = {
    "reads": "give one of method xfusion or vpit",
    "writes": "give one of method xfusion or vpit, which stands on a language model",
    "draws": "give one of method xfusion, or one of vpit with a pixel decoder (--pixel-decoder emoji-pixels; to train "
    "one: diptych train recipes/emoji-pixel-decoder.yaml)",
    "reconstructs": "give one of method xfusion, a pixel decoder, or one of vpit that has one (--pixel-decoder)",
}


@dataclass(frozen=True)
class Needs:
    """Abilities of the morph; embedded assets; packages by the extra of diptych that brings them."""

    abilities: tuple[Ability, ...] = ()
    assets: tuple[str, ...] = ()
    packages: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Example:
    """One thing that is asked, and what is right.

    `id`: the same wherever the same thing is asked, and unique in its suite. `messages`: parts are texts and indices of
    `images`, which are files. `reference`: the right answer in words; `reference_image`: a file. `kind`: of question;
    scores are also told for each kind. `choices`: those that the question itself gives, in its order.
    """

    id: str
    messages: tuple[Message, ...]
    images: tuple[Path, ...] = ()
    reference: str = ""
    reference_image: Path | None = None
    kind: str = ""
    choices: tuple[str, ...] = ()

    def conversation(self) -> Conversation:
        """As `generate_batch` takes it, images opened."""
        opened = [open_image(path) for path in self.images]
        return [
            {"role": m.role, "content": [part if isinstance(part, str) else opened[part] for part in m.parts]}
            for m in self.messages
        ]

    def group(self) -> tuple[Path, ...] | str:
        """What questions on the same images share; of those without images, each stands alone."""
        return self.images or self.id

    def question(self) -> str:
        """All that is said in words."""
        return "".join(part for message in self.messages for part in message.parts if isinstance(part, str))


@dataclass(frozen=True)
class Answer:
    """What the morph made of an example."""

    text: str = ""
    images: tuple[Image.Image, ...] = ()


@dataclass(frozen=True)
class Row:
    """One example, answered and scored, as it stands in results.jsonl. `images`: files of the answer, relative to the
    results' folder."""

    suite: str
    id: str
    kind: str
    question: str
    inputs: tuple[str, ...]
    reference: str
    answer: str
    images: tuple[str, ...]
    scores: Scores


@dataclass(frozen=True)
class Metric:
    """`words`: what it counts. `unit`: "share" is shown in per cent."""

    name: str
    words: str
    unit: Literal["share", "dB", ""] = "share"
    higher_is_better: bool = True


@dataclass(frozen=True)
class Baselines:
    """What one gets who always gives the commonest answer, and who guesses; None: there is no such thing."""

    majority: float | None = None
    chance: float | None = None


NO_BASELINES = Baselines()


@dataclass(frozen=True)
class MetricScore:
    """A metric over all examples (or those of a kind); `interval`: 95%, None where a suite knows none."""

    mean: float
    interval: tuple[float, float] | None
    num: int
    baselines: Baselines

    @classmethod
    def of(cls, found: Estimate, baselines: Baselines = NO_BASELINES) -> MetricScore:
        return cls(found.mean, found.interval, found.num, baselines)

    def as_dict(self) -> dict[str, Any]:
        return {
            "mean": self.mean,
            "interval_95": None if self.interval is None else list(self.interval),
            "n": self.num,
            "majority": self.baselines.majority,
            "chance": self.baselines.chance,
        }


class Suite(Protocol):
    """What the harness asks of a suite. `version` is raised when the same answers would be scored otherwise; `words`
    tell a reader how it is asked and scored; the first of `metrics` is the headline."""

    name: str
    version: int
    words: str
    needs: Needs
    metrics: tuple[Metric, ...]

    def load_examples(self, progress: Progress) -> list[Example]:
        """All examples, the same on every machine. Raises ValueError for data that is missing or damaged."""
        ...

    def prepare(self, morph: Any, progress: Progress) -> None:
        """Called once before the first answer: loads what judges answers, such as an image encoder."""
        ...

    def answer(self, morph: Any, examples: Sequence[Example], sampling: Sampling) -> list[Answer]:
        """One batch, by public calls of the morph (answering.py). The seed is the batch's own."""
        ...

    def score(self, examples: Sequence[Example], answers: Sequence[Answer]) -> list[Scores]:
        """Of one batch."""
        ...

    def baselines(self, examples: Sequence[Example]) -> dict[str, Baselines]:
        """By metric, over these examples: all of a run, or those of one kind."""
        ...

    def summarise(self, examples: Sequence[Example], rows: Sequence[Row], folder: Path) -> dict[str, MetricScore]:
        """Scores over these examples and their rows, in the same order; `summarise_means` for metrics that are means
        over examples. What is of a set as a whole (KID, diversity) reads the rows' images in `folder`."""
        ...


@runtime_checkable
class Judged(Protocol):
    """A suite with judges besides its examples: those that the user gives, a gallery. `judge_hashes`: SHA-256 of each
    by name, once the examples are loaded; they stand in the stamp."""

    judge_hashes: Mapping[str, str]


@runtime_checkable
class Exporting(Protocol):
    """A suite whose answers others score."""

    def export(self, rows: Sequence[Row], folder: Path) -> None:
        """Once all rows are there: a folder of the suite's name beside the results, as the keepers' scorer reads it.
        `folder`: of the results."""
        ...


@dataclass(frozen=True)
class SuiteResult:
    """All of a suite's rows, in the order of their examples, and the scores: over all, and by kind of question."""

    suite: Suite
    examples: list[Example]
    rows: list[Row]
    scores: dict[str, MetricScore]
    by_kind: dict[str, dict[str, MetricScore]]

    def as_dict(self) -> dict[str, Any]:
        return {
            "words": self.suite.words,
            "metrics": [asdict(metric) for metric in self.suite.metrics],
            "headline": self.suite.metrics[0].name,
            "n": len(self.rows),
            "scores": {name: score.as_dict() for name, score in self.scores.items()},
            "kinds": {
                kind: {name: score.as_dict() for name, score in scores.items()} for kind, scores in self.by_kind.items()
            },
        }


def check_needs(suite: Suite, morph: Any) -> None:
    """Raises ValueError with what the morph or the environment lacks, and how to get it; nothing is fetched."""
    for ability in suite.needs.abilities:
        if ability not in morph.abilities:
            raise ValueError(
                f"suite {suite.name} needs a morph that {ability}, which this one does not; {REMEDIES[ability]}"
            )
    for package, extra in suite.needs.packages.items():
        if importlib.util.find_spec(package) is None:
            raise ValueError(f"suite {suite.name} needs {package}: pip install 'diptych[{extra}]'")


def summarise_means(suite: Suite, examples: Sequence[Example], rows: Sequence[Row]) -> dict[str, MetricScore]:
    """Each metric as the mean over the rows that have it, with a bootstrap interval; a metric of none is left out.
    Questions on the same images are resampled together."""
    baselines = suite.baselines(examples)
    summary: dict[str, MetricScore] = {}
    for metric in suite.metrics:
        told = [
            (row.scores[metric.name], e.group())
            for e, row in zip(examples, rows, strict=True)
            if metric.name in row.scores
        ]
        if told:
            values, groups = zip(*told, strict=True)
            found = estimate_mean(values, groups=groups)
            if metric.unit == "share" and found.mean in (0.0, 1.0):  # of which resamples know no spread
                found = replace(found, interval=Score(found.mean, len(set(groups)), chance=0.0).interval)
            own = baselines.get(metric.name, NO_BASELINES)
            summary[metric.name] = MetricScore.of(found, own)
    return summary


def answer_baselines(examples: Sequence[Example], *, among: Sequence[Example]) -> Baselines:
    """Of right answers in words, each kind of question for itself: the share of its commonest answer in `examples`, and
    of a guess among its answers in `among`, the whole suite. Where a question gives choices, an answer is its place
    among them, and those are guessed from."""
    majority = chance = 0.0
    for kind in {example.kind for example in examples}:
        own = [example for example in examples if example.kind == kind]
        num_answers = len({_answer_class(example) for example in among if example.kind == kind})
        majority += max(Counter(_answer_class(example) for example in own).values())
        chance += sum(1 / (len(example.choices) or num_answers) for example in own)
    return Baselines(majority / len(examples), chance / len(examples))


def _answer_class(example: Example) -> str | int:
    return example.choices.index(example.reference) if example.choices else normalise_answer(example.reference)


def choose_examples(examples: Sequence[Example], limit: int | None, *, suite: str) -> list[Example]:
    """The examples of a run, alike in length side by side, so that a batch waits for no long one. `limit`: so many,
    drawn by the hash of their ids, one of each kind first: always the same, and those of a smaller limit among those of
    a larger.

    Raises ValueError for an id that stands twice.
    """
    twice = [id for id, count in Counter(example.id for example in examples).items() if count > 1]
    if twice:
        raise ValueError(f"suite {suite} holds {twice[0]!r} twice; every example needs an id of its own")
    drawn = sorted(examples, key=lambda e: hashlib.sha256(f"{suite}:{e.id}".encode()).digest())
    first = {example.kind: example.id for example in reversed(drawn)}
    drawn = sorted(drawn, key=lambda e: first[e.kind] != e.id)[:limit]
    return sorted(drawn, key=lambda e: (len(e.images), len(e.question()), e.id))


def with_shuffled_images(examples: Sequence[Example], *, seed: int = 0) -> list[Example]:
    """Each example with other images than its own, those of an example of its kind where there are such: who needs the
    image to answer falls to chance. Raises ValueError where no example of the run has others to give."""
    chance = random.Random(seed)
    places = {images: chance.random() for images in sorted({example.images for example in examples})}
    groups: dict[tuple[str, int], list[Example]] = {}
    for example in sorted(examples, key=lambda e: (places[e.images], e.id)):
        groups.setdefault((example.kind, len(example.images)), []).append(example)
    shuffled: dict[str, Example] = {}
    for (_, num), own in groups.items():
        step = max(Counter(example.images for example in own).values())  # past all that show the same
        for example, giver in zip(own, [*own[step:], *own[:step]], strict=True):
            images = giver.images if giver.images != example.images else _other_images(example, list(places), seed)
            if images is None and num:
                raise ValueError(f"no other example of the run has {num} images to give {example.id!r}; raise --limit")
            shuffled[example.id] = replace(example, images=images or ())
    return [shuffled[example.id] for example in examples]


def _other_images(example: Example, among: Sequence[tuple[Path, ...]], seed: int) -> tuple[Path, ...] | None:
    others = [images for images in among if len(images) == len(example.images) and images != example.images]
    return random.Random(f"{seed}:{example.id}").choice(others) if others else None


def name_and_size(path: Path) -> str:
    """A file told without reading it: of a large set of which little is asked."""
    return f"{path.name}, {path.stat().st_size} bytes"


def prompt_set_hash(examples: Sequence[Example], *, tell_file: Callable[[Path], str] = hash_file) -> str:
    """SHA-256 over all that is asked and all that is right, images by their bytes (`tell_file`), whatever the order."""
    hashes: dict[Path, str] = {}

    def content(path: Path | None) -> str:
        if path is None:
            return ""
        if path not in hashes:
            hashes[path] = tell_file(path)
        return hashes[path]

    entries = [
        {
            "id": e.id,
            "kind": e.kind,
            "messages": [[message.role, message.parts] for message in e.messages],
            "images": [content(path) for path in e.images],
            "right": [e.reference, content(e.reference_image), e.choices],
        }
        for e in sorted(examples, key=lambda e: e.id)
    ]
    return hashlib.sha256(json.dumps(entries).encode()).hexdigest()

"""The scores of a run: those of the demo, of an autoencoder's training, and of evaluations of its morph."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diptych.backbones.weight_hash import hash_folder
from diptych.evaluate.result_files import SCORES, STAMP, read_json
from diptych.evaluate.scored_suites import read_scored_suites
from diptych.evaluate.suite import Baselines, Metric, MetricScore
from diptych.studies.demo_report import HEADLINES, OTHERS
from diptych.studies.run_files import TrainedRun, read_record
from diptych.studies.visual_token_evaluation import KINDS


@dataclass(frozen=True)
class RunScore:
    """A score under the name that it has on the page."""

    metric: Metric
    score: MetricScore
    is_headline: bool = True


@dataclass(frozen=True)
class RunScores:
    """`by_name`: in the order of the page; `stamps`: of evaluations, by folder; `notes`: on what is not shown."""

    by_name: Mapping[str, RunScore]
    stamps: Mapping[str, Mapping[str, Any]]
    notes: Sequence[str]


def is_evaluation(folder: Path) -> bool:
    """Whether a folder is one that `diptych eval` wrote."""
    return (folder / STAMP).is_file()


def read_scores(run: TrainedRun, evaluations: Sequence[Path] = ()) -> RunScores:
    """Evaluations are looked for in the run's folder and beside it; `evaluations`: elsewhere. An evaluation counts if
    it is of the run's morph as it is now. Raises ValueError for damaged files."""
    try:
        by_name = dict(_demo_scores(run.folder)) | _autoencoder_scores(run.folder)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{run.folder / SCORES} is not as diptych demo writes it ({error!r})") from error
    stamps: dict[str, Mapping[str, Any]] = {}
    notes: list[str] = []
    inside = [path.parent for pattern in (f"*/{STAMP}", f"*/*/{STAMP}") for path in sorted(run.folder.glob(pattern))]
    beside = [path.parent for path in sorted(run.folder.parent.glob(f"*/{STAMP}"))]
    morph_hash = None
    for folder in dict.fromkeys((*inside, *beside, *evaluations)):
        stamp = read_json(folder / STAMP)
        morph_hash = morph_hash or _hash_morph(run.folder)
        if stamp.get("morph_hash") != morph_hash:
            if folder in inside:
                notes.append(f"{folder} is not of the morph as it is now; evaluate it again")
            continue
        if not (folder / SCORES).is_file():
            notes.append(f"{folder} is not complete; the same diptych eval goes on there")
            continue
        stamps[str(folder)] = stamp
        for suite in read_scored_suites(folder):
            for metric, score in suite.scored():
                name = f"{suite.name}: {metric.words}"
                name = f"{name} ({folder.name})" if name in by_name else name
                by_name[name] = RunScore(metric, score)
    return RunScores(by_name, stamps, notes)


def _hash_morph(folder: Path) -> str:
    """Nothing, where there is no morph yet."""
    return hash_folder(folder / "morph") if any((folder / "morph").glob("*.safetensors")) else ""


def _demo_scores(folder: Path) -> Iterator[tuple[str, RunScore]]:
    told = read_record(folder / SCORES)
    for kind, found in told.get("visual_tokens", {}).items():
        name = f"Visual tokens: cosine, {KINDS.get(kind, kind)}"
        yield name, _share(name, found["cosine"], unit="", is_headline=kind == "trained")
    if "language_max_abs_diff" in told:
        name = "Language: largest difference of text-only logits to the base LLM"
        score = MetricScore(told["language_max_abs_diff"], None, 0, Baselines())
        yield name, RunScore(Metric("language_max_abs_diff", name, unit="", higher_is_better=False), score)
    details = told.get("details", {})
    headlines = list(HEADLINES)
    for key in sorted(details, key=lambda key: headlines.index(key) if key in headlines else len(headlines)):
        yield _words(key), _share(_words(key), details[key], unit="share", is_headline=key in HEADLINES)


def _share(name: str, told: Mapping[str, Any], *, unit: Any, is_headline: bool) -> RunScore:
    low, high = told["interval_95"]
    score = MetricScore(told["value"], (low, high), told["n"], Baselines(chance=told.get("chance")))
    return RunScore(Metric(name, name, unit=unit), score, is_headline)


def _words(key: str) -> str:
    """`retrieval_top1_fluent`: the words of `retrieval_top1`, and fluent."""
    known = HEADLINES | OTHERS
    base = max((name for name in known if key == name or key.startswith(f"{name}_")), key=len, default="")
    rest = key.removeprefix(base).strip("_").replace("_", " ")
    return ", ".join(word for word in (known.get(base, ""), rest) if word)


def _autoencoder_scores(folder: Path) -> dict[str, RunScore]:
    """What is no count, in the scores that its training leaves beside the weights."""
    told = read_record(folder / "morph" / SCORES)
    found = {}
    for key, value in told.items():
        if isinstance(value, float):
            name = "Autoencoder: " + key.replace("_db", "").replace("_", " ").replace("psnr", "PSNR")
            score = MetricScore(value, None, told.get("num_held_out", 0), Baselines())
            found[name] = RunScore(Metric(key, name, unit="dB" if "_db" in key else ""), score)
    return found

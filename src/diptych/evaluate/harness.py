"""Suites put to a morph: chosen examples, batch by batch, a row for each on the disk, and scores made of the rows.

Whatever stops a run, the next call with the same settings does what is left: a batch is the same whether it is done in
the first call or the fifth, so the scores are those of a run that was never stopped.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from diptych.backbones.assets import asset_path
from diptych.evaluate.answering import Sampling
from diptych.evaluate.result_files import SCORES, ResultFiles, open_results, read_json
from diptych.evaluate.scored_suites import read_scored_suites
from diptych.evaluate.shown_rows import keep_shown
from diptych.evaluate.stamp import Stamp
from diptych.evaluate.suite import (
    Answer,
    Example,
    Exporting,
    Judged,
    MetricScore,
    Progress,
    Row,
    Scores,
    Suite,
    SuiteResult,
    check_needs,
    choose_examples,
    name_and_size,
    prompt_set_hash,
    with_shuffled_images,
)
from diptych.evaluate.suite_report import render_suites

BATCH_SIZE = 50
AS_TRAINED = Sampling()


def evaluate_suites(
    morph: Any,
    suites: Sequence[Suite],
    out: Path,
    *,
    stamp: Stamp,
    sampling: Sampling = AS_TRAINED,
    limit: int | None = None,
    batch_size: int = BATCH_SIZE,
    shuffle_images: bool = False,
    cost: Callable[[], Mapping[str, Any]] | None = None,
    progress: Progress = lambda what, done, total: None,
) -> list[SuiteResult]:
    """Asks what is not yet answered in `out`, and writes results.jsonl, scores.json and report.html there.

    `stamp`: of the morph and its sampling (`build_stamp`). `limit`: so many examples of each suite. `shuffle_images`: a
    control; every image is that of another example. `cost`: reckons, after the last question, what the morph costs
    (`design_cost`), which stands beside its scores. Raises ValueError, before the first question, for what the morph
    cannot do, what is missing, and a folder that holds another run.
    """
    for suite in suites:
        check_needs(suite, morph)
        if shuffle_images and "reads" not in suite.needs.abilities:
            raise ValueError(f"suite {suite.name} shows no image to read, so there is none to shuffle")
    for asset in dict.fromkeys(asset for suite in suites for asset in suite.needs.assets):
        asset_path(asset)
    chosen: dict[str, list[Example]] = {}
    stamped: dict[str, Stamp] = {}
    for suite in suites:
        whole = suite.load_examples(progress)
        examples = choose_examples(whole, limit, suite=suite.name)
        chosen[suite.name] = own = with_shuffled_images(examples) if shuffle_images else examples
        stamped[suite.name] = {
            "version": suite.version,
            "num_examples": len(own),
            "prompt_set_hash": prompt_set_hash(own),
            "whole_set_hash": prompt_set_hash(whole, tell_file=name_and_size),
            **({"judges": dict(suite.judge_hashes)} if isinstance(suite, Judged) else {}),
        }
    stamp = {**stamp, "batch_size": batch_size, "shuffle_images": shuffle_images, "suites": stamped}
    with open_results(out, stamp) as files:
        results = []
        for suite in suites:
            examples = chosen[suite.name]
            _answer_missing(morph, suite, examples, files, sampling, batch_size, progress)
            results.append(summarise(suite, examples, files.of_suite(suite.name), out))
            if isinstance(suite, Exporting):
                suite.export(results[-1].rows, out)
            keep_shown(examples, results[-1].rows, suite.metrics, out)
        scores = collect_scores(results, files.stamp, out)
        files.write_scores(scores)
        files.write_report(render_suites(read_scored_suites(out), list(files.rows.values()), files.stamp, out))
        if cost is not None:
            files.write_scores({**scores, "cost": dict(cost())})
    return results


def _answer_missing(
    morph: Any,
    suite: Suite,
    examples: Sequence[Example],
    files: ResultFiles,
    sampling: Sampling,
    batch_size: int,
    progress: Progress,
) -> None:
    done = files.of_suite(suite.name)
    missing = [example for example in examples if example.id not in done]
    if not missing:
        return
    suite.prepare(morph, progress)
    num_done = len(examples) - len(missing)
    progress(f"suite {suite.name}", num_done, len(examples))
    for start in range(0, len(examples), batch_size):
        batch = [example for example in examples[start : start + batch_size] if example.id not in done]
        if not batch:
            continue
        answers = suite.answer(morph, batch, sampling)
        scores = suite.score(batch, answers)
        files.append([_row(suite, files, *answered) for answered in zip(batch, answers, scores, strict=True)])
        num_done += len(batch)
        progress(f"suite {suite.name}", num_done, len(examples))


def _row(suite: Suite, files: ResultFiles, example: Example, answer: Answer, scores: Scores) -> Row:
    saved = [files.save_image(suite.name, example.id, number, image) for number, image in enumerate(answer.images)]
    return Row(
        suite=suite.name,
        id=example.id,
        kind=example.kind,
        question=example.question(),
        inputs=tuple("/".join(path.parts[-3:]) for path in example.images),
        reference=example.reference,
        answer=answer.text,
        images=tuple(saved),
        scores=scores,
    )


def summarise(suite: Suite, examples: list[Example], done: Mapping[str, Row], folder: Path) -> SuiteResult:
    """From rows as they stand on the disk, never from memory: what was resumed is scored as what was not."""
    rows = [done[example.id] for example in examples]
    by_kind: dict[str, dict[str, MetricScore]] = {}
    for kind in sorted({example.kind for example in examples} - {""}):
        own = [(example, row) for example, row in zip(examples, rows, strict=True) if example.kind == kind]
        by_kind[kind] = suite.summarise([example for example, _ in own], [row for _, row in own], folder)
    return SuiteResult(suite, examples, rows, suite.summarise(examples, rows, folder), by_kind)


def collect_scores(results: Sequence[SuiteResult], stamp: Stamp, folder: Path) -> dict[str, Any]:
    """The contents of scores.json: suites of this call, and of earlier ones in this folder, and the stamp."""
    earlier = read_json(folder / SCORES)["suites"] if (folder / SCORES).exists() else {}
    own = {result.suite.name: result.as_dict() for result in results}
    return {"suites": {**earlier, **own}, "stamp": stamp}

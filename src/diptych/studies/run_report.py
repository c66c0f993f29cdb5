"""One page about a run or several: curves, scores, samples over time, what differs between them, costs, machines."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from diptych.evaluate.curve_figures import Curve, draw_curves, draw_legend
from diptych.evaluate.report_page import (
    badge,
    code,
    definition_list,
    details,
    grids,
    page,
    paragraph,
    section,
    table,
    text,
)
from diptych.evaluate.result_files import SCORES
from diptych.evaluate.stamp import flatten
from diptych.evaluate.suite_report import format_interval, format_value
from diptych.models.accounts.run_account import si
from diptych.studies.run_files import TrainedRun, open_grids, read_record, read_runs
from diptych.studies.run_scores import RunScores, is_evaluation, read_scores
from diptych.train.progress import format_seconds

NUM_GRIDS, NUM_GRIDS_OF_SEVERAL = 6, 3
COSTS = "costs.json"
"""In a run's folder: what `diptych inspect --out` wrote."""
LOG_RATIO = 20
"""Curves whose values differ more are drawn on a logarithmic scale."""
_OWN = ("output_dir",)
"""Settings that differ between any two runs."""
Row = Mapping[str, Any]


def report_runs(folders: Sequence[Path]) -> str:
    """The page as HTML. `folders`: of runs, and of evaluations (`diptych eval`) of their morphs.

    Raises ValueError for a folder that is neither, for an evaluation of none of the runs, and for damaged files.
    """
    evaluations = [folder for folder in folders if is_evaluation(folder)]
    runs = read_runs([folder for folder in folders if folder not in evaluations])
    if not runs:
        raise ValueError("no run is given, only evaluations; give the folder of a training too")
    scores = [read_scores(run, evaluations) for run in runs]
    for folder in evaluations:
        if not any(str(folder) in found.stamps for found in scores):
            raise ValueError(f"{folder} is no complete evaluation of the morph of {_and([run.name for run in runs])}")
    return render_runs(runs, scores)


def render_runs(runs: Sequence[TrainedRun], scores: Sequence[RunScores]) -> str:
    """`scores`: of each run."""
    names = [run.name for run in runs]
    legend = draw_legend(names) if len(runs) > 1 else ""
    losses, rest = _loss_curves(runs), _other_curves(runs)
    sections = [
        section("Runs" if len(runs) > 1 else "Run", _overview(runs)),
        section("Scores", _scores(runs, scores)),
        section("Losses", legend + draw_curves(losses, names) if losses else _nothing_logged(runs)),
        section("Learning rate, gradient, speed", legend + draw_curves(rest, names) if rest else _nothing_logged(runs)),
        section("Samples over time", _samples(runs)),
        section("Settings that differ" if len(runs) > 1 else "Settings", _settings(runs)),
        section("Costs", _costs(runs)),
        section("Machines and stamps", _machines(runs) + _stamps(runs, scores)),
    ]
    title = f"{len(runs)} runs" if len(runs) > 1 else f"Run {names[0]}"
    told = [f"{run.name}: {run.settings.get('method')}, {_state_words(run)}" for run in runs]
    return page(title, ". ".join(told) + ".", "".join(sections))


def _state_words(run: TrainedRun) -> str:
    if run.state == "complete":
        return "complete"
    return f"{'training now' if run.state == 'training now' else 'stopped'} at {100 * run.progress:.0f}%"


def _overview(runs: Sequence[TrainedRun]) -> str:
    rows = []
    for run in runs:
        last = run.rows[-1] if run.rows else {}
        speeds, waits = ([row[key] for row in run.rows] for key in ("samples_per_second", "loader_wait"))
        rows.append(
            [
                f"<strong>{text(run.name)}</strong>",
                text(str(run.settings.get("method", ""))),
                badge(_state_words(run), run.state != "stopped"),
                f"{run.steps:,}",
                format_seconds(run.train_seconds),
                f"{_median(speeds):.4g}" if speeds else "",
                f"{_median(waits):.2%}" if waits else "",
                "<br>".join(f"{text(name)} {value:.4g}" for name, value in last.get("losses", {}).items()),
            ]
        )
    header = ["", "method", "state", "steps", "training", "samples/s", "loader wait", "losses"]
    told = "Losses are those of the last row of the log; speed and the loader's wait (share of a step) are medians."
    return table(header, rows) + paragraph(told) + "".join(paragraph(words) for run in runs if (words := _skipped(run)))


def _skipped(run: TrainedRun) -> str:
    last = run.rows[-1] if run.rows else {}
    told = {f"{kind} samples": count for kind, count in last.get("skipped_samples", {}).items()}
    told |= {"steps whose loss was not finite": last.get("skipped_steps", 0)}
    words = ", ".join(f"{count:,} {what}" for what, count in told.items() if count)
    return f"{run.name} skipped {words}." if words else ""


def _median(values: Sequence[float]) -> float:
    return sorted(values)[len(values) // 2]


def _nothing_logged(runs: Sequence[TrainedRun]) -> str:
    return paragraph(f"The log of {_and([run.name for run in runs])} has no row yet: train.logging_steps says when.")


def _loss_curves(runs: Sequence[TrainedRun]) -> list[Curve]:
    """Each loss, their weighted sum, and what the method measured; of several runs by step and by time."""
    rows = [row for run in runs for row in run.rows]
    losses = list(dict.fromkeys(name for row in rows for name in row["losses"]))
    measures = list(dict.fromkeys(name for row in rows for name in row.get("measures", {})))
    wanted: list[tuple[str, str, Callable[[Row], Any]]] = []
    for name in losses:
        wanted.append((f"loss: {name}", "loss", lambda row, name=name: row["losses"].get(name)))
    if len(losses) > 1:
        wanted.append(("loss: weighted sum", "loss", lambda row: row["loss"]))
    for name in measures:
        words = name.replace("_", " ")
        wanted.append((words, words, lambda row, name=name: row.get("measures", {}).get(name)))
    by_time = [True] if len(runs) > 1 else []
    return [
        _curve(runs, title, label, value, by_time=axis) for title, label, value in wanted for axis in (False, *by_time)
    ]


def _other_curves(runs: Sequence[TrainedRun]) -> list[Curve]:
    wanted: dict[str, tuple[str, Callable[[Row], Any]]] = {
        "learning rate": ("rate", lambda row: row["learning_rate"]),
        "norm of the gradient": ("norm", lambda row: row["grad_norm"]),
        "speed": ("samples per second", lambda row: row["samples_per_second"]),
        "waiting for the loader": ("per cent of a step", lambda row: 100 * row["loader_wait"]),
    }
    curves = [_curve(runs, title, label, value) for title, (label, value) in wanted.items()]
    plain = [replace(curve, is_log=False, is_exact=curve.title == "learning rate") for curve in curves]
    return plain if any(run.rows for run in runs) else []


def _curve(
    runs: Sequence[TrainedRun], title: str, label: str, value: Callable[[Row], Any], *, by_time: bool = False
) -> Curve:
    series = {run.name: points for run in runs if (points := list(_points(run, value, by_time=by_time)))}
    values = [y for points in series.values() for _, y in points]
    is_log = bool(values) and min(values) > 0 and max(values) > LOG_RATIO * min(values)
    return Curve(title, label, series, is_log, x_label="minutes of training" if by_time else "steps")


def _points(run: TrainedRun, value: Callable[[Row], Any], *, by_time: bool) -> Iterator[tuple[float, float]]:
    for row in run.rows:
        if (y := value(row)) is not None:
            minutes = (run.seconds_before + row["train_seconds"]) / 60
            yield (minutes if by_time else float(run.steps_before + row["step"])), y


def _scores(runs: Sequence[TrainedRun], scores: Sequence[RunScores]) -> str:
    """A row for each score, a column for each run; those that are no headlines fold away."""
    found = {name: one for own in reversed(scores) for name, one in own.by_name.items()}
    order = dict.fromkeys(name for own in scores for name in own.by_name)
    notes = "".join(paragraph(note) for own in scores for note in own.notes)
    if not found:
        told = "None yet. diptych eval on the run's morph, with its --out inside or beside the run, brings them here."
        return paragraph(told) + notes
    header = ["", *(run.name if len(runs) > 1 else "reached" for run in runs), "majority", "chance"]

    def row(name: str) -> list[str]:
        cells = []
        for own in scores:
            one = own.by_name.get(name)
            cells.append("" if one is None else _cell(one.metric, one.score))
        metric, baselines = found[name].metric, found[name].score.baselines
        return [text(name), *cells, *(format_value(b, metric) for b in (baselines.majority, baselines.chance))]

    headlines, others = ([name for name in order if found[name].is_headline is wanted] for wanted in (True, False))
    body = table(header, [row(name) for name in headlines])
    if others:
        body += details(f"{len(others)} more scores", table(header, [row(name) for name in others]))
    told = "Small: the 95% interval and the number of examples."
    if len(runs) > 1:
        told += " Whether two runs differ is told by diptych eval --compare, example by example."
    return body + paragraph(told) + notes


def _cell(metric: Any, score: Any) -> str:
    interval = format_interval(score, metric)
    told = ", ".join(word for word in (interval, f"n {score.num:,}" if score.num else "") if word)
    return f'<span class="score">{format_value(score.mean, metric)}</span><br><small>{told}</small>'


def _samples(runs: Sequence[TrainedRun]) -> str:
    parts = []
    for run in runs:
        found = open_grids(run.folder, NUM_GRIDS_OF_SEVERAL if len(runs) > 1 else NUM_GRIDS)
        if len(runs) > 1:
            parts.append(f"<h3>{text(run.name)}</h3>")
        parts.append(
            grids(found) or paragraph("No samples were drawn; train.sample_every says when, sample.prompts what.")
        )
    return "".join(parts)


def _settings(runs: Sequence[TrainedRun]) -> str:
    dumped = {run.name: yaml.safe_dump(dict(run.settings), sort_keys=False, allow_unicode=True) for run in runs}
    recipes = "".join(details(f"The whole recipe of {name}", code(dump)) for name, dump in dumped.items())
    if len(runs) == 1:
        return recipes
    flat = [flatten({key: value for key, value in run.settings.items() if key not in _OWN}) for run in runs]
    rows = []
    for key in dict.fromkeys(key for settings in flat for key in settings):
        values = [settings.get(key) for settings in flat]
        if any(value != values[0] for value in values) and any(value not in (None, [], {}, "") for value in values):
            cells = [text(_shown(settings[key])) if key in settings else "" for settings in flat]
            rows.append([f"<code>{text(key)}</code>", *cells])
    same = paragraph("All settings are the same.")
    return (table(["", *(run.name for run in runs)], rows, is_words=True) if rows else same) + recipes


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _costs(runs: Sequence[TrainedRun]) -> str:
    accounts = {run.name: account for run in runs if (account := _account(run))}
    if not accounts:
        told = f"None are recorded. diptych inspect RECIPE --out RUN/{COSTS} counts parameters and FLOPs."
        return paragraph(told)
    rows: dict[str, dict[str, str]] = {}
    for name, account in accounts.items():
        for kind in ("trained", "frozen"):
            for part, count in account["parameters"][kind].items():
                if count:
                    rows.setdefault(f"parameters, {kind}: {part}", {})[name] = si(count)
        rows.setdefault("parameters, all", {})[name] = si(account["parameters"]["total"])
        step = account["flops_per_step"]
        told = f"{si(step['forward'])} + {si(step['backward'])}"
        rows.setdefault("FLOPs of a step, forward + backward", {})[name] = told
        rows.setdefault("samples of a step", {})[name] = f"{step['samples']:,}"
        for kind, cost in account["flops_per_token"].items():
            told = f"{si(cost['forward'])} + {si(cost['backward'])}"
            rows.setdefault(f"FLOPs of each {kind}, forward + backward", {})[name] = told
    body = [[text(what), *(text(told.get(name, "")) for name in accounts)] for what, told in rows.items()]
    return table(["", *accounts], body)


def _account(run: TrainedRun) -> Mapping[str, Any]:
    """Of the demo's scores; or as `diptych inspect --out` wrote it into the folder of the run, or of all its stages."""
    if costs := read_record(run.folder / SCORES).get("costs"):
        return costs
    for path in (run.folder / COSTS, run.folder.parent / COSTS):
        for account in _read_accounts(path):
            if account["recipe"]["output_dir"] == run.settings.get("output_dir"):
                return account
    return {}


def _read_accounts(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    try:
        accounts = list(json.loads(path.read_text(encoding="utf-8")))
        return [account for account in accounts if account["recipe"]["output_dir"]]
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path} is not what diptych inspect --out writes ({error!r}); delete it") from error


def _machines(runs: Sequence[TrainedRun]) -> str:
    """Where each run was trained; recorded at its end."""
    machines = {run.name: run.record.get("machine", {}) for run in runs}
    columns = list(dict.fromkeys(key for machine in machines.values() for key in machine))
    if not columns:
        return paragraph("The machine is recorded when a training comes to its end.")
    rows = [[text(name), *(text(machine.get(key, "")) for key in columns)] for name, machine in machines.items()]
    return table(["", *columns], rows)


def _stamps(runs: Sequence[TrainedRun], scores: Sequence[RunScores]) -> str:
    """Hashes of the morphs and of what they stand on; what scores were made with."""
    parts = []
    for run, own in zip(runs, scores, strict=True):
        config = read_record(run.folder / "morph" / "config.json")
        told = {f"hash of {key.replace('_', ' ')}": value for key, value in config.get("hashes", {}).items()}
        told |= {"weights": config["weights_sha256"]} if "weights_sha256" in config else {}
        told |= {"written by": f"diptych {config['diptych_version']}"} if "diptych_version" in config else {}
        for folder, stamp in own.stamps.items():
            made = flatten({key: value for key, value in stamp.items() if key not in ("recipe", "hashes")})
            told |= {f"{folder}: {key}": _shown(value) for key, value in made.items()}
        if told:
            parts.append(details(f"Stamps of {run.name}", definition_list(told, is_code=True)))
    return "".join(parts)


def _and(names: Sequence[str]) -> str:
    return ", ".join(names[:-1]) + (" and " if len(names) > 1 else "") + names[-1]

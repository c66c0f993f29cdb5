"""Laws of the page about runs: self-contained, every run and what differs, and a page whatever is missing."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest

from diptych.evaluate.harness import evaluate_suites
from diptych.studies.run_report import report_runs
from diptych.studies.training_record import train_with_record
from diptych.train.durable import only_writer
from diptych.train.loop import run_training
from html_page import Page
from toy_runs import log_row, write_run
from toy_suite import STAMP, ColourSuite, FakeMorph, look
from train.toy_method import ToyMethod, toy_recipe

NASTY = "<script>alert(1)</script>"
METHODS = {
    "xfusion": ("ce", "flow"),
    "vpit": ("ce", "visual"),
    "autoencoder": ("absolute", "edges", "squared"),
    "pixel_decoder": ("flow",),
}


def page_of(*folders: Path) -> Page:
    page = Page(report_runs(folders))
    assert page.open == []
    return page


def charts(page: Page) -> list[str]:
    return [a["aria-label"] or "" for tag, a in page.tags if tag == "svg"]


def part(page: Page, title: str, following: str) -> str:
    return page.text.partition(f" {title} ")[2].partition(f" {following} ")[0]


def num_of(page: Page, tag: str) -> int:
    return sum(found == tag for found, _ in page.tags)


def test_the_page_fetches_nothing_and_takes_nothing_for_markup(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", grids=(10,), language_model=NASTY)
    other = write_run(tmp_path / "other", language_model="tiny", losses=(NASTY,))
    page = page_of(run, other)
    assert not {tag for tag, _ in page.tags} & {"script", "link", "iframe", "object", "form", "a"}
    sources = [a["src"] or "" for tag, a in page.tags if tag == "img"]
    assert len(sources) == 1
    assert sources[0].startswith("data:image/png;base64,")
    assert page.text.count(NASTY) > 3


@pytest.mark.parametrize("method", METHODS)
def test_a_run_of_any_method_shows_each_of_its_losses(tmp_path: Path, method: str) -> None:
    losses = METHODS[method]
    measured = [log_row(20, dict.fromkeys(losses, 0.1), measures={"free_running_cosine": 0.5})]
    page = page_of(write_run(tmp_path / "run", method=method, losses=losses, rows=measured, grids=(10, 20)))
    wanted = [f"loss: {name}" for name in losses] + (["loss: weighted sum"] if len(losses) > 1 else [])
    rest = ["learning rate", "norm of the gradient", "speed", "waiting for the loader"]
    assert charts(page) == [*wanted, "free running cosine", *rest]
    assert f"run {method} complete 20 40s 30 1.00%" in page.text
    assert "step 10" in page.text
    assert num_of(page, "img") == 2


def test_several_runs_lie_over_each_other_by_step_and_by_time(tmp_path: Path) -> None:
    page = page_of(write_run(tmp_path / "a"), write_run(tmp_path / "b", losses=("ce",)))
    assert charts(page)[:6] == ["loss: ce", "loss: ce", "loss: flow", "loss: flow", *["loss: weighted sum"] * 2]
    lines = [a["class"] for tag, a in page.tags if tag == "polyline"]
    assert lines[:4] == ["faint series-0", "faint series-1", "line series-0", "line series-1"]
    assert page.text.count("minutes of training") == 3
    assert "a b loss: ce" in page.text, "the legend"


def test_only_settings_that_differ_are_told(tmp_path: Path) -> None:
    sources = [{"path": "one.jsonl", "weight": 1}, {"path": "two.jsonl", "weight": 1}]
    common = {"seed": 4, "dtype": "float32"}
    one = write_run(tmp_path / "one", **common, data={"sources": sources}, vision_tower={"layer_design": "dual"})
    two = write_run(tmp_path / "two", **common, data={"sources": sources[:1]}, vision_tower={"layer_design": "gated"})
    told = part(page_of(one, two), "Settings that differ", "The whole recipe of one")
    assert told == (
        "one two data.sources.1.path two.jsonl data.sources.1.weight 1 vision_tower.layer_design dual gated"
    )
    three = write_run(tmp_path / "three", **common, data={"sources": sources}, vision_tower={"layer_design": "dual"})
    assert "All settings are the same." in page_of(one, three).text


def test_a_run_without_rows_samples_scores_or_costs_says_so(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", rows=[])
    with only_writer(folder):
        page = page_of(folder)
    assert charts(page) == []
    for told in (
        "training now at 0%",
        "The log of run has no row yet",
        "No samples were drawn",
        "None yet. diptych eval",
        "None are recorded. diptych inspect",
        "recorded when a training comes to its end",
    ):
        assert told in page.text, told


def test_a_training_that_was_stopped_and_one_that_ended(tmp_path: Path) -> None:
    asked = threading.Event()
    method: Any = ToyMethod()
    run_training(toy_recipe(tmp_path / "ended", sample_every=6), method)
    train_with_record(toy_recipe(tmp_path / "recorded"), method)

    def measure(*, seed: int) -> dict[str, float]:
        asked.set()
        return {"pulse": float(seed)}

    stopped: Any = ToyMethod()
    stopped.measure = measure
    run_training(toy_recipe(tmp_path / "stopped", sample_every=6), stopped, stop=asked)
    page = page_of(*(tmp_path / name for name in ("ended", "recorded", "stopped")))
    assert "ended: xfusion, complete. recorded: xfusion, complete. stopped: xfusion, stopped at 50%." in page.text
    assert {"loss: text", "loss: image", "pulse"} <= set(charts(page))
    assert "commit" in page.text


def test_skipped_samples_and_steps_are_told(tmp_path: Path) -> None:
    rows = [log_row(20, {"ce": 1.0}, skipped_samples={"too long": 3}, skipped_steps=1)]
    page = page_of(write_run(tmp_path / "run", rows=rows))
    assert "run skipped 3 too long samples, 1 steps whose loss was not finite." in page.text


def test_scores_stand_side_by_side_with_baselines(tmp_path: Path) -> None:
    for name, value in (("a", 0.5), ("b", 0.75)):
        run = write_run(tmp_path / name)
        share = {"value": value, "n": 40, "chance": 0.005, "interval_95": [0.35, 0.65]}
        (run / "scores.json").write_text(json.dumps({"details": {"naming_exact": share, "style_right": share}}))
    page = page_of(tmp_path / "a", tmp_path / "b")
    told = part(page, "Scores", "Losses")
    assert "Reading: exact name 50.0% 35.0% to 65.0%, n 40 75.0% 35.0% to 65.0%, n 40 0.5%" in told
    assert "1 more scores" in told


def test_costs_are_those_that_inspect_wrote(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    flops = {"forward": 1e9, "backward": 2e9}
    account = {
        "recipe": {"output_dir": str(run)},
        "parameters": {"trained": {"tower": 2000}, "frozen": {"llm": 3_000_000}, "total": 3_002_000},
        "flops_per_step": {"samples": 16, **flops},
        "flops_per_token": {"text token": flops},
    }
    (run / "costs.json").write_text(json.dumps([{**account, "recipe": {"output_dir": "elsewhere"}}, account]))
    told = part(page_of(run), "Costs", "Machines and stamps")
    for words in ("trained: tower 2 k", "frozen: llm 3 M", "forward + backward 1 G + 2 G", "samples of a step 16"):
        assert words in told, words
    (run / "costs.json").write_text("[1]")
    with pytest.raises(ValueError, match=r"costs.json is not what diptych inspect --out writes"):
        report_runs([run])


def test_an_evaluation_of_none_of_the_runs_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "elsewhere" / "out"
    evaluate_suites(FakeMorph(look), [ColourSuite(tmp_path / "data", 4)], out, stamp=STAMP)
    run = write_run(tmp_path / "run")
    with pytest.raises(ValueError, match="out is no complete evaluation of the morph of run"):
        report_runs([run, out])
    with pytest.raises(ValueError, match="no run is given"):
        report_runs([out])

"""Laws of the harness: known answers get known scores, nothing that was answered is lost, nothing else is trusted."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from diptych.evaluate.answering import Sampling
from diptych.evaluate.harness import evaluate_suites
from diptych.evaluate.result_files import read_rows
from diptych.evaluate.scores import Score
from diptych.evaluate.suite import Needs
from toy_suite import STAMP, ColourSuite, FakeMorph, always_commonest, another_stamp, draw, look

KILLED = """
import os, signal, sys
sys.path.insert(0, {tests!r})
from pathlib import Path
from diptych.evaluate.harness import evaluate_suites
from toy_suite import STAMP, ColourSuite, FakeMorph, look
def rule(question, images):
    if morph.num_answered == {at}:
        os.kill(os.getpid(), signal.SIGKILL)
    return look(question, images)
morph = FakeMorph(rule)
evaluate_suites(morph, [ColourSuite(Path({data!r}), {num})], Path({out!r}), stamp=STAMP, batch_size=50)
"""


def run(morph: Any, suite: ColourSuite, out: Path, **options: Any) -> dict[str, Any]:
    evaluate_suites(morph, [suite], out, stamp=STAMP, **options)
    return json.loads((out / "scores.json").read_text())["suites"][suite.name]


def test_one_who_always_answers_right_scores_100_per_cent(tmp_path: Path) -> None:
    told = run(FakeMorph(look), ColourSuite(tmp_path / "data"), tmp_path / "out")
    assert told["headline"] == "exact"
    assert told["scores"]["exact"]["mean"] == 1
    low, high = told["scores"]["exact"]["interval_95"]
    assert 0.8 < low < high == 1, "of twenty images, not of certainty"
    assert told["scores"]["exact"]["n"] == told["n"] == 40
    assert {kind: scores["exact"]["mean"] for kind, scores in told["kinds"].items()} == {"colour": 1, "red": 1}


def test_one_who_answers_the_commonest_scores_exactly_the_majority_baseline(tmp_path: Path) -> None:
    told = run(FakeMorph(always_commonest), ColourSuite(tmp_path / "data"), tmp_path / "out")
    for scores in (told["scores"], *told["kinds"].values()):
        assert scores["exact"]["mean"] == scores["exact"]["majority"]
    assert told["kinds"]["colour"]["exact"]["majority"] == 8 / 20
    assert told["kinds"]["colour"]["exact"]["chance"] == 1 / 4
    assert told["scores"]["exact"]["chance"] == (1 / 4 + 1 / 2) / 2


def test_with_shuffled_images_one_who_looks_falls_to_chance(tmp_path: Path) -> None:
    """Agreement of two independent draws: sum of squared shares. It is what a benchmark that needs its images shows."""
    suite = ColourSuite(tmp_path / "data", 400)
    told = run(FakeMorph(look), suite, tmp_path / "out", shuffle_images=True)
    shares = [160 / 400, 80 / 400, 80 / 400, 80 / 400]
    low, high = told["kinds"]["colour"]["exact"]["interval_95"]
    assert low < sum(share**2 for share in shares) < high
    assert json.loads((tmp_path / "out" / "stamp.json").read_text())["shuffle_images"] is True


def test_a_shuffled_run_of_what_shows_no_image_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="shows no image"):
        run(FakeMorph(draw), ColourSuite(tmp_path / "data", draws=True), tmp_path / "out", shuffle_images=True)


def test_a_run_that_was_stopped_does_what_is_left_and_scores_the_same(tmp_path: Path) -> None:
    suite = ColourSuite(tmp_path / "data", 500)
    with pytest.raises(KeyboardInterrupt):
        run(FakeMorph(look, fails_at=910), suite, tmp_path / "out")
    assert len(read_rows(tmp_path / "out")) == 900
    assert not (tmp_path / "out" / "scores.json").exists()
    morph = FakeMorph(look)
    run(morph, suite, tmp_path / "out")
    assert morph.num_answered == 100
    run(FakeMorph(look), suite, tmp_path / "whole")
    for name in ("scores.json", "report.html", "results.jsonl"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_run_that_was_killed_loses_nothing(tmp_path: Path) -> None:
    data, out = tmp_path / "data", tmp_path / "out"
    tests = str(Path(__file__).parent.parent)
    code = KILLED.format(tests=tests, at=900, data=str(data), num=500, out=str(out))
    done = subprocess.run([sys.executable, "-c", code], check=False, env=os.environ, capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    morph = FakeMorph(look)
    told = run(morph, ColourSuite(data, 500), out)
    assert morph.num_answered == 100
    assert told["scores"]["exact"] == {
        "mean": 1,
        "interval_95": list(Score(1.0, 500, chance=0.0).interval),  # two questions on each of 500 images
        "n": 1000,
        "majority": (200 + 300) / 1000,
        "chance": (500 / 4 + 500 / 2) / 1000,
    }


def test_a_finished_run_asks_nothing_and_loads_nothing(tmp_path: Path) -> None:
    suite = ColourSuite(tmp_path / "data")
    first = run(FakeMorph(look), suite, tmp_path / "out")
    again = FakeMorph(look)
    assert run(again, suite, tmp_path / "out") == first
    assert again.num_answered == 0
    assert suite.num_prepared == 1


def test_what_is_drawn_is_kept_beside_its_row_and_each_example_has_its_noise(tmp_path: Path) -> None:
    suite = ColourSuite(tmp_path / "data", 10, draws=True)
    morph = FakeMorph(draw)
    told = run(morph, suite, tmp_path / "out", sampling=Sampling(seed=7, guidance_scale=2.0), batch_size=4)
    assert told["scores"]["nearness"]["mean"] == 1
    seeds = [seed for options in morph.options for seed in options["seed"]]
    assert len(set(seeds)) == len(seeds) == 10
    whole = FakeMorph(draw)
    run(whole, suite, tmp_path / "at-once", sampling=Sampling(seed=7), batch_size=50)
    assert [seed for options in whole.options for seed in options["seed"]] == seeds, "whatever the size of batches"
    assert {options["guidance_scale"] for options in morph.options} == {2.0}
    for row in read_rows(tmp_path / "out"):
        (image,) = row.images
        assert (tmp_path / "out" / image).is_file()


def test_what_was_drawn_and_is_gone_is_drawn_again(tmp_path: Path) -> None:
    suite = ColourSuite(tmp_path / "data", 10, draws=True)
    first = run(FakeMorph(draw), suite, tmp_path / "out")
    lost = read_rows(tmp_path / "out")[3]
    (tmp_path / "out" / lost.images[0]).unlink()
    morph = FakeMorph(draw)
    assert run(morph, suite, tmp_path / "out") == first
    assert morph.batches == [[lost.question]]
    assert (tmp_path / "out" / lost.images[0]).is_file()


def test_questions_of_one_length_stand_in_one_batch(tmp_path: Path) -> None:
    morph = FakeMorph(look)
    run(morph, ColourSuite(tmp_path / "data", 20), tmp_path / "out", batch_size=20)
    assert [set(batch) for batch in morph.batches] == [{"Is this red?"}, {"What colour is this?"}]


def test_a_run_with_another_stamp_is_refused_and_told_what_differs(tmp_path: Path) -> None:
    suite = ColourSuite(tmp_path / "data")
    run(FakeMorph(look), suite, tmp_path / "out")
    stamp = another_stamp(morph_hash="1" * 64, recipe={"method": "vpit"})
    with pytest.raises(ValueError, match=r"morph_hash: 0{16}, not 1{16}; recipe.method: none, not vpit"):
        evaluate_suites(FakeMorph(look), [suite], tmp_path / "out", stamp=stamp)
    with pytest.raises(ValueError, match=r"suites.colours.num_examples: 40, not 10"):
        run(FakeMorph(look), suite, tmp_path / "out", limit=10)


def test_another_suite_may_join_a_run(tmp_path: Path) -> None:
    reading, drawing = ColourSuite(tmp_path / "data"), ColourSuite(tmp_path / "data", draws=True, name="drawing")
    run(FakeMorph(look), reading, tmp_path / "out")
    run(FakeMorph(draw), drawing, tmp_path / "out")
    scores = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert set(scores["suites"]) == set(scores["stamp"]["suites"]) == {"colours", "drawing"}


def test_what_the_morph_costs_stands_beside_its_scores(tmp_path: Path) -> None:
    run(FakeMorph(look), ColourSuite(tmp_path / "data"), tmp_path / "out", cost=lambda: {"parameters": {"total": 3}})
    assert json.loads((tmp_path / "out" / "scores.json").read_text())["cost"] == {"parameters": {"total": 3}}


def test_scores_are_written_before_the_cost_is_reckoned(tmp_path: Path) -> None:
    def reckon() -> dict[str, int]:
        raise RuntimeError("no luck")

    with pytest.raises(RuntimeError, match="no luck"):
        run(FakeMorph(look), ColourSuite(tmp_path / "data"), tmp_path / "out", cost=reckon)
    assert json.loads((tmp_path / "out" / "scores.json").read_text())["suites"]["colours"]["n"] == 40
    assert (tmp_path / "out" / "report.html").exists()


def test_all_suites_are_checked_before_anything_is_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched: list[str] = []
    monkeypatch.setattr("diptych.evaluate.harness.asset_path", fetched.append)
    reading = ColourSuite(tmp_path / "data")
    reading.needs = Needs(("reads",), ("some-asset",))
    drawing = ColourSuite(tmp_path / "other", draws=True, name="drawing")
    drawing.needs = Needs(("reconstructs",), ("another",))
    with pytest.raises(ValueError, match="suite drawing needs a morph that reconstructs"):
        evaluate_suites(FakeMorph(look), [reading, drawing], tmp_path / "out", stamp=STAMP)
    assert fetched == []
    run(FakeMorph(look), reading, tmp_path / "out")
    assert fetched == ["some-asset"]


def test_a_run_goes_on_under_another_name_of_the_morph_and_on_another_number_of_cores(tmp_path: Path) -> None:
    suite = ColourSuite(tmp_path / "data")
    first = STAMP | {"machine": {"cores": "2", "commit": "a"}}
    evaluate_suites(FakeMorph(look), [suite], tmp_path / "out", stamp=first)
    again = FakeMorph(look)
    moved = STAMP | {"morph": "./fake", "machine": {"cores": "16", "commit": "a"}}
    evaluate_suites(again, [suite], tmp_path / "out", stamp=moved)
    assert again.num_answered == 0
    with pytest.raises(ValueError, match=r"machine\.commit: a, not b"):
        evaluate_suites(again, [suite], tmp_path / "out", stamp=STAMP | {"machine": {"cores": "2", "commit": "b"}})


def test_what_a_morph_cannot_do_is_refused_before_anything_is_asked(tmp_path: Path) -> None:
    class Blind(FakeMorph):
        abilities = frozenset({"draws"})

    def reckon() -> dict[str, int]:
        raise AssertionError("a refusal does not wait for what the morph costs")

    with pytest.raises(ValueError, match="suite colours needs a morph that reads"):
        run(Blind(look), ColourSuite(tmp_path / "data"), tmp_path / "out", cost=reckon)
    assert not (tmp_path / "data").exists()
    assert not (tmp_path / "out").exists()

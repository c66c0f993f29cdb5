"""Laws of scores read back: what was written is what is read, metrics with their units; all else is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from diptych.evaluate.harness import evaluate_suites
from diptych.evaluate.scored_suites import read_scored_suites
from toy_suite import STAMP, ColourSuite, FakeMorph, always_commonest, draw


def test_scores_of_all_calls_are_read_back_as_they_were(tmp_path: Path) -> None:
    out = tmp_path / "out"
    drawing, reading = ColourSuite(tmp_path / "data", draws=True, name="drawing"), ColourSuite(tmp_path / "data")
    results = [
        *evaluate_suites(FakeMorph(draw), [drawing], out, stamp=STAMP),
        *evaluate_suites(FakeMorph(always_commonest), [reading], out, stamp=STAMP),
    ]
    found = {suite.name: suite for suite in read_scored_suites(out)}
    assert set(found) == {"colours", "drawing"}
    for result in results:
        suite = found[result.suite.name]
        assert (suite.scores, suite.by_kind) == (result.scores, result.by_kind)
        assert (suite.metrics, suite.words, suite.num) == (result.suite.metrics, "Plain colours.", len(result.rows))
        assert suite.scored() == [(suite.headline, suite.scores[suite.headline.name])]


@pytest.mark.parametrize("told", ['{"suites": {"a": {"n": 1}}}', "[1]", '{"suites": []}', "{}", "{"])
def test_other_files_are_refused_by_name(tmp_path: Path, told: str) -> None:
    (tmp_path / "scores.json").write_text(told)
    with pytest.raises(ValueError, match=r"scores.json is"):
        read_scored_suites(tmp_path)


def test_scores_that_are_not_there_are_told(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no scores.json"):
        read_scored_suites(tmp_path)


def test_a_score_without_an_interval_is_read(tmp_path: Path) -> None:
    evaluate_suites(FakeMorph(draw), [ColourSuite(tmp_path, 4, draws=True)], tmp_path / "out", stamp=STAMP)
    told = json.loads((tmp_path / "out" / "scores.json").read_text())
    told["suites"]["colours"]["scores"]["nearness"]["interval_95"] = None
    (tmp_path / "out" / "scores.json").write_text(json.dumps(told))
    (suite,) = read_scored_suites(tmp_path / "out")
    assert suite.scores["nearness"].interval is None

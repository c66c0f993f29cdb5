"""Laws of comparing: pairs by example, an interval that knows the pairing, and no comparison of different questions."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from diptych.evaluate.comparison import Comparison, compare_runs
from diptych.evaluate.harness import evaluate_suites
from diptych.evaluate.result_files import ROWS, read_rows
from toy_suite import ColourSuite, FakeMorph, always_commonest, another_stamp, draw, look


def run(folder: Path, rule: Any, *, num: int = 100, **stamp: Any) -> Path:
    out = folder / f"run-{len(list(folder.glob('run-*')))}"
    suite = ColourSuite(folder / "data", num)
    evaluate_suites(FakeMorph(rule), [suite], out, stamp=another_stamp(**stamp), limit=150)
    return out


def find(comparison: Comparison, kind: str) -> Any:
    (found,) = [d for d in comparison.differences if d.kind == kind]
    return found


def test_the_difference_is_that_of_the_pairs(tmp_path: Path) -> None:
    one, other = run(tmp_path, always_commonest), run(tmp_path, look, seed=3, recipe={"method": "vpit"})
    comparison = compare_runs(one, other)
    overall = find(comparison, "")
    assert overall.other == 1
    assert overall.difference.mean == pytest.approx(1 - overall.one)
    low, high = overall.difference.interval
    assert 0 < low < overall.difference.mean < high < 1
    assert overall.is_clear
    assert comparison.stamp_differences == ["seed: 0, not 3", "recipe.method: none, not vpit"]
    back = find(compare_runs(other, one), "")
    assert back.difference.mean == -overall.difference.mean


def test_a_run_is_no_different_from_itself_and_pairing_narrows(tmp_path: Path) -> None:
    one, other = run(tmp_path, look), run(tmp_path, look)
    same = find(compare_runs(one, other), "")
    assert same.difference.interval == (0, 0)
    assert not same.is_clear
    assert compare_runs(one, other).stamp_differences == []
    wrong_once = {"left": 1}

    def almost(question: str, images: list[Image.Image]) -> str:
        wrong_once["left"] -= 1
        return look(question, images) if wrong_once["left"] < 0 else "nothing"

    low, high = find(compare_runs(one, run(tmp_path, almost)), "").difference.interval
    assert -4 / 150 < low <= high == 0


def test_other_examples_are_refused_with_their_counts(tmp_path: Path) -> None:
    one = run(tmp_path, look)
    more = tmp_path / "more"
    evaluate_suites(FakeMorph(look), [ColourSuite(tmp_path / "data", 100)], more, stamp=another_stamp())
    with pytest.raises(ValueError, match=r"examples of colours differ: 50 only in .*more"):
        compare_runs(one, more)


def test_the_same_ids_of_other_pictures_are_refused(tmp_path: Path) -> None:
    one = run(tmp_path, look)
    Image.new("RGB", (8, 8), "white").save(tmp_path / "data" / "0.png")
    other = run(tmp_path, always_commonest)
    with pytest.raises(ValueError, match=r"same ids and yet are asked or judged otherwise .*prompt_set_hash"):
        compare_runs(one, other)


def test_what_judges_otherwise_is_told(tmp_path: Path) -> None:
    class Judging(ColourSuite):
        judge_hashes: Mapping[str, str] = {}

    folders = []
    for number in range(2):
        suite = Judging(tmp_path / "data")
        suite.judge_hashes = {"clip": f"{number}" * 64}
        folders.append(tmp_path / f"judged-{number}")
        evaluate_suites(FakeMorph(look), [suite], folders[-1], stamp=another_stamp())
    assert compare_runs(*folders).stamp_differences == [f"judge colours.clip: {'0' * 16}, not {'1' * 16}"]


def test_the_control_is_compared_with_the_run_itself(tmp_path: Path) -> None:
    plain, shuffled = run(tmp_path, look), tmp_path / "shuffled"
    suite = ColourSuite(tmp_path / "data", 100)
    evaluate_suites(FakeMorph(look), [suite], shuffled, stamp=another_stamp(), limit=150, shuffle_images=True)
    comparison = compare_runs(plain, shuffled)
    assert find(comparison, "colour").is_clear
    assert find(comparison, "").other < 1
    assert comparison.stamp_differences == ["shuffle_images: False, not True"]


def test_the_same_questions_out_of_another_set_are_refused(tmp_path: Path) -> None:
    """Answers are also judged by examples that were not asked: retrieval among fewer is easier."""
    one = run(tmp_path, look)
    picked = {id for _, id in ((row.suite, row.id) for row in read_rows(one))}

    class Fewer(ColourSuite):
        def load_examples(self, progress: Any) -> Any:
            return [example for example in super().load_examples(progress) if example.id in picked]

    other = tmp_path / "fewer"
    evaluate_suites(FakeMorph(look), [Fewer(tmp_path / "data", 100)], other, stamp=another_stamp())
    with pytest.raises(ValueError, match="whole_set_hash"):
        compare_runs(one, other)


def test_a_run_that_is_not_complete_is_refused(tmp_path: Path) -> None:
    one, other = run(tmp_path, look), run(tmp_path, look)
    lines = (other / ROWS).read_text().splitlines(keepends=True)
    (other / ROWS).write_text("".join(lines[:-3]))
    with pytest.raises(ValueError, match=r"holds 147 of 150 examples of colours"):
        compare_runs(one, other)


def test_suites_of_one_run_alone_are_named(tmp_path: Path) -> None:
    one, other = run(tmp_path, look), run(tmp_path, look)
    drawing = ColourSuite(tmp_path / "data", 5, draws=True, name="drawing")
    evaluate_suites(FakeMorph(draw), [drawing], other, stamp=another_stamp(), limit=150)
    assert compare_runs(one, other).not_shared == ["drawing"]
    alone = tmp_path / "alone"
    evaluate_suites(FakeMorph(draw), [drawing], alone, stamp=another_stamp())
    with pytest.raises(ValueError, match="share no suite"):
        compare_runs(one, alone)
    with pytest.raises(ValueError, match=r"holds no stamp.json"):
        compare_runs(one, tmp_path / "nothing")

"""Laws of a run's scores: all that were measured of its morph as it is, from wherever they lie, and no others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from diptych.backbones.weight_hash import hash_folder
from diptych.evaluate.harness import evaluate_suites
from diptych.evaluate.scores import Score
from diptych.studies.run_files import read_runs
from diptych.studies.run_scores import RunScores, read_scores
from toy_runs import write_run
from toy_suite import ColourSuite, FakeMorph, another_stamp, look


def write_morph(run: Path, value: float = 0.0) -> str:
    (run / "morph").mkdir(exist_ok=True)
    save_file({"w": torch.full((2,), value)}, run / "morph" / "model.safetensors")
    return hash_folder(run / "morph")


def evaluate(out: Path, data: Path, morph_hash: str, **options: Any) -> None:
    stamp = another_stamp(morph_hash=morph_hash)
    evaluate_suites(FakeMorph(look, **options), [ColourSuite(data, 6)], out, stamp=stamp)


def scores_of(run: Path, *evaluations: Path) -> RunScores:
    return read_scores(read_runs([run])[0], evaluations)


def test_evaluations_inside_beside_and_elsewhere_are_found_by_the_morphs_hash(tmp_path: Path) -> None:
    run = write_run(tmp_path / "runs" / "run")
    own = write_morph(run)
    places = [run / "evaluated", tmp_path / "runs" / "beside", tmp_path / "elsewhere"]
    for place in places:
        evaluate(place, tmp_path / "data", own)
    evaluate(tmp_path / "runs" / "of-another", tmp_path / "data", "1" * 64)
    found = scores_of(run)
    assert list(found.by_name) == ["colours: exact answers", "colours: exact answers (beside)"]
    assert list(found.stamps) == [str(place) for place in places[:2]]
    score = found.by_name["colours: exact answers"].score
    assert (score.mean, score.num) == (1, 12)
    assert score.interval == pytest.approx(Score(1.0, 6, chance=0.0).interval)  # of six images
    assert found.notes == []
    assert len(scores_of(run, places[2]).by_name) == 3


def test_scores_of_an_earlier_morph_are_not_shown_but_told(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    evaluate(run / "evaluated", tmp_path / "data", write_morph(run))
    write_morph(run, 1.0)
    found = scores_of(run)
    assert found.by_name == {}
    (note,) = found.notes
    assert "is not of the morph as it is now" in note


def test_an_evaluation_that_was_stopped_is_told(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    own = write_morph(run)
    with pytest.raises(KeyboardInterrupt):
        evaluate(run / "evaluated", tmp_path / "data", own, fails_at=3)
    found = scores_of(run)
    assert found.by_name == {}
    assert "is not complete" in found.notes[0]


def test_the_demos_scores_have_their_words_and_headlines_come_first(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    share = {"value": 0.5, "n": 40, "chance": 0.005, "interval_95": [0.35, 0.65]}
    told = {
        "details": {"style_right": share, "retrieval_top1_fluent": share, "retrieval_top1": share},
        "language_max_abs_diff": 0.0,
        "visual_tokens": {"trained": {"cosine": {"value": 0.9, "n": 4, "interval_95": [0.8, 1.0]}}},
    }
    (run / "scores.json").write_text(json.dumps(told))
    found = scores_of(run).by_name
    assert list(found) == [
        "Visual tokens: cosine, names that were trained on",
        "Language: largest difference of text-only logits to the base LLM",
        "Drawing: right concept first",
        "Drawing: style right",
        "Drawing: right concept first, fluent",
    ]
    assert [one.is_headline for one in found.values()] == [True, True, True, False, False]
    drawn = found["Drawing: right concept first"].score
    assert (drawn.mean, drawn.interval, drawn.num, drawn.baselines.chance) == (0.5, (0.35, 0.65), 40, 0.005)


def test_an_autoencoders_scores_are_in_decibels(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", method="autoencoder")
    write_morph(run)
    told = {"held_out_psnr_db": 29.5, "num_held_out": 280, "image_size": 64}
    (run / "morph" / "scores.json").write_text(json.dumps(told))
    ((name, one),) = scores_of(run).by_name.items()
    assert name == "Autoencoder: held out PSNR"
    assert (one.score.mean, one.score.num, one.metric.unit) == (29.5, 280, "dB")


@pytest.mark.parametrize("content", ["{", '{"details": {"naming_exact": {}}}', '{"details": [1]}'])
def test_damaged_scores_are_named(tmp_path: Path, content: str) -> None:
    run = write_run(tmp_path / "run")
    (run / "scores.json").write_text(content)
    with pytest.raises(ValueError, match=r"scores.json is"):
        scores_of(run)

"""Laws of a run's folder: it is read whatever became of the training; what is no run is named with what it lacks."""

from __future__ import annotations

from pathlib import Path

import pytest

from diptych.studies.run_files import open_grids, read_runs
from diptych.train.durable import only_writer
from toy_runs import log_row, write_run


def test_a_run_tells_how_far_it_came(tmp_path: Path) -> None:
    (whole,) = read_runs([write_run(tmp_path / "whole")])
    assert (whole.name, whole.state, whole.progress) == ("whole", "complete", 1.0)
    assert (whole.steps, whole.train_seconds) == (20, 40.0)
    (half,) = read_runs([write_run(tmp_path / "half", steps=(5, 10))])
    assert (half.state, half.progress) == ("stopped", 0.5)
    clock = write_run(tmp_path / "clock", train={"max_steps": 1000, "max_train_minutes": 0.5}, steps=(3, 6))
    (by_the_clock,) = read_runs([clock])
    assert by_the_clock.progress == 12 / 30
    (empty,) = read_runs([write_run(tmp_path / "empty", rows=[])])
    assert (empty.state, empty.progress, empty.steps) == ("stopped", 0.0, 0)


def test_a_run_that_is_held_trains_now_and_is_not_disturbed(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", steps=(5,))
    with only_writer(folder):
        assert read_runs([folder])[0].state == "training now"
        with pytest.raises(ValueError, match="another run"), only_writer(folder):
            pass
    assert read_runs([folder])[0].state == "stopped"


def test_a_record_says_that_a_training_came_to_its_end(tmp_path: Path) -> None:
    """Also where the clock ended it between two rows."""
    folder = write_run(tmp_path / "run", steps=(5, 19))
    (folder / "training.json").write_text('{"machine": {"device": "abacus"}}')
    (run,) = read_runs([folder])
    assert (run.state, run.progress, run.record["machine"]["device"]) == ("complete", 1.0, "abacus")


def test_stages_go_on_where_the_one_before_ended(tmp_path: Path) -> None:
    root = tmp_path / "run"
    write_run(root / "z-first", vpit={"init_from": None}, steps=(10, 20))
    write_run(root / "a-second", vpit={"init_from": "runs/run/z-first/morph"}, steps=(10,))
    write_run(root / "other", vpit={"init_from": "elsewhere/morph"})
    unfinished = read_runs([root])
    assert {run.name for run in unfinished} == {"run/z-first", "run/a-second", "run/other"}
    write_run(root, vpit={"init_from": "runs/run/a-second/morph"})
    runs = read_runs([root])
    assert [run.name for run in runs] == ["run/z-first", "run/a-second", "run"], "others are no stages of it"
    assert [run.steps_before for run in runs] == [0, 20, 30]
    assert [run.seconds_before for run in runs] == [0.0, 40.0, 60.0]


def test_a_folder_of_runs_stands_for_them(tmp_path: Path) -> None:
    for name in ("b", "a"):
        write_run(tmp_path / name)
    (tmp_path / "notes").mkdir()
    assert [run.name for run in read_runs([tmp_path])] == [f"{tmp_path.name}/a", f"{tmp_path.name}/b"]


def test_runs_of_one_name_are_told_apart_by_their_paths(tmp_path: Path) -> None:
    folders = [write_run(tmp_path / name / "run") for name in "ab"]
    assert [run.name for run in read_runs(folders)] == [str(folder) for folder in folders]
    with pytest.raises(ValueError, match="given twice"):
        read_runs([folders[0], folders[0]])


def test_what_is_no_run_is_named_with_what_it_lacks(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"there is no folder .*nowhere"):
        read_runs([tmp_path / "nowhere"])
    with pytest.raises(ValueError, match=r"holds no recipe.yaml and no log.jsonl; give an output_dir"):
        read_runs([tmp_path])
    run = write_run(tmp_path / "run")
    (run / "log.jsonl").unlink()
    with pytest.raises(ValueError, match=r"run: it holds no log.jsonl;"):
        read_runs([run])


@pytest.mark.parametrize(
    ("file", "content", "says"),
    [
        ("recipe.yaml", "a: [", "recipe.yaml is damaged"),
        ("recipe.yaml", "- 1", "recipe.yaml is damaged: it holds no settings"),
        ("log.jsonl", "{\n", "line 1 is not a log row"),
        ("training.json", "[1", "training.json is damaged"),
        ("training.json", "[1]", "training.json is damaged"),
    ],
)
def test_damaged_files_are_named(tmp_path: Path, file: str, content: str, says: str) -> None:
    run = write_run(tmp_path / "run")
    (run / file).write_text(content)
    with pytest.raises(ValueError, match=says):
        read_runs([run])


def test_a_row_that_is_being_written_is_passed_over(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", rows=[log_row(5, {"ce": 1.0})])
    with (run / "log.jsonl").open("a") as log:
        log.write('{"step": 10, "lo')
    assert read_runs([run])[0].steps == 5


def test_grids_are_the_first_the_last_and_some_between(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", grids=range(0, 100, 10))
    assert [name for name, _ in open_grids(run, 4)] == ["step 0", "step 30", "step 60", "step 90"]
    assert [grid.getpixel((0, 0)) for _, grid in open_grids(run, 2)] == [(0, 0, 0), (90, 0, 0)]
    assert len(open_grids(run, 20)) == 10
    (run / "samples" / "step-000050.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"step-000050.png is damaged"):
        open_grids(run, 20)

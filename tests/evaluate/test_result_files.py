"""Laws of a run's folder: what was appended stands, half a line is no row, and one process holds it."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from diptych.evaluate.result_files import ROWS, STAMP, open_results, read_json, read_rows
from diptych.evaluate.suite import Row
from toy_suite import another_stamp

RUN = another_stamp(suites={"colours": {"version": 1, "num_examples": 3}})


def row(id: str, *, suite: str = "colours", text: str = "red") -> Row:
    return Row(suite, id, "colour", "What?\n", ("a/b/0.png",), "red", text, (), {"exact": 1.0})


def test_rows_come_back_as_they_were(tmp_path: Path) -> None:
    rows = [row("a"), row("ü / “b”\n", text="two\nlines")]
    with open_results(tmp_path, RUN) as files:
        files.append(rows[:1])
        files.append(rows[1:])
    assert read_rows(tmp_path) == rows
    with open_results(tmp_path, RUN) as files:
        assert files.of_suite("colours") == {r.id: r for r in rows}
        assert files.of_suite("others") == {}


@pytest.mark.parametrize("cut", [1, 20])
def test_a_line_that_was_cut_short_is_dropped_and_written_again(tmp_path: Path, cut: int) -> None:
    with open_results(tmp_path, RUN) as files:
        files.append([row("a"), row("b")])
    path = tmp_path / ROWS
    path.write_bytes(path.read_bytes()[:-cut])
    assert [r.id for r in read_rows(tmp_path)] == ["a"]
    with open_results(tmp_path, RUN) as files:
        assert set(files.of_suite("colours")) == {"a"}
        files.append([row("b"), row("c")])
    assert [r.id for r in read_rows(tmp_path)] == ["a", "b", "c"]


@pytest.mark.parametrize("damage", [b"no json\n", b"[1]\n", b'{"suite": "colours"}\n'])
def test_a_damaged_line_is_named(tmp_path: Path, damage: bytes) -> None:
    with open_results(tmp_path, RUN) as files:
        files.append([row("a")])
    (tmp_path / ROWS).write_bytes(damage + (tmp_path / ROWS).read_bytes())
    with pytest.raises(ValueError, match="line 1, is no row"):
        read_rows(tmp_path)


def test_a_score_that_is_no_number_is_never_written(tmp_path: Path) -> None:
    bad = Row("colours", "a", "", "", (), "", "", (), {"exact": float("nan")})
    with open_results(tmp_path, RUN) as files, pytest.raises(ValueError, match="JSON"):
        files.append([bad])
    assert read_rows(tmp_path) == []


def test_two_processes_do_not_share_a_folder(tmp_path: Path) -> None:
    with (
        open_results(tmp_path, RUN),
        pytest.raises(ValueError, match="another evaluation"),
        open_results(tmp_path, RUN),
    ):
        pass
    with open_results(tmp_path, RUN):
        pass


def test_images_of_ids_that_look_alike_get_files_of_their_own(tmp_path: Path) -> None:
    image = Image.new("RGB", (2, 2))
    with open_results(tmp_path, RUN) as files:
        paths = {files.save_image("colours", id, 0, image) for id in ("a/b", "a b", "../../a:b", "ü")}
    assert len(paths) == 4
    for path in paths:
        assert (tmp_path / path).resolve().is_relative_to(tmp_path / "images" / "colours")


def test_rows_of_which_nobody_knows_what_they_are_of_are_refused(tmp_path: Path) -> None:
    with open_results(tmp_path, RUN) as files:
        files.append([row("a")])
    (tmp_path / STAMP).unlink()
    with pytest.raises(ValueError, match=r"results.jsonl without stamp.json"), open_results(tmp_path, RUN):
        pass
    with pytest.raises(ValueError, match=r"holds no stamp.json"):
        read_json(tmp_path / STAMP)

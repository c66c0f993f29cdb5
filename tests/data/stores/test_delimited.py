"""Laws of CSV and TSV: rows by number are csv.reader's over the whole file, and none is ever merged or lost."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from diptych.data.samples import RecordError
from diptych.data.stores.delimited import DelimitedTable

cells = st.text('ab",\t \n\r\u2028\x85\x0b\x0c\x1cé🐶', max_size=6)
same_folder = settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])


def rows_of(store: DelimitedTable) -> list[Any]:
    """What each row holds, or the kind of its problem."""
    found: list[Any] = []
    for number in range(len(store)):
        try:
            found.append(store.read(number))
        except RecordError as error:
            found.append(error.kind)
    return found


def read_whole(text: str, delimiter: str) -> list[Any]:
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    return [
        {name: cell for name, cell in zip("xy", row, strict=True) if cell} if len(row) == 2 else "structure"
        for row in rows
        if row
    ]


@same_folder
@given(
    st.lists(st.tuples(cells, cells), max_size=6),
    st.sampled_from(["\n", "\r\n", "\r"]),
    st.sampled_from(["a.csv", "a.tsv"]),
    st.booleans(),
    st.booleans(),
)
def test_rows_are_those_of_the_whole_file(
    tmp_path: Path, rows: list[tuple[str, str]], end: str, name: str, all_quoted: bool, mark: bool
) -> None:
    text, delimiter = io.StringIO(newline=""), "," if name == "a.csv" else "\t"
    quoting = csv.QUOTE_ALL if all_quoted else csv.QUOTE_MINIMAL
    csv.writer(text, delimiter=delimiter, lineterminator=end, quoting=quoting).writerows([("x", "y"), *rows])
    (tmp_path / name).write_bytes(text.getvalue().encode("utf-8-sig" if mark else "utf-8"))
    assert rows_of(DelimitedTable(tmp_path / name)) == read_whole(text.getvalue(), delimiter)[1:]


@same_folder
@given(st.text('ab",\n\r ', max_size=40))
@example('"a\nb,c\n')
@example('a,"b" c\nd,e\n')
@example('a,b\n\n \n"c"\n')
def test_whatever_a_file_holds_its_good_rows_are_read_and_no_line_is_lost(tmp_path: Path, body: str) -> None:
    """A file that csv.reader reads as a whole is read alike; of any other, each line is in one row, good or bad."""
    (tmp_path / "a.csv").write_bytes(b"x,y\n" + body.encode())
    store = DelimitedTable(tmp_path / "a.csv")
    found = rows_of(store)
    try:
        expected = read_whole(body, ",")
    except csv.Error:
        assert 1 <= len(found) <= len([line for line in io.StringIO(body, newline="") if line.strip("\r\n")])
        assert "structure" in found
    else:
        assert found == expected


def test_a_quote_inside_a_cell_quotes_nothing(tmp_path: Path) -> None:
    rows = [[f"{number}.png", f"thing {number}"] for number in range(1000)]
    rows[4][1], rows[901][1] = 'a 5" screen', '12" ruler'
    (tmp_path / "a.tsv").write_text("image\tcaption\n" + "".join("\t".join(row) + "\n" for row in rows))
    assert rows_of(DelimitedTable(tmp_path / "a.tsv")) == [{"image": one, "caption": two} for one, two in rows]


def test_a_quote_that_is_never_closed_spoils_its_own_line_alone(tmp_path: Path) -> None:
    rows = [[f"{number}.png", f"thing {number}"] for number in range(1000)]
    rows[4][1] = '"5 inch screen'
    (tmp_path / "a.tsv").write_text("image\tcaption\n" + "".join("\t".join(row) + "\n" for row in rows))
    found = rows_of(DelimitedTable(tmp_path / "a.tsv"))
    assert [number for number, row in enumerate(found) if row == "structure"] == [4]
    assert len(found) == 1000


def test_a_row_over_very_many_lines_is_told(tmp_path: Path) -> None:
    """Such as it is where two lines each hold one quote, the first at a cell's start and the second at a cell's end."""
    (tmp_path / "a.csv").write_text('x,y\na,"5 inch\n' + "b,c\n" * 200 + 'd,a ruler"\n')
    with pytest.warns(UserWarning, match=r"a\.csv: the row at line 2 has 202 lines .* quote"):
        assert len(DelimitedTable(tmp_path / "a.csv")) == 1


def test_a_long_cell_is_read_and_one_that_is_too_long_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = "word " * 100_000
    (tmp_path / "a.csv").write_text(f'x,y\na,{words}\nb,"{words}\n"\nc,d\n')
    assert rows_of(DelimitedTable(tmp_path / "a.csv")) == [
        {"x": "a", "y": words},
        {"x": "b", "y": words + "\n"},
        {"x": "c", "y": "d"},
    ]
    monkeypatch.setattr("diptych.data.samples.MAX_RECORD_BYTES", 100_000)
    assert rows_of(DelimitedTable(tmp_path / "a.csv"))[0] == "too long"
    assert rows_of(DelimitedTable(tmp_path / "a.csv"))[-1] == {"x": "c", "y": "d"}

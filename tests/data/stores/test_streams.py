"""Laws of a stream: rows in their order are read once, whoever takes them, and a broken connection is no end."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from diptych.data.samples import RecordError
from diptych.data.stores.hub_dataset import StreamedDataset


def test_rows_of_a_stream_that_others_take_are_passed_over() -> None:
    opened: list[int] = []

    def rows(skip: int) -> Iterator[dict[str, int]]:
        opened.append(skip)
        return ({"n": number} for number in range(skip, 100))

    stream = StreamedDataset(rows, length=200, name="hub:x")
    numbers = [start + place for start in range(0, 100, 8) for place in range(4)]
    assert [stream.read(number)["n"] for number in numbers] == numbers
    assert opened == [0]
    for number in (150, 180, 100):
        with pytest.raises(RecordError, match="ends at row 100; lower the source's limit"):
            stream.read(number)
    assert opened == [0]
    assert stream.read(7) == {"n": 7}
    assert opened == [0, 7]


def test_a_stream_whose_connection_breaks_goes_on_where_it_broke(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr("time.sleep", pauses.append)
    failures = [3, 3, 6, 6, 6]

    def rows(skip: int) -> Iterator[dict[str, int]]:
        for number in range(skip, 10):
            if failures and failures[0] == number:
                failures.pop(0)
                raise ConnectionResetError("reset by peer")
            yield {"n": number}

    stream = StreamedDataset(rows, length=10, name="hub:x")
    assert [stream.read(number)["n"] for number in range(6)] == list(range(6))
    assert pauses == [1.0, 5.0]
    with pytest.raises(RecordError, match="cannot be reached: reset by peer") as caught:
        stream.read(6)
    assert caught.value.kind == "connection"
    assert [stream.read(number)["n"] for number in range(6, 10)] == list(range(6, 10))

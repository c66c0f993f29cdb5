"""Laws of what a page shows: always the same, the worst first and no right answer among them, images kept beside."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from diptych.data.samples import Message
from diptych.evaluate.shown_rows import NUM_IMAGES, SHOWN_SIZE, choose_some, choose_worst, keep_shown, open_shown
from diptych.evaluate.suite import Example, Metric, Row

EXACT, NEAR, FAR = Metric("exact", "e"), Metric("near", "n"), Metric("far", "f", unit="", higher_is_better=False)


def row(id: str, *, kind: str = "", images: tuple[str, ...] = (), **scores: float) -> Row:
    return Row("toys", id, kind, "?", (), "", "", images, scores)


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 5)), max_size=60), st.randoms())
def test_the_worst_come_first_and_nothing_best_is_among_them(values: list[tuple[float, float]], order: object) -> None:
    rows = [row(str(n), exact=exact, far=far) for n, (exact, far) in enumerate(values)]
    worst = choose_worst(rows, [EXACT, FAR])
    told = [(r.scores["exact"], -r.scores["far"]) for r in worst]
    assert told == sorted(told)
    assert all(exact < 1 for exact, _ in told)
    order.shuffle(rows)  # type: ignore[attr-defined]
    assert choose_worst(rows, [EXACT, FAR]) == worst
    assert choose_some(rows) == choose_some(rows[::-1])


def test_among_equals_the_next_metric_tells_and_then_kinds_take_turns() -> None:
    rows = [row(f"a{n}", kind="a", exact=0, near=1) for n in range(3)] + [row("b", kind="b", exact=0, near=1)]
    rows += [row("last", kind="a", exact=0, near=0), row("right", kind="a", exact=1, near=1)]
    worst = choose_worst(rows, [EXACT, NEAR])
    assert worst[0].id == "last"
    assert {r.kind for r in worst[1:3]} == {"a", "b"}
    assert len(worst) == 5


def test_a_metric_that_is_no_share_knows_no_right_answer_but_its_best() -> None:
    rows = [row(str(n), far=float(n)) for n in range(4)]
    assert [r.id for r in choose_worst(rows, [FAR])] == ["3", "2", "1"]


def test_images_are_kept_small_beside_the_rows_and_outlive_the_data(tmp_path: Path) -> None:
    paths = [tmp_path / f"{n}.png" for n in range(9)]
    for n, path in enumerate(paths):
        Image.new("RGB", (400, 200), (n, 0, 0)).save(path)
    Image.new("RGB", (8, 8), "blue").save(tmp_path / "drawn.png")
    asked = Message("user", tuple(range(9)))
    examples = [
        Example("many", (asked,), tuple(paths)),
        Example("itself", (asked,), (paths[3],), reference_image=paths[3]),
    ]
    rows = [row("many", exact=1), row("itself", images=("drawn.png",), exact=0)]
    keep_shown(examples, rows, [EXACT], tmp_path)
    for path in paths:
        path.unlink()
    many, itself = (open_shown(one, tmp_path) for one in rows)
    assert len(many.asked) == NUM_IMAGES
    assert [image.getpixel((0, 0))[0] for image in (many.asked[0], many.asked[-1])] == [0, 8]  # type: ignore[index]
    assert many.asked[0].size == (SHOWN_SIZE, SHOWN_SIZE // 2)
    assert (many.right, many.drawn) == ([], [])
    assert (len(itself.asked), len(itself.right), len(itself.drawn)) == (0, 1, 1), "what is asked is what is right"

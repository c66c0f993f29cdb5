"""Laws of the contract: a limit draws always the same, baselines are exact, and what is asked has one hash."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from diptych.data.samples import Message
from diptych.evaluate.suite import (
    Example,
    Needs,
    answer_baselines,
    check_needs,
    choose_examples,
    name_and_size,
    prompt_set_hash,
    with_shuffled_images,
)
from toy_suite import ColourSuite, FakeMorph, look, renamed


def examples_of(folder: Path, num: int = 20) -> list[Example]:
    return ColourSuite(folder, num).load_examples(lambda what, done, total: None)


def asked(
    number: int, *, kind: str, right: str = "", choices: tuple[str, ...] = (), images: tuple[Path, ...] = ()
) -> Example:
    return Example(str(number), (Message("user", ("?",)),), images, reference=right, kind=kind, choices=choices)


def test_a_limit_draws_the_same_and_a_larger_one_more_of_them(tmp_path: Path) -> None:
    examples = examples_of(tmp_path)
    few, more = (choose_examples(examples, limit, suite="colours") for limit in (5, 15))
    assert len(few) == 5
    assert len(more) == 15
    assert {e.id for e in few} < {e.id for e in more}
    assert few == choose_examples(examples[::-1], 5, suite="colours")
    assert {e.id for e in choose_examples(examples, None, suite="colours")} == {e.id for e in examples}


def test_an_id_that_stands_twice_is_refused(tmp_path: Path) -> None:
    examples = examples_of(tmp_path)
    with pytest.raises(ValueError, match="holds 'red/0' twice"):
        choose_examples([*examples, renamed(examples[0], "red/0")], None, suite="colours")


def test_baselines_are_of_each_kind_of_question() -> None:
    names = ["A cat", "cat.", "dog", "fox"]
    examples = [asked(n, kind="name", right=name) for n, name in enumerate(names)]
    examples += [asked(10 + n, kind="is it", right=right) for n, right in enumerate(["yes", "no", "no", "no"])]
    found = answer_baselines(examples, among=examples)
    assert found.majority == (2 + 3) / 8
    assert found.chance == pytest.approx((4 / 3 + 4 / 2) / 8)
    few = answer_baselines(examples[2:5], among=examples)
    assert few.majority == (1 + 1) / 3
    assert few.chance == pytest.approx((2 / 3 + 1 / 2) / 3), "a guess is among the answers of the whole suite"


def test_of_choices_the_answer_is_the_place() -> None:
    places = [("a", "b", "c", "d"), ("d", "a", "b", "c"), ("c", "d", "a", "b")]
    examples = [asked(n, kind="choice", right="a", choices=choices) for n, choices in enumerate(places)]
    found = answer_baselines(examples, among=examples)
    assert found.majority == 1 / 3
    assert found.chance == 1 / 4


def test_shuffled_images_are_those_of_others_of_the_same_kind(tmp_path: Path) -> None:
    examples = examples_of(tmp_path)
    shuffled = with_shuffled_images(examples)
    assert [replace(e, images=()) for e in shuffled] == [replace(e, images=()) for e in examples]
    assert all(one.images != other.images for one, other in zip(shuffled, examples, strict=True))
    for kind in ("colour", "red"):
        own, others = ([e.images for e in of if e.kind == kind] for of in (examples, shuffled))
        assert sorted(own) == sorted(others)


def test_a_limit_leaves_out_no_kind_before_it_takes_one_twice() -> None:
    examples = [asked(n, kind="common") for n in range(300)] + [asked(900, kind="rare"), asked(901, kind="rarer")]
    few, more = (choose_examples(examples, limit, suite="any") for limit in (3, 20))
    assert {e.kind for e in few} == {"common", "rare", "rarer"}
    assert {e.id for e in few} < {e.id for e in more}


def test_every_example_gets_other_images_where_many_show_the_same(tmp_path: Path) -> None:
    """Six questions on one picture and one each on three: a turn by one place would leave some as they were."""
    files = [tmp_path / f"{name}.png" for name in "abcd"]
    examples = [asked(n, kind="k", images=(files[0],)) for n in range(6)]
    examples += [asked(6 + n, kind="k", images=(file,)) for n, file in enumerate(files[1:])]
    examples.append(asked(9, kind="alone", images=(files[1],)))
    shuffled = with_shuffled_images(examples)
    assert all(one.images != other.images for one, other in zip(shuffled, examples, strict=True))
    assert [example.id for example in shuffled] == [example.id for example in examples]
    kinds = [asked(n, kind=f"kind {n}", images=(tmp_path / f"{n}.png",)) for n in range(12)]
    assert len({example.images for example in with_shuffled_images(kinds)}) > 4, "not all the same other one"
    with pytest.raises(ValueError, match="no other example of the run has 1 images"):
        with_shuffled_images(examples[:6])


def test_the_hash_of_what_is_asked_does_not_hang_on_order_or_place_but_on_every_pixel(tmp_path: Path) -> None:
    one, other = examples_of(tmp_path / "one"), examples_of(tmp_path / "other")
    before = prompt_set_hash(one)
    assert before == prompt_set_hash(other[::-1])
    assert before != prompt_set_hash(one[1:])
    assert before != prompt_set_hash([replace(one[0], reference="green"), *one[1:]])
    Image.new("RGB", (8, 8), (255, 0, 1)).save(tmp_path / "one" / "0.png")
    assert before != prompt_set_hash(one)


def test_a_large_set_is_told_without_being_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    examples = examples_of(tmp_path)
    before = prompt_set_hash(examples, tell_file=name_and_size)
    monkeypatch.setattr(Path, "open", None)
    assert prompt_set_hash(examples, tell_file=name_and_size) == before
    assert prompt_set_hash(examples[1:], tell_file=name_and_size) != before


def test_a_missing_package_is_named_with_its_extra(tmp_path: Path) -> None:
    suite = ColourSuite(tmp_path)
    suite.needs = Needs(packages={"no_such_package": "eval"})
    with pytest.raises(ValueError, match=r"needs no_such_package: pip install 'diptych\[eval\]'"):
        check_needs(suite, FakeMorph(look))


@pytest.mark.parametrize(
    ("ability", "says"),
    [("draws", "--pixel-decoder emoji-pixels"), ("reconstructs", "a pixel decoder"), ("writes", "language model")],
)
def test_a_missing_ability_says_how_to_get_it(tmp_path: Path, ability: Any, says: str) -> None:
    class Poor(FakeMorph):
        abilities = frozenset()

    suite = ColourSuite(tmp_path)
    suite.needs = Needs((ability,))
    with pytest.raises(ValueError, match=f"needs a morph that {ability}.*{says}"):
        check_needs(suite, Poor(look))

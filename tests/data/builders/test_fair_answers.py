"""No question of the six types is answered without its pictures: answers are even, and the words do not tell."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator

import pytest

from built_sets import read_all
from diptych.data.builders.clip_library import ClipSource
from diptych.data.builders.concept_gallery import GallerySource
from diptych.data.builders.fair_answers import AnswerBalance, even_shares, listed
from diptych.data.builders.image_qa import build_image_qa
from diptych.data.builders.text_instructions import build_text_instructions
from diptych.data.builders.video_qa import build_video_qa
from diptych.data.builders.visual_thinking import build_visual_thinking
from diptych.data.samples import Sample
from emoji_packages import NAMES, entry, write_clips, write_packages

MANY = [f"{name}{suffix}" for name in NAMES for suffix in ("", "ta", "ro")]
CLOSED = {
    "image-qa": ("kind", "keyword", "count", "exists", "position"),
    "visual-thinking": ("count",),
    "video-qa": ("kind", "next"),
    "text-only": ("kind",),
}
"""The forms of questions whose answers are few; of keywords, which of the four words it is."""
Form = tuple[str, str]
Told = tuple[str, str]
"""A question's words, and the answer."""


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[Form, list[Told]]]:
    """By split and form. Two things in three are animals, as among emoji."""
    subgroups = [10, 10, 10, 10, 10, 11, 11, 12]
    entries = [
        entry(name, i, group=3 + i % 5, subgroup=subgroups[i % 8], tags=[f"tag{name}", "joy", ("dusk", "dawn")[i % 2]])
        for i, name in enumerate(MANY)
    ]
    source = GallerySource(
        **write_packages(tmp_path_factory.mktemp("packages"), entries), num_concepts=len(MANY), image_size=16
    )
    clips = ClipSource(**write_clips(tmp_path_factory.mktemp("clips"), entries[:32]), num_clips=32, image_size=16)
    folder = tmp_path_factory.mktemp("sets")
    build_image_qa(folder / "image-qa", source, num_samples=900)
    build_visual_thinking(folder / "visual-thinking", source, num_samples=400)
    build_text_instructions(folder / "text-only", source, num_samples=600)
    build_video_qa(folder / "video-qa", clips, samples_per_clip=6)
    found: dict[str, dict[Form, list[Told]]] = defaultdict(lambda: defaultdict(list))
    for name, forms in CLOSED.items():
        for split, samples in read_all(folder / name).items():
            for sample in samples:
                task = str(sample.meta.get("task") or sample.meta.get("kind"))
                if task in forms:
                    found[split][name, task].append(question_and_answer(sample))
    return found


def question_and_answer(sample: Sample) -> Told:
    user, assistant = sample.messages
    return str(user.parts[0]).strip(), str(assistant.parts[-1]).strip()


def choices_in(question: str) -> list[str]:
    return question.rpartition(": ")[2].rstrip("?").replace(" or ", ", ").split(", ")


def answers_of(form: Form, told: Iterable[Told]) -> list[str]:
    return [str(choices_in(q).index(a)) if form[1] == "keyword" else a for q, a in told]


def test_every_form_is_there(told: dict[str, dict[Form, list[Told]]]) -> None:
    every = {(name, form) for name, forms in CLOSED.items() for form in forms}
    assert set(told["train"]) == every
    for split in ("held_out_concept", "held_out_style", "held_out_combination"):
        missing = {form for form in every - set(told[split]) if form[1] not in ("kind", "count")}
        assert not missing, "but where a split's few things are of one kind, which would be the answer"


def test_no_answer_is_more_frequent_than_the_others(told: dict[str, dict[Form, list[Told]]]) -> None:
    for split, forms in told.items():
        for form, found in forms.items():
            counts = Counter(answers_of(form, found))
            slack = 0.05 + (2 if form[1] in ("count", "position") else 1) / len(found)  # each word's are even
            assert len(counts) > 1, (split, form)
            assert max(counts.values()) / len(found) <= 1 / len(counts) + slack, (split, form, counts)


def test_who_reads_the_question_alone_guesses(told: dict[str, dict[Form, list[Told]]]) -> None:
    """Learnt from training: each question's usual answer; for keywords, how often each word was right."""
    held_out: dict[Form, list[Told]] = defaultdict(list)
    for split in ("held_out_concept", "held_out_style", "held_out_combination"):
        for form, found in told[split].items():
            held_out[form] += found
    for form, found in held_out.items():
        if form[0] == "text-only":  # its text is all that there is
            continue
        guesses = list(blind(form, told["train"][form], found))
        right = sum(guess == answer for guess, (_, answer) in zip(guesses, found, strict=True)) / len(found)
        chance = 1 / (4 if form[1] == "keyword" else len({answer for _, answer in found}))
        assert right <= chance + 1.5 * (chance * (1 - chance) / len(found)) ** 0.5 + 0.02, (form, right, chance)


def blind(form: Form, train: list[Told], asked: list[Told]) -> Iterator[str]:
    if form[1] == "keyword":
        offered = Counter(word for question, _ in train for word in choices_in(question))
        right = Counter(answer for _, answer in train)
        for question, _ in asked:
            yield max(choices_in(question), key=lambda word: (right[word] + 1) / (offered[word] + 4))
        return
    usual: dict[str, Counter[str]] = defaultdict(Counter)
    for question, answer in train:
        usual[question][answer] += 1
    overall = Counter(answer for _, answer in train)
    for question, _ in asked:
        yield (usual.get(question) or overall).most_common(1)[0][0]


def test_the_words_of_a_keyword_question_are_as_often_right_as_wrong(told: dict[str, dict[Form, list[Told]]]) -> None:
    """Each of four things of different groups has its word among the four: one in four is the answer."""
    found = told["train"]["image-qa", "keyword"]
    for question, answer in found:
        words = choices_in(question)
        assert answer in words
        assert len(set(words)) == 4
    halves = [[question for question, answer in found if answer < "tagk"], [q for q, a in found if a >= "tagk"]]
    offered = [sum(word < "tagk" for question, _ in found for word in choices_in(question)), 0]
    offered[1] = 4 * len(found) - offered[0]
    for half, count in zip(halves, offered, strict=True):
        assert len(half) / count == pytest.approx(0.25, abs=0.06)


def test_the_rarest_answer_comes_next() -> None:
    balance, given = AnswerBalance(), Counter()
    for seed in range(20):
        answer = balance.draw("kind", ("a", "b", "c"), random.Random(seed))
        balance.count("kind", answer)
        given[answer] += 1
        assert max(given.values()) - min(given[one] for one in "abc") <= 1
    assert balance.draw("other", ("x",), random.Random(0)) == "x"


def test_choices_stand_in_any_order() -> None:
    orders = {listed(("a", "b", "c"), random.Random(seed)) for seed in range(100)}
    assert len(orders) == 6
    assert "a, b or c" in orders


@pytest.mark.parametrize(("total", "parts"), [(64, 5), (3, 7), (10, 1)])
def test_even_shares_add_up(total: int, parts: int) -> None:
    shares = even_shares(total, parts)
    assert sum(shares) == total
    assert max(shares) - min(shares) <= 1

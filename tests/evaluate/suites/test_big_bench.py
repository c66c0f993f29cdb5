"""Laws of the BIG-bench suite: questions in BIG-bench's own words, grades as the task has them, known answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from diptych.evaluate.harness import evaluate_suites
from diptych.evaluate.suites.big_bench import BigBench, read_task
from diptych.evaluate.suites.known_suites import build_suites
from tiny_xfusion import build_language, build_tiny_morph
from toy_suite import STAMP

LEGS = {"input": "How many legs do horses have?", "target_scores": {"two": 0, "four": 1, "six": 0}}
EYES = {"input": "How many eyes do horses have?", "target_scores": {"two": 1, "four": 0, "six": 0}}
MORE = {"input": "Name an even number.", "target_scores": {"two": 1, "four": 1, "six": 0, "nine": 0}}


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    folder = tmp_path / "tasks"
    write_task(folder / "horses", [LEGS, EYES, LEGS, MORE])
    yes_no = [{"input": f"Is it {k}?", "target_scores": {"Yes": k % 3 == 0, "No": k % 3 != 0}} for k in range(6)]
    more = {"example_input_prefix": "\n", "example_output_prefix": "\nWell?\n", "append_choices_to_input": False}
    write_task(folder / "numbers", yes_no, task_prefix="Think.", **more)
    return folder


def write_task(folder: Path, examples: list[dict[str, Any]], **more: Any) -> None:
    folder.mkdir(parents=True)
    content = {"metrics": ["multiple_choice_grade"], "examples": examples} | more
    (folder / "task.json").write_text(json.dumps(content))


def load(folder: Path) -> Any:
    return BigBench(folder).load_examples(lambda what, done, total: None)


class Reader:
    """A language model that finds one ending of a text likeliest, by a rule that is given the text before it."""

    abilities = frozenset({"writes"})
    language_model = torch.nn.Linear(1, 1)
    device = torch.device("cpu")

    def __init__(self, rule: dict[str, str], tokenizer: Any) -> None:
        self.rule, self.tokenizer = rule, tokenizer

    def text_logits(self, ids: Tensor) -> Tensor:
        logits = torch.zeros(*ids.shape, 259)
        for row in range(len(ids)):
            text = self.tokenizer.decode(ids[row].tolist())
            for question, answer in self.rule.items():
                if text.startswith(question):
                    start = len(self.tokenizer(question)["input_ids"])
                    for place, token in enumerate(self.tokenizer(answer)["input_ids"]):
                        if start + place < ids.shape[1]:
                            logits[row, start + place - 1, token] = 30.0
        return logits


def run(rule: dict[str, str], tasks: Path, out: Path) -> Any:
    base = build_language()
    (result,) = evaluate_suites(Reader(rule, base.tokenizer), [BigBench(tasks, base=base)], out, stamp=STAMP)
    return result


def test_questions_are_worded_as_big_bench_words_them(tasks: Path) -> None:
    examples = {e.id: e for e in load(tasks)}
    assert list(examples) == [
        *("horses/0000", "horses/0001", "horses/0003"),
        *(f"numbers/{k:04d}" for k in range(6)),
    ]
    legs, number = examples["horses/0000"], examples["numbers/0001"]
    first, *listed = legs.question().removesuffix("\nA: ").split("\n  choice: ")
    assert first == "\nQ: How many legs do horses have?"
    assert sorted(listed) == ["four", "six", "two"]
    assert (legs.reference, legs.choices) == ("four", ("two", "four", "six"))
    assert number.question() == "Think.\nIs it 1?\nWell?\n"
    assert (number.reference, number.kind) == ("No", "numbers")


def test_who_knows_scores_100_per_cent_and_the_base_what_it_scores(tasks: Path, tmp_path: Path) -> None:
    result = run({e.question(): e.reference for e in load(tasks)}, tasks, tmp_path / "out")
    assert result.scores["grade"].mean == 1
    assert {kind: scores["grade"].num for kind, scores in result.by_kind.items()} == {"horses": 3, "numbers": 6}
    base = result.scores["base_grade"].mean
    agreeing = [row.scores["same_choice"] for row in result.rows if row.scores["base_grade"]]
    assert 0 < base < 1
    assert sum(agreeing) >= len(agreeing) - 1  # a question of two right answers may be answered with either


def test_a_model_with_the_weights_of_the_base_is_asked_once(tasks: Path, tmp_path: Path) -> None:
    base = build_language()
    morph, calls = build_tiny_morph(), []
    base.model.register_forward_hook(lambda *told: calls.append(1))
    (result,) = evaluate_suites(morph, [BigBench(tasks, base=base)], tmp_path / "same", stamp=STAMP)
    assert not calls
    assert result.scores["grade"].mean == result.scores["base_grade"].mean
    with torch.no_grad():
        morph.language_model.model.norm.weight.mul_(-1)
    (result,) = evaluate_suites(morph, [BigBench(tasks, base=base)], tmp_path / "other", stamp=STAMP)
    assert calls
    assert result.scores["same_choice"].mean < 1


def test_the_commonest_answers_score_the_majority_baseline(tasks: Path, tmp_path: Path) -> None:
    commonest = {"horses": "two", "numbers": "No"}
    result = run({e.question(): commonest[e.kind] for e in load(tasks)}, tasks, tmp_path / "out")
    for scores in (result.scores, *result.by_kind.values()):
        assert scores["grade"].mean == pytest.approx(scores["grade"].baselines.majority)
    assert result.by_kind["horses"]["grade"].mean == pytest.approx(2 / 3)
    assert result.by_kind["horses"]["grade"].baselines.chance == pytest.approx((1 / 3 + 1 / 3 + 1 / 2) / 3)
    assert result.by_kind["numbers"]["grade"].baselines.chance == pytest.approx(1 / 2)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"metrics": ["bleu"], "examples": []}, "not scored by multiple_choice_grade"),
        ({"metrics": ["multiple_choice_grade"], "examples": [{"input": "a", "target": "b"}]}, "target_scores"),
        (
            {"metrics": ["multiple_choice_grade"], "examples": [{"input": "a", "target_scores": {"b": 0, "c": 0}}]},
            "no choice of example 0 is better",
        ),
        ([], "no task of BIG-bench"),
    ],
)
def test_what_is_no_such_task_is_refused_by_name(tmp_path: Path, content: Any, says: str) -> None:
    (tmp_path / "task").mkdir()
    (tmp_path / "task" / "task.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=rf"task\.json is no task.*{says}|{says}"):
        list(read_task(tmp_path / "task" / "task.json"))
    with pytest.raises(ValueError, match="holds no"):
        load(tmp_path / "task")


@pytest.mark.assets("bigbench")
def test_the_real_tasks_are_all_there() -> None:
    (suite,) = build_suites(["bigbench"], {})
    counts: dict[str, int] = {}
    for example in suite.load_examples(lambda what, done, total: None):
        counts[example.kind] = counts.get(example.kind, 0) + 1
    assert counts == {
        "anachronisms": 230,
        "general_knowledge": 70,
        "hindu_knowledge": 175,
        "intent_recognition": 693,
        "similarities_abstraction": 76,
    }

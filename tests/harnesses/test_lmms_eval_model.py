"""Laws of lmms-eval's model: by a small stand-in of the harness everywhere, by the harness itself where it is installed
(`make test-harnesses`)."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from benchmark_layouts import ASKED, COLOURS, TASKS, ColourReader, plain, write_benchmarks
from tiny_xfusion import save_tiny_morph

MODULE = "diptych.harnesses.lmms_eval_model"
TESTS = Path(__file__).parents[1]


class Lmms:
    """What diptych uses of `lmms_eval.api.model.lmms`."""

    def __init__(self) -> None:
        self.rank = 0
        self.task_dict: dict[str, Any] = {}


@pytest.fixture
def model_class(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """`LmmsEvalModel`, on the stand-in."""
    api = ModuleType("lmms_eval.api.model")
    api.__dict__["lmms"] = Lmms
    for name in ("lmms_eval", "lmms_eval.api"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, api.__name__, api)
    before = sys.modules.pop(MODULE, None)
    yield importlib.import_module(MODULE).LmmsEvalModel
    del sys.modules[MODULE]
    if before is not None:
        sys.modules[MODULE] = before


def ask(model: Any, docs: list[dict[str, Any]], settings: dict[str, Any], *, repeats: int = 1) -> list[Any]:
    """Requests as lmms-eval builds them for a chat model."""

    def doc_to_messages(doc: dict[str, Any]) -> list[dict[str, Any]]:
        content = [{"type": "image", "url": plain(doc["shown"])}, {"type": "text", "text": doc["question"]}]
        return [{"role": "user", "content": content}]

    model.task_dict = {"task": {"test": docs}}
    made = [
        SimpleNamespace(args=(doc["question"], doc_to_messages, settings, number, "task", "test"))
        for number, doc in enumerate(docs)
    ]
    return [request for request in made for _ in range(repeats)]


def test_each_document_gets_the_answer_to_its_own_image(model_class: Any) -> None:
    reader = ColourReader()
    model = model_class(reader, batch_size="3", max_new_tokens=9)
    docs = [{"shown": name, "question": f"{ASKED}{'!' * n}"} for n, name in enumerate([*COLOURS] * 2)]
    assert model.generate_until(ask(model, docs, {"until": ["\n\n"]})) == [doc["shown"] for doc in docs]
    assert [len(batch) for batch in reader.batches] == [3, 3, 2]
    assert {options["max_new_tokens"] for options in reader.options} == {9}
    assert model.device == "cpu"


def test_repeats_of_one_question_have_seeds_of_their_own(model_class: Any) -> None:
    reader = ColourReader()
    model = model_class(reader, batch_size=8)
    docs = [{"shown": name, "question": ASKED} for name in ("red", "blue")]
    answers = model.generate_until(ask(model, docs, {"temperature": 1.0}, repeats=3))
    assert answers == ["red"] * 3 + ["blue"] * 3
    assert [(options["seed"], len(batch)) for options, batch in zip(reader.options, reader.batches, strict=True)] == [
        (0, 2),
        (1, 2),
        (2, 2),
    ]


def test_what_it_cannot_do_is_refused_with_what_can(model_class: Any) -> None:
    model = model_class(ColourReader())
    with pytest.raises(ValueError, match="take the task that generates"):
        model.loglikelihood([])
    with pytest.raises(ValueError, match="leave out the tasks of several rounds"):
        model.generate_until_multi_round([])
    for wrong in ({"batch_size": "auto"}, {"batch_size": 0}, {"num_frames": 0}):
        with pytest.raises(ValueError, match="must be numbers from 1 up"):
            model_class(ColourReader(), **wrong)


def test_a_stamp_is_written_where_it_is_asked_for(model_class: Any, tmp_path: Path) -> None:
    model = model_class(str(save_tiny_morph(tmp_path)), stamp=str(tmp_path / "stamp.json"))
    written = json.loads((tmp_path / "stamp.json").read_text())
    assert written == model.stamp
    assert (written["num_frames"], written["max_new_tokens"], written["batch_size"]) == (8, 128, 1)
    assert written["harness"].startswith("lmms-eval ")
    assert len(written["morph_hash"]) == len(written["base_hash"]) == 64


SCORING = """
import json, sys
from types import SimpleNamespace
from lmms_eval.evaluator import simple_evaluate
from lmms_eval.tasks import TaskManager
from benchmark_layouts import TASKS, ColourReader
from diptych.harnesses.lmms_eval_model import LmmsEvalModel

manager = TaskManager("ERROR", model_name="diptych")
scored = []
for truthful in (True, False):
    results = simple_evaluate(
        model=LmmsEvalModel(ColourReader(truthful=truthful), batch_size=3),
        tasks=list(TASKS),
        task_manager=manager,
        cli_args=SimpleNamespace(output_path="out", process_with_media=False),
    )["results"]
    scored.append({task: results[task][metric] for task, (metric, _) in TASKS.items()})
json.dump(scored, open("scored.json", "w"))
"""


@pytest.fixture(scope="module")
def benchmarks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("lmms_eval", reason="lmms-eval is not installed; say `make test-harnesses`")
    root = tmp_path_factory.mktemp("benchmarks")
    write_benchmarks(root)
    return root


def run(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Python in the folder that holds the benchmarks."""
    environment = os.environ | {"HF_HOME": str(root / "hub"), "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(TESTS)}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=root, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done


@pytest.mark.timeout(1800)
def test_the_keepers_tasks_tell_right_from_wrong(benchmarks: Path) -> None:
    """Every benchmark of MetaMorph's page, its own prompts, parsing and scoring: who reads the images has all points,
    who names another colour none. So images, clips and texts arrive together, and in their places."""
    run(benchmarks, "-c", SCORING)
    right, wrong = json.loads((benchmarks / "scored.json").read_text())
    assert right == {task: perfect for task, (_, perfect) in TASKS.items()}
    assert wrong == dict.fromkeys(TASKS, 0.0)


@pytest.mark.timeout(1800)
def test_a_morph_goes_through_the_harness_by_its_own_command(benchmarks: Path, tmp_path: Path) -> None:
    morph = save_tiny_morph(tmp_path)
    arguments = {
        "--model": "diptych",
        "--model_args": f"morph={morph},stamp={tmp_path}/stamp.json",
        "--tasks": "mmmu_val,mvbench_action_antonym",
        "--batch_size": "2",
        "--gen_kwargs": "max_new_tokens=4",
        "--output_path": str(tmp_path / "out"),
    }
    done = run(benchmarks, "-m", "lmms_eval", *[word for pair in arguments.items() for word in pair], "--log_samples")
    found = list((tmp_path / "out").rglob("*results.json"))
    assert len(found) == 1, done.stdout[-3000:] + done.stderr[-3000:]  # lmms-eval ends with 0 after an error too
    results = json.loads(found[0].read_text())
    assert set(results["results"]) == {"mmmu_val", "mvbench_action_antonym"}
    assert json.loads((tmp_path / "stamp.json").read_text())["morph"] == str(morph)

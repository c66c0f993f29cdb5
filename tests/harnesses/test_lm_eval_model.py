"""Laws of lm-eval's model: a frozen language model scores, through a morph, bit for bit what it scores by itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmark_layouts import write_text_benchmarks
from tiny_vpit import build_vpit
from tiny_xfusion import build_language, build_tiny_morph, save_tiny_morph

# lm-eval and what it imports warn about themselves.
pytestmark = pytest.mark.filterwarnings("ignore")
TEXTS = ["a", "the cat sat on the mat", "the cat sat", "of", "one two three four five six seven"]


@pytest.fixture(scope="module")
def model_class() -> Any:
    reason = "lm-eval is not installed; say `make test-harnesses`"
    pytest.importorskip("lm_eval.models.huggingface", reason=reason)
    from diptych.harnesses.lm_eval_model import LmEvalModel

    return LmEvalModel


def requests(*arguments: tuple[Any, ...]) -> list[Any]:
    return [SimpleNamespace(args=own, task_name="made") for own in arguments]


def answers(model: Any) -> tuple[Any, ...]:
    """All that a task can ask."""
    pairs = [(context, f" {text}") for context in ("", *TEXTS) for text in TEXTS]
    settings = {"until": ["\n\n"], "max_gen_toks": 5, "do_sample": False}
    return (
        model.loglikelihood(requests(*pairs), disable_tqdm=True),
        model.loglikelihood_rolling(requests(*[(text,) for text in TEXTS]), disable_tqdm=True),
        model.generate_until(requests(*[(text, settings) for text in TEXTS]), disable_tqdm=True),
    )


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_a_frozen_language_model_scores_what_it_scores_alone(model_class: Any, family: str) -> None:
    from lm_eval.models.huggingface import HFLM  # pyright: ignore[reportMissingImports]

    base = build_language(family)
    alone = HFLM(pretrained=base.model, tokenizer=base.tokenizer, backend="causal", batch_size=4, max_length=64)
    morph = build_tiny_morph(family)
    assert morph.language_model is not base.model
    assert answers(model_class(morph, batch_size=4, max_length=64)) == answers(alone)


def test_a_trained_language_model_is_scored_as_trained(model_class: Any) -> None:
    morph = build_vpit()
    with torch.no_grad():
        morph.language_model.get_input_embeddings().weight.mul_(1.5)
    model = model_class(morph, batch_size=4, max_length=64)
    ((logprob, is_greedy),) = model.loglikelihood(requests(("the cat", " sat")), disable_tqdm=True)
    ids = torch.tensor([morph.tokenizer.encode("the cat sat")])
    start = len(morph.tokenizer.encode("the cat"))
    told = torch.log_softmax(morph.text_logits(ids)[0, start - 1 : -1].float(), dim=-1)
    assert logprob == pytest.approx(told.gather(1, ids[0, start:, None]).sum().item(), abs=1e-4)
    assert is_greedy == bool((told.argmax(dim=-1) == ids[0, start:]).all())


def test_batches_change_nothing_but_the_last_digits(model_class: Any) -> None:
    morph = build_tiny_morph()
    one, many = (answers(model_class(morph, batch_size=size, max_length=64)) for size in (1, 16))
    for (mine, greedy), (theirs, theirs_greedy) in zip(one[0], many[0], strict=True):
        assert mine == pytest.approx(theirs, abs=1e-4)
        assert greedy == theirs_greedy
    assert one[1] == pytest.approx(many[1], abs=1e-4)
    assert one[2] == many[2]


def test_the_keepers_tasks_run_by_the_harness_own_command(model_class: Any, tmp_path: Path) -> None:
    """MMLU 5-shot, HellaSwag, WikiText-2 and GSM8K with their own prompts and scoring, on stand-ins for their data."""
    write_text_benchmarks(tmp_path)
    save_tiny_morph(tmp_path)
    environment = os.environ | {"HF_HOME": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}
    arguments = {
        "--model": "diptych",
        "--model_args": "morph=morph,max_length=512",
        "--tasks": "mmlu_abstract_algebra,hellaswag,wikitext,gsm8k",
        "--num_fewshot": "5",
        "--batch_size": "4",
        "--limit": "2",
        "--gen_kwargs": "max_gen_toks=4",
        "--output_path": "out",
    }
    command = [sys.executable, "-m", "diptych.harnesses.lm_eval_model"]
    command += [word for pair in arguments.items() for word in pair]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    (found,) = (tmp_path / "out").rglob("results*.json")
    written = json.loads(found.read_text())
    assert set(written["results"]) == {"mmlu_abstract_algebra", "hellaswag", "wikitext", "gsm8k"}
    assert written["results"]["mmlu_abstract_algebra"]["acc,none"] in (0.0, 0.5, 1.0)
    assert written["results"]["wikitext"]["word_perplexity,none"] > 1.0
    assert len(written["config"]["diptych"]["morph_hash"]) == 64

"""Laws of several processes: two gloo ranks under FSDP2 do what one process does, whatever each rank's samples are."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import diptych
from diptych.data.mixture import Mixture
from diptych.train.log import read_log
from diptych.train.loop import run_training
from tiny_vpit import build_training, write_emblems
from train.tiny_xfusion_runs import DESIGNS, build_xfusion_training, write_samples, xfusion_recipe
from train.toy_method import HookedMethod, ToyMethod, toy_recipe
from train.two_ranks import MIXES, PACKS, SITES, train_packs, vpit_run

Reports = tuple[Path, list[dict[str, Any]]]


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Reports:
    """Both ranks' reports of one torchrun (most of its time is imports, so one does it all)."""
    folder = tmp_path_factory.mktemp("two")
    write_samples(folder / "data")
    write_emblems(folder / "emblems")
    stop = threading.Event()
    halting = HookedMethod(lambda done: stop.set() if done == 5 else None)
    run_training(toy_recipe(folder / "one-to-two", resume_from_checkpoint="latest"), halting, stop=stop)
    train_packs(folder / "packs-one-to-two", ranks=1, stop_after=18)
    roots = (Path(diptych.__file__).parents[1], Path(__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, roots))}
    script = str(Path(__file__).with_name("two_ranks.py"))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", script]
    ended = subprocess.run(
        [*command, str(folder)], env=environment, capture_output=True, text=True, check=False, timeout=240
    )
    assert ended.returncode == 0, ended.stderr
    return folder, [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in (0, 1)]


def compare_runs(one: Path, other: Path, *, weights_file: str = "trained.safetensors") -> float:
    """Asserts equal losses to 1e-5 and equal morphs; gives the worst relative difference of a loss."""
    rows = [read_log(run / "log.jsonl") for run in (one, other)]
    assert [row["step"] for row in rows[0]] == [row["step"] for row in rows[1]]
    losses = [torch.tensor([row["loss"] for row in each], dtype=torch.float64) for each in rows]
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-5, atol=1e-6)
    weights = [load_file(run / "morph" / weights_file) for run in (one, other)]
    torch.testing.assert_close(weights[1], weights[0], rtol=1e-4, atol=1e-5)
    return float(((losses[1] - losses[0]) / losses[0]).abs().max())


def test_two_ranks_train_as_one_process_over_100_random_mixes(two: Reports, tmp_path: Path) -> None:
    """Each rank's micro-batch is text only or images only by chance; 200 of them, no hang. Measured worst: 1.3e-7."""
    folder, reports = two
    options = {**MIXES, "per_device_train_batch_size": 4}
    run_training(toy_recipe(tmp_path, **options), ToyMethod(kinds="pairs"))
    worst = compare_runs(tmp_path, folder / "mixes")
    print(f"worst relative difference of a loss: {worst:.1e}")
    method = ToyMethod(kinds="pairs")
    kinds = []
    for draw in range(0, 50 * 8, 4):
        batches = [method.build_batch([(d, 0, 0), (d + 1, 0, 0)], seed=3) for d in (draw, draw + 2)]
        kinds.append(tuple(bool(batch.is_text.all()) for batch in batches))
    assert len(kinds) == 100
    assert {(True, False), (False, True), (True, True), (False, False)} == set(kinds)
    draws = [{draw for draw, _, _ in report["mixes"]["built"]} for report in reports]
    assert not draws[0] & draws[1]
    assert draws[0] | draws[1] == set(range(400))
    assert {report["mixes"]["frozen"] for report in reports} == {ToyMethod().frozen_hashes()["base"]}
    assert sorted(path.name for path in (folder / "mixes" / "samples").iterdir()) == [
        "step-000025.png",
        "step-000050.png",
    ]


@pytest.mark.parametrize("design", DESIGNS)
def test_two_ranks_train_xfusion_as_one_process(two: Reports, tmp_path: Path, design: str) -> None:
    """One sample per rank and micro-batch: one rank draws while the other reads, so blocks run twice, once or
    never. Measured worst relative difference of a loss: 4.6e-8."""
    folder, _ = two
    recipe = xfusion_recipe(tmp_path, folder / "data", batch_size=2, design=design)
    run_training(recipe, build_xfusion_training(recipe))
    worst = compare_runs(tmp_path, folder / design, weights_file="model.safetensors")
    print(f"worst relative difference of a loss: {worst:.1e}")
    for step in (3, 6):
        grids = []
        for run in (tmp_path, folder / design):
            with Image.open(run / "samples" / f"step-{step:06d}.png") as grid:
                grids.append(torch.from_numpy(np.array(grid)).int())
        assert int((grids[0] - grids[1]).abs().max()) <= 1


def test_two_ranks_train_vpit_as_one_process(two: Reports, tmp_path: Path) -> None:
    """One sample per rank: one rank draws while the other reads, so one of them has no visual loss, and the LM head is
    the embedding, divided or not."""
    folder, _ = two
    recipe = vpit_run(tmp_path, folder / "emblems", batch_size=2)
    run_training(recipe, build_training(recipe))
    compare_runs(tmp_path, folder / "vpit", weights_file="model.safetensors")
    rows = [read_log(run / "log.jsonl") for run in (tmp_path, folder / "vpit")]
    measured = [[row["measures"]["free_running_cosine"] for row in each if "measures" in row] for each in rows]
    assert len(measured[0]) == 2
    assert measured[1] == pytest.approx(measured[0], abs=1e-5)


@pytest.mark.parametrize("site", SITES)
def test_both_ranks_stop_or_skip_alike_for_what_is_not_finite_in_one(two: Reports, site: str) -> None:
    _, reports = two
    assert reports[0][site] == reports[1][site]
    assert reports[0][site]["unchanged"] is True
    named = "norm of the gradient" if site == "gradient" else f"the loss '{site}' is nan"
    assert reports[0][site]["error"].startswith("step 5: ")
    assert named in reports[0][site]["error"]
    assert [report[f"{site} skipped"] for report in reports] == [{"skipped": 1, "step": 12}] * 2


def test_a_stop_asked_of_one_rank_stops_both_after_the_step(two: Reports) -> None:
    _, reports = two
    assert [report["stopped"] for report in reports] == [{"step": 6, "interrupted": True}] * 2


def test_a_run_resumes_on_another_number_of_processes(two: Reports, tmp_path: Path) -> None:
    """1 -> 2 and 2 -> 1: the same samples, none dropped or doubled, the same losses."""
    folder, reports = two
    run_training(toy_recipe(tmp_path / "whole"), ToyMethod())
    compare_runs(tmp_path / "whole", folder / "one-to-two")
    draws = sorted(draw for report in reports for draw, _, _ in report["one to two"]["built"])
    assert draws == list(range(12, 24))
    method = ToyMethod()
    run_training(toy_recipe(folder / "two-to-one", resume_from_checkpoint="latest"), method)
    assert [draw for draw, _, _ in method.built] == list(range(12, 24))
    compare_runs(tmp_path / "whole", folder / "two-to-one")


def test_two_ranks_resume_bit_for_bit(two: Reports) -> None:
    folder, _ = two
    for name in ("trained", "optimizer", "average"):
        ends = [folder / run / f"checkpoints/step-000012/{name}.safetensors" for run in ("whole-of-two", "two-to-two")]
        assert ends[0].read_bytes() == ends[1].read_bytes()


def dealt(reports: list[dict[str, Any]], name: str) -> list[list[int]]:
    """Both ranks' packs in the order of the plan: number m of rank r is number 2 m + r."""
    first, second = (report[name] for report in reports)
    assert len(first) == len(second)
    return [pack for both in zip(first, second, strict=True) for pack in both]


def num_tokens(packs: list[list[int]]) -> int:
    mixture = Mixture((11, 7), (2, 1), 3)
    return sum(ToyMethod().num_tokens(mixture.pick(draw), seed=3) for pack in packs for draw in pack)


def test_two_ranks_share_the_packs_of_one_process(two: Reports, tmp_path: Path) -> None:
    """The same packs, so as well filled; no sample twice, and what came in no pack waits in the state of both."""
    folder, reports = two
    expected = train_packs(tmp_path / "packs", ranks=1)
    found = dealt(reports, "packs")
    assert found == expected
    assert len(found) == 12 * 4
    assert num_tokens(found) >= 0.97 * PACKS["packing_length"] * len(found)
    draws = [draw for pack in found for draw in pack]
    assert len(draws) == len(set(draws))
    state = json.loads((folder / "packs/checkpoints/step-000012/state.json").read_text())["data_state"]
    assert sorted(draws + state["waiting"]) == list(range(state["next_draw"]))
    compare_runs(tmp_path / "packs", folder / "packs")


@pytest.mark.parametrize(("name", "run"), [("packs resumed", "packs-halted"), ("packs one to two", "packs-one-to-two")])
def test_packs_resume_to_the_exact_sample_on_two_ranks(two: Reports, name: str, run: str) -> None:
    folder, reports = two
    whole, later = dealt(reports, "packs"), dealt(reports, name)
    assert 0 < len(later) < len(whole)
    assert later == whole[-len(later) :]
    compare_runs(folder / "packs", folder / run)
    if run == "packs-halted":
        ends = [folder / each / "checkpoints/step-000012/trained.safetensors" for each in ("packs", run)]
        assert ends[0].read_bytes() == ends[1].read_bytes()


def test_every_rank_hears_of_a_full_disk(two: Reports) -> None:
    _, reports = two
    assert "No space left" in reports[0]["disk full"]
    assert "rank 0" in reports[1]["disk full"]


def test_sums_and_bytes_reach_every_rank(two: Reports) -> None:
    for report in two[1]:
        assert report["sum"] == 3.0
        assert report["bytes"] == ["x", "xx"]

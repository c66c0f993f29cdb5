"""How much of an evaluation is model time: goal, at most 5% for the harness.

    python bench/eval_overhead.py emoji-dual --suite easy-vqa,emoji-t2i --limit 200

model: in the morph's calls. judge: what scores the answers (an image encoder, SSIM), once prepared. harness: all the
rest from the first question to the written page: images opened, batches made, PNGs and rows forced to the disk, the
bootstrap, the page. Examples loaded and judges prepared beforehand are no part of it. Seconds are the process's own
(CPU), so that others on the machine do not count; waiting for the disk is then left out (--wall puts it in).
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

from diptych.evaluate.answering import Sampling
from diptych.evaluate.evaluated_morph import load_evaluated
from diptych.evaluate.harness import evaluate_suites
from diptych.evaluate.suites.known_suites import build_suites
from paired import print_table

MODEL = ("generate_batch", "reconstruct")
JUDGE = ("score", "baselines")
"""The embedded network judges drawings, and what the baselines show in their place."""
GOAL = 0.05


class Timed:
    """Stands for `inner`, and adds up the seconds spent in some of its methods."""

    def __init__(self, inner: Any, methods: Iterable[str], clock: Callable[[], float]) -> None:
        self._inner, self._methods, self._clock = inner, tuple(methods), clock
        self.seconds = 0.0

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._inner, name)
        if name not in self._methods:
            return found

        def timed(*args: Any, **kwargs: Any) -> Any:
            start = self._clock()
            try:
                return found(*args, **kwargs)
            finally:
                self.seconds += self._clock() - start

        return timed


class Loaded(Timed):
    """A suite whose examples are loaded and judge is prepared before the clock runs."""

    def __init__(self, inner: Any, morph: Any, clock: Callable[[], float]) -> None:
        super().__init__(inner, JUDGE, clock)
        self._examples = inner.load_examples(_tell_nothing)
        inner.prepare(morph, _tell_nothing)
        inner.baselines = self.baselines  # timed where its own `summarise` asks for them, too

    def load_examples(self, progress: Any) -> list[Any]:
        return self._examples

    def prepare(self, morph: Any, progress: Any) -> None:
        pass


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("morph", nargs="?", default="emoji-dual")
    parser.add_argument("--suite", default="easy-vqa,emoji-t2i,reconstruction")
    parser.add_argument("--limit", type=int, default=200)
    parser.add_argument("--num-inference-steps", type=int)
    parser.add_argument("--data", type=Path, help="of every suite, in place of its own")
    parser.add_argument("--wall", action="store_true", help="seconds of the clock on the wall")
    options = parser.parse_args()
    torch.set_num_threads(2)
    clock = time.perf_counter if options.wall else time.process_time
    sampling = Sampling(num_inference_steps=options.num_inference_steps)
    morph, stamp = load_evaluated(options.morph, sampling=sampling)
    rows = []
    for name in options.suite.split(","):
        (suite,) = build_suites([name], {} if options.data is None else {name: options.data})
        timed_morph = Timed(morph, MODEL, clock)
        timed_suite: Any = Loaded(suite, morph, clock)
        with tempfile.TemporaryDirectory() as out:
            start = clock()
            evaluate_suites(
                timed_morph,
                [timed_suite],
                Path(out),
                stamp=stamp,
                sampling=sampling,
                limit=options.limit,
            )
            total = clock() - start
        model, judge = timed_morph.seconds, timed_suite.seconds
        harness = total - model - judge
        shares = [f"{100 * part / total:.1f}%" for part in (model, judge, harness)]
        rows.append([name, f"{total:.1f}", *shares, f"<= {GOAL:.0%}", "yes" if harness <= GOAL * total else "no"])
    title = f"Evaluation of {options.morph}, {options.limit} examples each, {'wall' if options.wall else 'CPU'} seconds"
    print_table(title, ["suite", "seconds", "model", "judge", "harness", "goal, harness", "reached"], rows)


def _tell_nothing(what: str, done: int, total: int) -> None:
    pass


if __name__ == "__main__":
    main()

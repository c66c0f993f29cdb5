"""GenEval and DPG-Bench: their prompts drawn here, into the folders that their keepers' own scorers read."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from diptych.data.images import open_image
from diptych.evaluate.answering import Sampling, answer_in_several_images
from diptych.evaluate.suite import (
    Answer,
    Baselines,
    Example,
    MetricScore,
    Needs,
    Progress,
    Row,
    Scores,
    summarise_means,
)
from diptych.evaluate.suites.prompt_files import read_dpg_prompts, read_geneval_prompts
from diptych.evaluate.suites.prompt_judges import CLIP_SCORE, NO_JUDGES, Judges, PromptScorer
from diptych.models.morph_files import replace_whole

NUM_IMAGES = 4
"""Of each prompt, as both papers draw."""


class PromptBenchmark:
    """`read`: the examples of the user's folder. `write`: one row's images into the keepers' folder, given the user's
    folder too."""

    version = 1
    metrics = (CLIP_SCORE,)
    needs = Needs(("draws",))

    def __init__(
        self,
        name: str,
        *,
        words: str,
        remedy: str,
        read: Callable[[Path], list[Example]],
        write: Callable[[Path, Sequence[tuple[str, list[Path]]], Path], None],
        data: Path | None,
        judges: Judges,
    ) -> None:
        self.name, self.words = name, words
        self.judge_hashes: Mapping[str, str] = {}
        self._remedy, self._read, self._write = remedy, read, write
        self._data = data
        self._scorer = PromptScorer(judges.clip)

    def load_examples(self, progress: Progress) -> list[Example]:
        self.judge_hashes = self._scorer.find()
        return self._read(self._folder())

    def _folder(self) -> Path:
        if self._data is None:
            raise ValueError(f"suite {self.name} asks its keepers' prompts: {self._remedy}")
        return self._data

    def prepare(self, morph: Any, progress: Progress) -> None:
        self._scorer.load(morph)

    def answer(self, morph: Any, examples: Sequence[Example], sampling: Sampling) -> list[Answer]:
        asked, ids = [e.conversation() for e in examples], [e.id for e in examples]
        drawn = answer_in_several_images(morph, asked, sampling, ids=ids, num_images=NUM_IMAGES)
        return [Answer(images=tuple(images)) for images in drawn]

    def score(self, examples: Sequence[Example], answers: Sequence[Answer]) -> list[Scores]:
        return self._scorer.score(examples, answers)

    def baselines(self, examples: Sequence[Example]) -> dict[str, Baselines]:
        return {}

    def summarise(self, examples: Sequence[Example], rows: Sequence[Row], folder: Path) -> dict[str, MetricScore]:
        return summarise_means(self, examples, rows)

    def export(self, rows: Sequence[Row], folder: Path) -> None:
        files = [(row.id, [folder / image for image in row.images]) for row in rows]
        self._write(self._folder(), files, folder / self.name)


def geneval(data: Path | None, judges: Judges = NO_JUDGES) -> PromptBenchmark:
    return PromptBenchmark(
        "geneval",
        words=(
            f"GenEval's prompts, {NUM_IMAGES} drawings each, in the folder geneval/ as its keepers' scorer reads them "
            "(github.com/djghosh13/geneval: evaluation/evaluate_images.py OUT/geneval, then summary_scores.py). "
            "GenEval's score is that scorer's. CLIP score, where --clip gives a CLIP: 100 times the cosine of "
            "image and prompt."
        ),
        remedy="clone github.com/djghosh13/geneval and give --data geneval=geneval/prompts",
        read=lambda folder: read_geneval_prompts(folder)[0],
        write=_write_geneval,
        data=data,
        judges=judges,
    )


def dpg(data: Path | None, judges: Judges = NO_JUDGES) -> PromptBenchmark:
    return PromptBenchmark(
        "dpg",
        words=(
            f"DPG-Bench's prompts, {NUM_IMAGES} drawings each as one grid of 2 x 2 in the folder dpg/, as its keepers' "
            "scorer reads them (github.com/TencentQQGYLab/ELLA: dpg_bench/dist_eval.sh OUT/dpg SIDE, with SIDE the "
            "pixels of one drawing). DPG-Bench's score is that scorer's. CLIP score, where --clip gives a CLIP: 100 "
            "times the cosine of image and prompt, which is cut where CLIP's text ends (mostly 77 tokens)."
        ),
        remedy="clone github.com/TencentQQGYLab/ELLA and give --data dpg=ELLA/dpg_bench/prompts",
        read=read_dpg_prompts,
        write=_write_dpg,
        data=data,
        judges=judges,
    )


def _write_geneval(prompts: Path, files: Sequence[tuple[str, list[Path]]], out: Path) -> None:
    """OUT/00000/metadata.jsonl, the prompt's line, and OUT/00000/samples/0000.png to 0003.png."""
    lines = read_geneval_prompts(prompts)[1]
    for id, images in files:
        samples = out / id / "samples"
        samples.mkdir(parents=True, exist_ok=True)
        (out / id / "metadata.jsonl").write_text(lines[id] + "\n", encoding="utf-8")
        for number, image in enumerate(images):
            replace_whole(samples / f"{number:04}.png", lambda partial, image=image: shutil.copyfile(image, partial))


def _write_dpg(prompts: Path, files: Sequence[tuple[str, list[Path]]], out: Path) -> None:
    """OUT/NAME.png, of the prompt NAME.txt: the drawings row by row."""
    out.mkdir(parents=True, exist_ok=True)
    for id, images in files:
        drawn = [open_image(image) for image in images]
        width, height = drawn[0].size
        grid = Image.new("RGB", (2 * width, 2 * height))
        for number, image in enumerate(drawn):
            grid.paste(image, (number % 2 * width, number // 2 * height))
        replace_whole(out / f"{id}.png", lambda partial, grid=grid: grid.save(partial, format="PNG"))

"""Sets whose samples are drafted from a gallery of concepts: one plan, one way of filling the splits."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path

from diptych.data.builders.concept_gallery import GallerySource, Pool
from diptych.data.builders.concept_splits import SPLITS
from diptych.data.builders.data_card import Licence
from diptych.data.builders.emoji import BuiltSet
from diptych.data.builders.fair_answers import AnswerBalance
from diptych.data.builders.set_writing import Draft, SetPlan, build_set, make_drafts

MakeDraft = Callable[[Pool, random.Random], Draft | None]
SPLIT_TEXTS = {
    "train": "every combination of concept and style but the held-out ones, and no words for what is held out",
    "held_out_concept": "concepts that training never shows, nor any other set of the six types",
    "held_out_style": "concepts of training in outline style, which training never shows; none that is flat alike",
    "held_out_combination": "combinations of concept and style that training never shows, nor clips (which are Fluent)",
}


def build_gallery_set(
    out: str | Path,
    source: GallerySource,
    make: MakeDraft,
    *,
    name: str,
    description: str,
    num_samples: int,
    licences: tuple[Licence, ...] | None = None,
) -> BuiltSet:
    """Builds the set in the folder `out`: `num_samples` for training, a tenth as many for each held-out file.

    `licences`: in place of the source's own.
    """
    plan = SetPlan(
        name=name,
        description=description,
        settings={"builder": name, "builder_version": 2, "num_samples": num_samples} | source.settings,
        splits=SPLIT_TEXTS,
        licences=source.licences if licences is None else licences,
    )
    return build_set(
        out,
        plan,
        lambda: _drafts(source, make, num_samples, label=name),
        counts=lambda: {"concepts": len(source.gallery.concepts)},
        progress=source.progress,
    )


def _drafts(source: GallerySource, make: MakeDraft, num_samples: int, *, label: str) -> Iterator[tuple[str, Draft]]:
    """`num_samples` for training and a tenth as many for each held-out split, of things that the split may show."""
    for split in SPLITS:
        wanted = num_samples if split == "train" else max(1, num_samples // 10)

        def make_one(chance: random.Random, balance: AnswerBalance, split: str = split) -> Draft | None:
            pool = source.gallery.pool(split, chance, balance)
            draft = make(pool, chance)
            if draft is not None:
                draft.meta.update({"style": pool.style})
            return draft

        for draft in make_drafts(make_one, wanted, label=f"{source.seed}:{label}:{split}"):
            yield split, draft

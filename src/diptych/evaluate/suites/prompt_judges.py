"""What the user gives to score drawings of public prompts with: a CLIP, and Inception's weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diptych.evaluate.metrics.clip_judge import ClipJudge, find_clip
from diptych.evaluate.suite import Answer, Example, Metric, Scores

CLIP_SCORE = Metric("clip_score", "CLIP score", unit="")


@dataclass(frozen=True)
class Judges:
    """`clip`: folder or Hub id of a Hugging Face CLIP. `inception`: the TorchScript file (`load_inception`)."""

    clip: str | None = None
    inception: Path | None = None


NO_JUDGES = Judges()


class PromptScorer:
    """CLIP score of drawings, where the user gives a CLIP."""

    def __init__(self, clip: str | None) -> None:
        self._name = clip
        self._folder: Path | None = None
        self._judge: ClipJudge | None = None

    def find(self) -> dict[str, str]:
        """Its hash by name, for the stamp; fetched if need be. Raises ValueError for what is no CLIP."""
        if self._name is None:
            return {}
        self._folder, found = find_clip(self._name)
        return {"clip": found}

    def load(self, morph: Any) -> None:
        if self._folder is not None:
            self._judge = ClipJudge(self._folder, device=morph.device)

    def score(self, examples: Sequence[Example], answers: Sequence[Answer]) -> list[Scores]:
        if self._judge is None:
            return [{} for _ in examples]
        values = self._judge.score([e.question() for e in examples], [answer.images for answer in answers])
        return [{CLIP_SCORE.name: value} for value in values]

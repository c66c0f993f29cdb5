"""The suites by name. A new one is a line here, and a module that keeps the contract of suite.py."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from diptych.evaluate.suite import Suite
from diptych.evaluate.suites.big_bench import BigBench
from diptych.evaluate.suites.captioning import Captioning
from diptych.evaluate.suites.coco_drawing import CocoDrawing
from diptych.evaluate.suites.concept_prompts import implicit_reasoning, semantic_nuance, world_knowledge
from diptych.evaluate.suites.emoji_drawing import EmojiDrawing
from diptych.evaluate.suites.image_reconstruction import ImageReconstruction
from diptych.evaluate.suites.language_law import LanguageLaw
from diptych.evaluate.suites.language_retention import LanguageRetention
from diptych.evaluate.suites.prompt_benchmarks import dpg, geneval
from diptych.evaluate.suites.prompt_judges import NO_JUDGES, Judges
from diptych.evaluate.suites.scene_composition import SceneComposition
from diptych.evaluate.suites.video_prediction import VideoPrediction
from diptych.evaluate.suites.visual_questions import easy_vqa, emoji_vqa, video_qa

SUITES: Mapping[str, Callable[[Path | None], Suite]] = {
    "emoji-vqa": emoji_vqa,
    "easy-vqa": easy_vqa,
    "captioning": Captioning,
    "video-qa": video_qa,
    "video": VideoPrediction,
    "emoji-t2i": EmojiDrawing,
    "t2i-compositional": SceneComposition,
    "world-knowledge": world_knowledge,
    "semantic-nuance": semantic_nuance,
    "implicit-reasoning": implicit_reasoning,
    "reconstruction": ImageReconstruction,
    "language": LanguageLaw,
    "language-retention": LanguageRetention,
    "bigbench": BigBench,
}
"""Each is given the user's folder of data, or None for its own."""
JUDGED_SUITES: Mapping[str, Callable[[Path | None, Judges], Suite]] = {
    "coco-30k": CocoDrawing,
    "geneval": geneval,
    "dpg": dpg,
}
"""Those that the user's own judges score: given them too."""


def build_suites(names: Sequence[str], data: Mapping[str, Path], judges: Judges = NO_JUDGES) -> list[Suite]:
    """The suites of these names, in their order. `data`: folders by name of suite. Raises ValueError for a name that
    is unknown or stands twice, with those that there are, and for judges that no suite asks."""
    known = [*SUITES, *JUDGED_SUITES]
    if not names:
        raise ValueError(f"no suite is named; give --suite with some of: {', '.join(known)}")
    for name in (*names, *data):
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are: {', '.join(known)}"
            raise ValueError(f"no suite is called {name!r}; {hint}")
    if len(set(names)) != len(names):
        raise ValueError(f"--suite names one suite twice: {', '.join(names)}")
    if unused := sorted(set(data) - set(names)):
        raise ValueError(f"--data is given for {', '.join(unused)}, which --suite does not name")
    if judges != NO_JUDGES and not set(names) & set(JUDGED_SUITES):
        raise ValueError(
            f"--clip and --inception judge {', '.join(JUDGED_SUITES)} alone, and --suite names none of them"
        )
    return [
        SUITES[name](data.get(name)) if name in SUITES else JUDGED_SUITES[name](data.get(name), judges)
        for name in names
    ]

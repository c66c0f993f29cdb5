"""Laws of the list of suites: every name builds a suite of that name, and a name that is none is told the nearest."""

from __future__ import annotations

from pathlib import Path

import pytest

from diptych.evaluate.suites.known_suites import JUDGED_SUITES, SUITES, build_suites
from diptych.evaluate.suites.prompt_judges import Judges


def test_every_name_builds_a_suite_of_that_name() -> None:
    names = [*SUITES, *JUDGED_SUITES]
    suites = build_suites(names, {})
    assert [suite.name for suite in suites] == names
    for suite in suites:
        assert suite.needs.abilities
        assert suite.words.endswith(".")
        assert len({metric.name for metric in suite.metrics}) == len(suite.metrics) > 0


def test_a_given_folder_needs_no_embedded_pictures(tmp_path: Path) -> None:
    names = ["emoji-vqa", "easy-vqa", "emoji-t2i", "t2i-compositional", "reconstruction"]
    for suite in build_suites(names, dict.fromkeys(names, tmp_path)):
        assert set(suite.needs.assets) <= {"efficientnet-lite0", "all-minilm-l6-v2"}


@pytest.mark.parametrize(
    ("names", "data", "says"),
    [
        (["emoji-vqs"], [], "did you mean emoji-vqa"),
        (["imagenet"], [], "there are: emoji-vqa, easy-vqa"),
        ([], [], "no suite is named"),
        (["language", "language"], [], "one suite twice"),
        (["language"], ["emoji-vqa"], "given for emoji-vqa, which --suite does not name"),
    ],
)
def test_a_wrong_name_is_told(tmp_path: Path, names: list[str], data: list[str], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        build_suites(names, dict.fromkeys(data, tmp_path))


def test_judges_that_no_suite_asks_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--clip and --inception judge coco-30k, geneval, dpg"):
        build_suites(["language"], {}, Judges(clip="openai/clip-vit-base-patch32"))
    assert build_suites(["dpg", "language"], {"dpg": tmp_path}, Judges(clip="openai/clip-vit-base-patch32"))

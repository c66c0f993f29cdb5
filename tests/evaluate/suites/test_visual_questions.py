"""Laws of the reading suites: held-out questions of the built sets, whole, each with its own id, kind and choices."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from diptych.data.builders.concept_gallery import GallerySource
from diptych.data.builders.easy_vqa import build_easy_vqa
from diptych.data.builders.image_qa import build_image_qa
from diptych.evaluate.harness import evaluate_suites
from diptych.evaluate.suite import Example, Suite, choose_examples
from diptych.evaluate.suites.visual_questions import easy_vqa, emoji_vqa
from emoji_packages import NAMES, entry, write_packages
from toy_suite import STAMP, FakeMorph


@pytest.fixture(scope="module")
def image_qa(tmp_path_factory: pytest.TempPathFactory) -> Path:
    names = [f"{name}{suffix}" for name in NAMES for suffix in ("", "ta", "ro")]
    entries = [
        entry(name, i, group=3 + i % 5, subgroup=10 + i % 2, tags=[f"tag{name}", "*", "joy", "sky", "art"])
        for i, name in enumerate(names)
    ]
    folders = write_packages(tmp_path_factory.mktemp("packages"), entries)
    out = tmp_path_factory.mktemp("sets") / "image-qa"
    build_image_qa(out, GallerySource(**folders, num_concepts=60, image_size=32), num_samples=200)
    return out


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("easy")
    for split, colours in (("train", ["red", "blue"]), ("test", ["teal", "green", "black", "brown"])):
        folder = root / "easy_vqa" / "data" / split
        (folder / "images").mkdir(parents=True)
        questions = []
        for number, colour in enumerate(colours):
            Image.new("RGB", (8, 8), colour).save(folder / "images" / f"{number}.png")
            questions.append(["what color is the shape?", colour, number])
            questions.append([f"what is the {colour} shape?", "circle", number])
            questions.append(["is there a teal shape?", "yes" if colour == "teal" else "no", number])
        (folder / "questions.json").write_text(json.dumps(questions))
    build_easy_vqa(root / "set", easy_vqa_folder=root)
    return root / "set"


def load(suite: Suite) -> list[Example]:
    return suite.load_examples(lambda what, done, total: None)


def pixels(image: Image.Image) -> str:
    return hashlib.sha256(image.convert("RGB").tobytes()).hexdigest()


def knowing(examples: list[Example]) -> Any:
    """A rule that knows what is asked about each picture, and its answer; asked anything else, it looks at the picture
    and says what is right of that one."""
    known = {}
    for example in examples:
        (image,) = (part for part in example.conversation()[0]["content"] if isinstance(part, Image.Image))
        known[example.question().strip(), pixels(image)] = example.reference
    of_picture = {seen: answer for (_, seen), answer in known.items()}

    def rule(question: str, images: list[Image.Image]) -> str:
        return known.get((question, pixels(images[0])), of_picture[pixels(images[0])])

    return rule


def test_all_held_out_questions_are_asked(image_qa: Path) -> None:
    examples = load(emoji_vqa(image_qa))
    counts = json.loads((image_qa / "card.json").read_text())["num_samples"]
    assert len(examples) == sum(n for name, n in counts.items() if name.startswith("held_out"))
    assert {e.id.split("/")[0] for e in examples} == {"held_out_concept", "held_out_style", "held_out_combination"}
    assert choose_examples(examples, None, suite="emoji-vqa")
    assert {e.kind for e in examples} >= {"name", "count", "exists", "position"}
    for example in examples:
        assert len(example.choices) == (4 if example.kind == "keyword" else 0)
        assert example.reference in example.choices or example.kind != "keyword"


def test_who_knows_scores_100_per_cent_and_by_shuffled_pictures_falls(image_qa: Path, tmp_path: Path) -> None:
    suite = emoji_vqa(image_qa)
    rule = knowing(load(suite))
    (right,) = evaluate_suites(FakeMorph(rule), [suite], tmp_path / "right", stamp=STAMP)
    assert right.scores["exact"].mean == 1
    (shuffled,) = evaluate_suites(FakeMorph(rule), [suite], tmp_path / "other", stamp=STAMP, shuffle_images=True)
    majority = shuffled.scores["exact"].baselines.majority
    assert majority is not None
    assert shuffled.scores["exact"].mean < majority + 0.1
    assert shuffled.by_kind["name"]["exact"].mean < 0.2


def test_the_commonest_answers_score_the_majority_baseline(shapes: Path, tmp_path: Path) -> None:
    suite = easy_vqa(shapes)
    commonest = {"what color": "brown", "what is th": "circle", "is there a": "no"}
    morph = FakeMorph(lambda question, images: commonest[question[:10]])
    (result,) = evaluate_suites(morph, [suite], tmp_path / "out", stamp=STAMP)
    means = {kind: scores["exact"].mean for kind, scores in result.by_kind.items()}
    assert means == {"colour": 1 / 4, "shape": 1, "yes or no": 3 / 4}
    assert {kind: s["exact"].baselines.majority for kind, s in result.by_kind.items()} == means
    assert result.scores["exact"].mean == result.scores["exact"].baselines.majority == (1 + 4 + 3) / 12
    assert {kind: s["exact"].baselines.chance for kind, s in result.by_kind.items()} == {
        "colour": 1 / 4,
        "shape": 1,
        "yes or no": 1 / 2,
    }


def test_a_folder_that_holds_no_such_set_is_refused(shapes: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no built data set"):
        load(emoji_vqa(tmp_path))
    with pytest.raises(ValueError, match=r"holds no held_out_concept.jsonl"):
        load(emoji_vqa(shapes))

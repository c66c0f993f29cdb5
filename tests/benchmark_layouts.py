"""Stand-ins for public benchmarks: their repositories' names, fields and splits, with a few questions about colours.

A harness loads a data set by its name from the folder that it is run in, before it asks any hub. So the keepers' own
tasks run here unchanged, prompts and scoring included, on questions that only the images answer.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (30, 50, 220), "yellow": (230, 220, 40)}
NAMES = list(COLOURS)
TASKS: dict[str, tuple[str, float]] = {
    "mmbench_en_dev_static": ("gpt_eval_score,none", 100.0),
    "seedbench": ("seed_all,none", 1.0),
    "mmmu_val": ("mmmu_acc,none", 1.0),
    "mmvp": ("mmvp_pair_accuracy,none", 1.0),
    "chartqa": ("relaxed_overall,none", 1.0),
    "realworldqa": ("exact_match,none", 1.0),
    "scienceqa_img": ("exact_match,none", 1.0),
    "textvqa_val": ("exact_match,none", 1.0),
    "vstar_bench": ("vstar_overall_acc,none", 100.0),
    "mvbench_action_antonym": ("mvbench_accuracy,none", 100.0),
    "mvbench_episodic_reasoning": ("mvbench_accuracy,none", 100.0),
}
"""lmms-eval's task of each benchmark of MetaMorph's page -> the metric, and what a perfect answerer scores."""
ASKED = "What colour is this?"
OPEN = "a single word"
"""Of the benchmarks whose answer is a word, in place of a letter: what their prompts end on, or their questions say."""


class ColourReader:
    """Answers a question by the colours of its images alone: a morph that reads, without weights. `truthful`: or the
    first of the wrong answers."""

    abilities = frozenset({"reads"})
    device = "cpu"

    def __init__(self, *, truthful: bool = True) -> None:
        self.truthful = truthful
        self.batches: list[list[Any]] = []
        self.options: list[dict[str, Any]] = []

    def generate_batch(self, conversations: Sequence[Any], **options: Any) -> list[list[str]]:
        self.batches.append(list(conversations))
        self.options.append(options)
        return [[self._answer(conversation)] for conversation in conversations]

    def _answer(self, conversation: Any) -> str:
        parts = [part for message in conversation for part in message["content"]]
        text = "\n".join(part["text"] for part in parts if part["type"] == "text")
        seen = [name_colour(part["image"]) for part in parts if part["type"] == "image"]
        right = " then ".join(dict.fromkeys(seen))
        options = re.findall(r"^\(?([A-D])[.)] (.+?)\.?$", text, flags=re.MULTILINE)
        if not options:
            return right if self.truthful else next(name for name in NAMES if name != right)
        return next(letter for letter, option in options if (option == right) == self.truthful)


def name_colour(image: Image.Image | str | Path) -> str:
    """The nearest colour of the middle of an image (PIL, or the path of one)."""
    if not isinstance(image, Image.Image):
        with Image.open(image) as opened:
            return name_colour(opened.convert("RGB"))
    middle: Any = image.convert("RGB").getpixel((image.width // 2, image.height // 2))
    return min(NAMES, key=lambda name: sum((a - b) ** 2 for a, b in zip(middle, COLOURS[name], strict=True)))


def plain(name: str) -> Image.Image:
    return Image.new("RGB", (40, 40), COLOURS[name])


def write_benchmarks(root: Path) -> None:
    """The image benchmarks below `root`, which the harness is to be run in, and below `root/hub` the clips."""
    letters = dict(zip("ABCD", NAMES, strict=True))
    lettered = " ".join(f"({letter}) {name}" for letter, name in letters.items())
    numbered = list(enumerate(letters.items()))

    def write(name: str, split: str, records: list[dict[str, Any]], config: str = "default") -> None:
        write_set(root / name, split, records, config)

    write(
        "lmms-lab-encoder/MMBench",
        "dev",
        [
            {
                "index": n, "question": ASKED, "hint": "nan", "answer": letter, **letters, "category": "attribute",
                "image": plain(name), "source": "made", "L2-category": "perception", "comment": "nan", "split": "dev",
            }
            for n, (letter, name) in numbered
        ],
        "en",
    )  # fmt: skip
    write(
        "lmms-lab-encoder/SEED-Bench",
        "test",
        [
            {
                "answer": letter, **{f"choice_{key.lower()}": value for key, value in letters.items()},
                "data_id": str(n), "data_type": "image", "question": ASKED, "question_id": str(n),
                "question_type_id": 1, "image": [plain(name)], "segment": [],
            }
            for n, (letter, name) in numbered
        ],
    )  # fmt: skip
    order = ["red then green", "green then red"]
    write(
        "lmms-lab-encoder/MMMU",
        "validation",
        [
            {
                "id": f"validation_Art_{n + 1}", "question": "From <image 1> to <image 2>: what is the order?",
                "options": str(order), "explanation": "", "image_1": plain(first), "image_2": plain(second),
                "img_type": "['Paintings']", "answer": answer, "topic_difficulty": "Easy",
                "question_type": "multiple-choice", "subfield": "Art",
            }
            for n, (first, second, answer) in enumerate([("red", "green", "A"), ("green", "red", "B")])
        ]
        + [
            {
                "id": "validation_Art_3", "question": f"{ASKED} <image 1>", "options": "[]", "explanation": "",
                "image_1": plain("blue"), "image_2": None, "img_type": "['Paintings']", "answer": "blue",
                "topic_difficulty": "Easy", "question_type": "open", "subfield": "Art",
            }
        ],
    )  # fmt: skip
    write(
        "lmms-lab-eval/MMVP",
        "train",
        [
            {
                "Index": n + 1, "Question": ASKED, "Options": "(a) red (b) green", "image": plain(name),
                "Correct Answer": answer,
            }
            for n, (name, answer) in enumerate([("red", "(a)"), ("green", "(b)")])
        ],
    )  # fmt: skip
    write(
        "lmms-lab-encoder/ChartQA",
        "test",
        [
            {"type": kind, "question": ASKED, "answer": name, "image": plain(name)}
            for name, kind in zip(NAMES, ["human_test", "augmented_test"] * 2, strict=True)
        ],
    )
    choices = "".join(f"\n{letter}. {name}" for letter, name in letters.items())
    write(
        "lmms-lab-encoder/RealWorldQA",
        "test",
        [
            {"image": plain(name), "image_path": f"{n}.webp", "question": question, "answer": answer}
            for n, (letter, name) in numbered
            for question, answer in (
                (f"{ASKED}{choices}\nPlease answer directly with only the letter of the correct option.", letter),
                (f"{ASKED}\nPlease answer directly with {OPEN}.", name.capitalize()),
            )
        ],
    )
    write(
        "lmms-lab-encoder/ScienceQA",
        "test",
        [
            {
                "image": plain(name), "question": ASKED, "choices": NAMES, "answer": n, "hint": "Look.",
                "task": "closed choice", "grade": "grade2", "subject": "natural science", "topic": "physics",
                "category": "Light", "skill": "Name colours", "lecture": "", "solution": "",
            }
            for n, (_, name) in numbered
        ],
        "ScienceQA-IMG",
    )  # fmt: skip
    write(
        "lmms-lab-encoder/textvqa",
        "validation",
        [
            {
                "image_id": str(n), "question_id": n, "question": ASKED.lower(),
                "question_tokens": ASKED.lower().split(),
                "image": plain(name), "image_width": 40, "image_height": 40, "flickr_original_url": "",
                "flickr_300k_url": "", "answers": [name] * 10, "image_classes": [], "set_name": "val", "ocr_tokens": [],
            }
            for n, (_, name) in numbered
        ],
    )  # fmt: skip
    write(
        "lmms-lab-encoder/vstar-bench",
        "test",
        [
            {
                "image": plain(name), "text": f"{ASKED} {lettered}",
                "category": ("direct_attributes", "relative_position")[n % 2], "label": letter, "question_id": str(n),
            }
            for n, (letter, name) in numbered
        ],
    )  # fmt: skip
    clips = root / "hub" / "mvbench_video"
    for n, (first, second) in enumerate([("red", "green"), ("green", "red")]):
        frames = [plain(first)] * 6 + [plain(second)] * 6
        folder = clips / "tvqa" / "video_fps3_hq_segment" / f"clip{n}"
        folder.mkdir(parents=True)
        for number, frame in enumerate(frames, start=1):
            frame.save(folder / f"{number:05d}.jpg", quality=95)
        (clips / "ssv2_video_mp4").mkdir(exist_ok=True)
        write_clip(clips / "ssv2_video_mp4" / f"clip{n}.mp4", frames)
    for config, suffix in (("action_antonym", ".mp4"), ("episodic_reasoning", "")):
        records = [
            {"video": f"clip{n}{suffix}", "question": "In which order?", "candidates": order, "answer": answer}
            for n, answer in enumerate(order)
        ]
        write("OpenGVLab/MVBench", "train", records, config)


def write_text_benchmarks(root: Path) -> None:
    """MMLU (one subject), HellaSwag, WikiText-2 and GSM8K below `root`."""
    question = {"subject": "abstract_algebra", "choices": ["one", "two", "three", "four"]}
    for split, count in (("test", 6), ("validation", 2), ("dev", 5)):
        records = [{"question": f"How many is {n}?", **question, "answer": n % 4} for n in range(count)]
        write_set(root / "cais" / "mmlu", split, records, "abstract_algebra")
    endings = ["washes it with a hose.", "eats it.", "flies away with it, over the hills.", "sings."]
    for split in ("train", "validation"):
        records = [
            {
                "ind": n, "activity_label": "Washing a car", "ctx_a": f"Man {n} stands by a car.", "ctx_b": "he",
                "ctx": f"Man {n} stands by a car. he", "endings": endings, "source_id": f"x{n}", "split": split,
                "split_type": "indomain", "label": "0",
            }
            for n in range(8)
        ]  # fmt: skip
        write_set(root / "Rowan" / "hellaswag", split, records)
    for split in ("train", "validation", "test"):
        records = [{"page": f" = Page {n} = \n\n Some words , number {n} . " * 30} for n in range(8)]
        write_set(root / "EleutherAI" / "wikitext_document_level", split, records, "wikitext-2-raw-v1")
    for split in ("train", "test"):
        records = [{"question": f"What is {n} and 1?", "answer": f"{n} + 1 = {n + 1}\n#### {n + 1}"} for n in range(6)]
        write_set(root / "openai" / "gsm8k", split, records, "main")


def write_set(folder: Path, split: str, records: list[dict[str, Any]], config: str = "default") -> None:
    """Records as a parquet file of a repository's split, images embedded as hubs keep them; its README lists them."""
    from datasets import Dataset

    path = folder / config / f"{split}-00000-of-00001.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    Dataset.from_list(records).to_parquet(path)
    found = sorted(folder.glob("*/*.parquet"))
    listed = "".join(
        f"- config_name: {name}\n  data_files:\n"
        + "".join(
            f"  - split: {file.name.split('-')[0]}\n    path: {file.relative_to(folder)}\n"
            for file in found
            if file.parent.name == name
        )
        for name in dict.fromkeys(file.parent.name for file in found)
    )
    (folder / "README.md").write_text(f"---\nconfigs:\n{listed}---\n")


def write_clip(path: Path, frames: list[Image.Image]) -> None:
    import av

    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264", rate=4)
        stream.width, stream.height, stream.pix_fmt = *frames[0].size, "yuv420p"
        for frame in frames:
            for packet in stream.encode(av.VideoFrame.from_image(frame)):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)

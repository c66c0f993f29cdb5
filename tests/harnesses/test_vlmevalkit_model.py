"""Laws of VLMEvalKit's model: what its BaseModel promises, asked in the forms that its data sets ask in."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmark_layouts import ColourReader, plain
from diptych.harnesses.vlmevalkit_model import VlmEvalKitModel
from tiny_xfusion import build_tiny_morph


@pytest.fixture
def image(tmp_path: Path) -> str:
    plain("green").save(tmp_path / "1.png")
    return str(tmp_path / "1.png")


def test_a_question_of_its_data_sets_is_answered_by_the_image(image: str) -> None:
    # As ImageMCQDataset.build_prompt writes it.
    prompt = "Question: What colour is this?\nOptions:\nA. red\nB. green\nPlease select the correct answer."
    message = [{"type": "image", "value": image}, {"type": "text", "value": prompt}]
    reader = ColourReader()
    assert VlmEvalKitModel(reader, max_new_tokens=5).generate(message, dataset="MMBench_DEV_EN") == "B"
    assert VlmEvalKitModel(ColourReader(truthful=False)).generate(message) == "A"
    (conversation,) = reader.batches[0]
    assert [part["type"] for part in conversation[0]["content"]] == ["image", "text"]
    assert reader.options == [{"generation_mode": "text", "max_batch_size": 1, "max_new_tokens": 5, "seed": 0}]


def test_bare_texts_and_paths_are_answered_as_conversations_are(image: str) -> None:
    morph = build_tiny_morph()
    model = VlmEvalKitModel(morph, max_new_tokens=6)
    asked = {"generation_mode": "text", "max_new_tokens": 6}
    told = [{"role": "user", "content": [plain("green"), "What?"]}]
    assert model.generate([image, "What?"]) == morph.generate(told, **asked)[0]
    assert model.generate("Who?") == morph.generate([{"role": "user", "content": "Who?"}], **asked)[0]


def test_the_harness_keeps_its_prompts_and_takes_the_frames_itself() -> None:
    model = VlmEvalKitModel(ColourReader())
    model.set_dump_image(lambda line: [])
    assert not model.use_custom_prompt("MMBench_DEV_EN")
    assert (model.is_api, model.INTERLEAVE, model.VIDEO_LLM) == (False, True, False)

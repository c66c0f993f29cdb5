"""Laws of CLIP score: it is 100 times the model's own cosine, of each prompt with its own images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from diptych.backbones.weight_hash import hash_folder
from diptych.evaluate.metrics.clip_judge import ClipJudge, find_clip
from tiny_judges import CLIP_LENGTH, SMALL, write_clip


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    transformers.utils.logging.disable_progress_bar()


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("judges") / "clip")


def picture(seed: int) -> Image.Image:
    cells = np.random.default_rng(seed).integers(0, 255, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(cells).resize((28, 28))


def test_it_is_100_times_the_models_cosine(clip: Path) -> None:
    folder, found = find_clip(str(clip))
    assert (folder, found) == (clip, hash_folder(clip))
    model = transformers.CLIPModel.from_pretrained(clip)
    processor: Any = transformers.CLIPProcessor.from_pretrained(clip)
    prompts, images = ["a cat", "two red dogs"], [[picture(0), picture(1)], [picture(2)]]
    cosines = {}
    with torch.no_grad():
        for prompt in prompts:
            for seed in range(3):
                inputs = processor(text=[prompt], images=[picture(seed)], return_tensors="pt")
                logit = model(**inputs).logits_per_image.item()
                cosines[prompt, seed] = 100 * logit / model.logit_scale.exp().item()
    expected = [(cosines["a cat", 0] + cosines["a cat", 1]) / 2, cosines["two red dogs", 2]]
    assert ClipJudge(clip).score(prompts, images) == pytest.approx(expected, abs=1e-3)


def test_a_long_prompt_is_cut(clip: Path) -> None:
    judge = ClipJudge(clip)
    long = "a " * 3 * CLIP_LENGTH
    one, other = judge.score([long, "a " * (CLIP_LENGTH - 2)], [[picture(0)], [picture(0)]])
    assert one == pytest.approx(other, abs=1e-4)


def test_what_is_no_clip_is_refused(tmp_path: Path) -> None:
    vision = SMALL | {"image_size": 28, "patch_size": 14}
    towers: dict[str, Any] = {"text_config": SMALL | {"vocab_size": 50}, "vision_config": vision}
    transformers.SiglipModel(transformers.SiglipConfig(**towers)).save_pretrained(tmp_path / "siglip")
    with pytest.raises(ValueError, match="of type 'siglip'; give a CLIP"):
        find_clip(str(tmp_path / "siglip"))
    with pytest.raises(ValueError, match="there is no such folder"):
        find_clip(str(tmp_path / "nothing"))

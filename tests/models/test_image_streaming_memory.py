"""Law of streaming with images: what a method keeps of samples, images, sequences and text is bounded, not as large as
the set (bench/data_streaming.py: 20,000)."""

from __future__ import annotations

import base64
import io
import json
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diptych.backbones.tiny_language import build_tiny_language_model
from diptych.data import sources
from diptych.models import encoded_images, training_sources, xfusion_building
from diptych.models.checkpoint import build_morph
from diptych.models.xfusion_training import XFusionTraining
from train.tiny_xfusion_runs import AveragedPixels, xfusion_recipe

RECORDS, BATCH = 160, 8
BOUND = 40_000


def write_images_in_records(path: Path) -> int:
    """Each record holds an image of its own; gives the characters of one."""
    lines, image = [], ""
    for number in range(RECORDS):
        file = io.BytesIO()
        pixels = np.random.RandomState(number).randint(0, 255, (48, 48, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(file, "PNG")
        image = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
        turns = [{"role": "user", "content": f"Draw {number}."}, {"role": "assistant", "content": "<image>"}]
        lines.append(json.dumps({"messages": turns, "images": [image]}))
    path.write_text("\n".join(lines))
    return len(image)


def test_memory_stays_flat_while_images_are_drawn_and_encoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image_bytes = write_images_in_records(tmp_path / "a.jsonl")
    monkeypatch.setattr(sources, "SAMPLE_BYTES_KEPT", BOUND)
    monkeypatch.setattr(encoded_images, "BYTES_KEPT", BOUND // 10)
    monkeypatch.setattr(encoded_images, "SAVED_AT_ONCE", BATCH)
    monkeypatch.setattr(training_sources, "STREAM_BYTES_KEPT", BOUND)
    monkeypatch.setattr(training_sources, "survey_images", lambda *_, **__: None)
    monkeypatch.setattr(xfusion_building, "TEXT_BYTES_KEPT", BOUND)
    monkeypatch.setattr("diptych.data.tensor_cache.SHARD_BYTES", BOUND // 2)
    recipe = xfusion_recipe(tmp_path / "run", tmp_path, batch_size=BATCH)
    source = recipe.data.sources[0].model_copy(update={"path": str(tmp_path / "a.jsonl")})
    recipe = recipe.model_copy(
        update={
            "data": recipe.data.model_copy(update={"sources": (source,)}),
            "cache_dir": str(tmp_path / "cache"),
        }
    )
    morph = build_morph(recipe, language=build_tiny_language_model(), autoencoder=AveragedPixels())
    assert morph.cache_dir is not None
    method = XFusionTraining(recipe, morph)
    text, latents = method.model.text_states.cache, method.latents
    assert text is not None
    assert latents.cache is not None
    held = []
    tracemalloc.start()
    try:
        for start in range(0, RECORDS, BATCH):
            method.encode([(draw, 0, draw) for draw in range(start, start + BATCH)])
            assert sum(value.nbytes for value in latents._encoded._values.values()) <= BOUND // 10
            for cache in (text, latents.cache):
                assert sum(t.nbytes for own in cache._values.values() for t in own.values()) <= 2 * BOUND
            held.append(tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
    drawn = RECORDS - RECORDS // 4
    assert (held[-1] - held[len(held) // 4]) / drawn < image_bytes / 5  # names of what is on disk, no image

"""Law of streaming: however many samples are drawn, memory does not grow (bench/data_streaming.py: 200,000)."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

from diptych.data.sources import SAMPLES_KEPT, open_sources
from diptych.data_settings import DataConfig, SourceConfig


def test_memory_stays_flat_while_samples_are_drawn(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    with path.open("w") as file:
        for number in range(8 * SAMPLES_KEPT):
            file.write(json.dumps({"messages": [{"role": "user", "content": f"{number} {'x' * 50}"}]}) + "\n")
    (source,) = open_sources(DataConfig(sources=(SourceConfig(path=str(path)),)))
    held = []
    tracemalloc.start()
    try:
        for number in range(len(source)):
            source[number]
            if (number + 1) % (2 * SAMPLES_KEPT) == 0:
                held.append(tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
    assert max(held) <= 1.05 * held[0]

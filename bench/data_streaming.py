"""Data read as it is drawn: is memory flat over 200,000 samples, and how soon does a run that resumes far in go on?

    python bench/data_streaming.py [--samples 200000] [--resume-at 1000000] [--records 1000000] [--images 20000]

Goals: memory within 5% from the first tenth of the stream to its end; the first sample at a resumed draw within 2 s.
With images: each record holds one of its own, which is encoded and cached; the stores in memory are made small, so that
they are full after the first tenth. What may still grow is the cache's list of keys, about 0.3 kB an image.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path


def resident_bytes() -> int:
    """Of this process, now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def write_records(path: Path, count: int) -> None:
    with path.open("w") as file:
        for number in range(count):
            messages = [
                {"role": "user", "content": f"What is {number} and one more?"},
                {"role": "assistant", "content": f"It is {number + 1}."},
            ]
            file.write(json.dumps({"messages": messages}) + "\n")


def stream_memory(path: Path, num_samples: int, *, index_dir: Path | None = None) -> list[int]:
    """Memory after each tenth of `num_samples` drawn samples of a file, read in the order of a mixture."""
    from diptych.data.mixture import Mixture
    from diptych.data.sources import open_sources
    from diptych.data_settings import DataConfig, SourceConfig

    sources = open_sources(DataConfig(sources=(SourceConfig(path=str(path)),)), index_dir=index_dir)
    mixture = Mixture(tuple(map(len, sources)), (1,), seed=0)
    seen = []
    for draw in range(num_samples):
        _, source, index = mixture.pick(draw)
        sources[source][index]
        if (draw + 1) % (num_samples // 10) == 0:
            seen.append(resident_bytes())
    return seen


def write_images(path: Path, count: int) -> None:
    """Records that hold an image of 32 x 32 random pixels each, about 4 kB."""
    import base64
    import io

    import numpy as np
    from PIL import Image

    with path.open("w") as file:
        for number in range(count):
            png = io.BytesIO()
            pixels = np.random.RandomState(number).randint(0, 255, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(png, "PNG", compress_level=1)
            image = "data:image/png;base64," + base64.b64encode(png.getvalue()).decode()
            messages = [{"role": "user", "content": "Draw."}, {"role": "assistant", "content": "<image>"}]
            file.write(json.dumps({"messages": messages, "images": [image]}) + "\n")


def image_memory(path: Path, num_samples: int, *, cache_dir: Path) -> list[int]:
    """Memory after each tenth of `num_samples` samples drawn and their images encoded."""
    from diptych.data import sources as sources_module
    from diptych.data.mixture import Mixture
    from diptych.data.sources import open_sources
    from diptych.data_settings import DataConfig, SourceConfig
    from diptych.models import encoded_images

    sources_module.SAMPLE_BYTES_KEPT = encoded_images.BYTES_KEPT = 1_000_000
    encoded_images.SAVED_AT_ONCE = 256
    images = encoded_images.EncodedImages(
        lambda pixels: pixels.mean(1), key="means", image_size=32, cache_dir=cache_dir
    )
    (source,) = open_sources(DataConfig(sources=(SourceConfig(path=str(path)),)))
    mixture = Mixture((len(source),), (1,), seed=0)
    seen = []
    for draw in range(num_samples):
        image = source[mixture.pick(draw)[2]].images[0]
        images.prepare([image])
        images.load(image)
        if (draw + 1) % (num_samples // 10) == 0:
            seen.append(resident_bytes())
    return seen


def first_sample_seconds(path: Path, draw: int, *, index_dir: Path | None) -> tuple[float, float]:
    """From nothing open to the sample of one draw: by the clock, and of this process alone."""
    from diptych.data.mixture import Mixture
    from diptych.data.sources import open_sources
    from diptych.data_settings import DataConfig, SourceConfig

    started, worked = time.perf_counter(), time.process_time()
    sources = open_sources(DataConfig(sources=(SourceConfig(path=str(path)),)), index_dir=index_dir)
    _, source, index = Mixture(tuple(map(len, sources)), (1,), seed=0).pick(draw)
    sources[source][index]
    return time.perf_counter() - started, time.process_time() - worked


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=200_000)
    parser.add_argument("--records", type=int, default=1_200_000)
    parser.add_argument("--resume-at", type=int, default=1_000_000)
    parser.add_argument("--images", type=int, default=20_000)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path, index_dir = Path(folder) / "records.jsonl", Path(folder) / "indices"
        write_records(path, args.records)
        print(f"{args.records:,} records, {path.stat().st_size / 1e6:.0f} MB")
        clock, own = first_sample_seconds(path, 0, index_dir=index_dir)
        print(f"opening and indexing for the first time: {clock:.2f} s ({own:.2f} s of CPU)", flush=True)
        from diptych.data import mixture

        mixture._permutation.cache_clear()
        clock, own = first_sample_seconds(path, args.resume_at, index_dir=index_dir)
        print(f"first sample at draw {args.resume_at:,}: {clock:.2f} s ({own:.2f} s of CPU; goal: below 2)", flush=True)
        seen = stream_memory(path, args.samples, index_dir=index_dir)
        print("memory after each tenth, MB: " + " ".join(f"{value / 1e6:.0f}" for value in seen))
        print(f"{args.samples:,} samples: {seen[-1] / seen[0] - 1:+.1%} from the first tenth to the end (goal: 5%)")
        write_images(Path(folder) / "images.jsonl", args.images)
        seen = image_memory(Path(folder) / "images.jsonl", args.images, cache_dir=Path(folder) / "tensors")
        print("with images, MB: " + " ".join(f"{value / 1e6:.0f}" for value in seen))
        print(f"{args.images:,} images: {seen[-1] / seen[0] - 1:+.1%} from the first tenth to the end (goal: 5%)")


if __name__ == "__main__":
    main()

"""Every benchmark, one after the other, each in a process of its own: what `make bench` runs.

Those that read a built data set are left out, and said to be, until it is there.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

BENCHES = ("routing --designs", "sampling", "text_only", "lm_head", "visual_generation", "startup", "data_streaming")
"""`transfusion_step` wants a package that diptych does not: see its first lines."""
ON_DATA = {
    "cached_features data/emoji": "emoji",
    "sampler_steps emoji-dual data/emoji": "emoji",
    "pretrained_tower data/emoji": "emoji",
    "packing data/six-types": "six-types",
    "eval_overhead emoji-dual --limit 60": None,
}
"""By the data set that `diptych data build` makes of it in `data/`; None: it builds its own into the cache."""


def main() -> None:
    for command in sys.argv[1:] or (*BENCHES, *ON_DATA):
        needed = ON_DATA.get(command)
        if needed and not Path("data", needed).is_dir():
            print(f"left out: bench/{command}; first: diptych data build {needed} --out data/{needed}", flush=True)
            continue
        name, *options = command.split()
        subprocess.run([sys.executable, str(Path(__file__).with_name(f"{name}.py")), *options], check=True)


if __name__ == "__main__":
    main()

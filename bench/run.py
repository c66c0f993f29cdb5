"""Every benchmark, one after the other, each in a process of its own: what `make bench` runs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

BENCHES = ("routing", "sampling", "text_only", "lm_head", "visual_generation", "startup")


def main() -> None:
    folder = Path(__file__).parent
    chosen = sys.argv[1:] or BENCHES
    for name in chosen:
        subprocess.run([sys.executable, str(folder / f"{name}.py")], check=True)


if __name__ == "__main__":
    main()

"""Every benchmark, one after the other, each in a process of its own: what `make bench` runs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

BENCHES = ("routing --designs", "sampling", "text_only", "lm_head", "visual_generation", "startup")
"""`transfusion_step` wants a package that diptych does not: see its first lines."""


def main() -> None:
    folder = Path(__file__).parent
    chosen = sys.argv[1:] or BENCHES
    for command in chosen:
        name, *options = command.split()
        subprocess.run([sys.executable, str(folder / f"{name}.py"), *options], check=True)


if __name__ == "__main__":
    main()

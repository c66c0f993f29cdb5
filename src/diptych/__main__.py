"""Entry of the `diptych` command. What needs nothing is answered before anything is imported."""

from __future__ import annotations

import os
import sys

# Threads that wait by spinning cost ten times the time as soon as anything else uses a core; without, 2% at most. Read
# when torch is first imported, so it is said here.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def main() -> None:
    if sys.argv[1:] == ["--version"]:
        from diptych import __version__

        print(f"diptych {__version__}")
        return
    from diptych.cli import app

    app(prog_name="diptych")


if __name__ == "__main__":
    main()

"""Entry of the `diptych` command. What needs nothing is answered before anything is imported."""

from __future__ import annotations

import sys


def main() -> None:
    if sys.argv[1:] == ["--version"]:
        from diptych import __version__

        print(f"diptych {__version__}")
        return
    from diptych.cli import app

    app(prog_name="diptych")


if __name__ == "__main__":
    main()

"""The command line: commands, and what a user sees when something is wrong.

A ValueError (or a file that cannot be opened) is one line on stderr and exit code 2; Ctrl-C is 130; anything else is a
fault of Diptych and shows its traceback.
"""

from __future__ import annotations

import errno
import os
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from diptych.commands import (
    asset_commands,
    datasets,
    evaluating,
    generating,
    probing,
    reconstructing,
    reporting,
    running_demo,
    training,
)

_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)
_FILE_ERRORS = (FileNotFoundError, FileExistsError, PermissionError, IsADirectoryError, NotADirectoryError)


class PlainErrors(TyperGroup):
    """Turns errors that the user can mend into one line."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except _FILE_ERRORS as error:
            message = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        except ValueError as error:
            message = str(error)
        except OSError as error:
            if error.errno not in _DISK_ERRORS:
                raise
            place = f"{error.filename}: " if error.filename else ""
            message = f"{place}{error.strerror}; free some space or mend the disk, or write to another folder"
        except KeyboardInterrupt:
            print("stopped", file=sys.stderr)
            raise SystemExit(130) from None
        print(format_error(message, colour=sys.stderr.isatty() and "NO_COLOR" not in os.environ), file=sys.stderr)
        raise SystemExit(2)


def format_error(message: str, *, colour: bool) -> str:
    """One line, red where the terminal shows colours."""
    line = f"error: {' '.join(message.split())}"
    return f"\x1b[31m{line}\x1b[0m" if colour else line


app = typer.Typer(
    cls=PlainErrors,
    help="A pretrained text LLM that reads and draws images.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def _print_version(asked: bool) -> None:
    if asked:
        from diptych import __version__

        print(f"diptych {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


app.command("train")(training.train)
app.command("inspect")(training.inspect)
app.command("generate")(generating.generate)
app.command("reconstruct")(reconstructing.reconstruct)
app.command("probe")(probing.probe)
app.command("eval")(evaluating.evaluate)
app.command("eval-reference")(evaluating.make_reference)
app.command("report")(reporting.report)
app.command("demo")(running_demo.demo)
app.add_typer(datasets.app, name="data")
app.add_typer(asset_commands.app, name="assets")

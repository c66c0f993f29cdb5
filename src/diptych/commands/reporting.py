"""`diptych report`: one page about runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def report(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN...", help="Folders of trainings; and of evaluations of their morphs."),
    ],
    out: Annotated[Path, typer.Option(help="The page.")] = Path("report.html"),
) -> None:
    """Write one page about a run or several: losses, speed, samples, scores, settings that differ, costs, machines."""
    if out.is_dir():
        raise ValueError(f"--out {out} is a folder; give the file of the page, such as {out / 'report.html'}")
    from diptych.commands.output_folder import prepare_output
    from diptych.studies.run_report import report_runs
    from diptych.train.durable import replace_file

    page = report_runs(runs)
    prepare_output(out.parent)
    replace_file(out, page.encode())
    print(out)

"""`diptych eval`: suites of evaluation put to a morph, and two runs compared."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from diptych.commands.morph_options import LanguageModel, PixelDecoderName, TrustRemoteCode
from diptych.commands.output_folder import prepare_output

if TYPE_CHECKING:
    from diptych.evaluate.comparison import Comparison
    from diptych.evaluate.suite import SuiteResult


def evaluate(
    morph: Annotated[
        str | None,
        typer.Argument(metavar="[MORPH]", help="A morph or pixel decoder: folder, carried name, or Hub id."),
    ] = None,
    suite: Annotated[
        str, typer.Option(metavar="NAME[,NAME]", help="Such as emoji-vqa, emoji-t2i, language: docs/evaluation.md.")
    ] = "",
    limit: Annotated[int | None, typer.Option(min=1, help="So many examples of each suite, always the same.")] = None,
    out: Annotated[
        Path, typer.Option(help="Folder for results.jsonl, scores.json, report.html; a run that stopped goes on there.")
    ] = Path("evaluated"),
    data: Annotated[
        list[str] | None,
        typer.Option(metavar="[NAME=]DIR", help="Of a suite: this folder in place of the one built into the cache."),
    ] = None,
    clip: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Of coco-30k, geneval, dpg: a CLIP's folder or Hub id, to score with."),
    ] = None,
    inception: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Of coco-30k: your inception-2015-12-05.pt (a program: TorchScript), for FID and KID."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the noise of images.")] = 0,
    guidance_scale: Annotated[
        float | None, typer.Option(help="1: no guidance; left out: as the morph was trained to be sampled.")
    ] = None,
    num_inference_steps: Annotated[int | None, typer.Option(min=1, help="Denoising steps.")] = None,
    sampler: Annotated[str | None, typer.Option(help="As of diptych generate.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Examples that are answered together.")] = 50,
    shuffle_images: Annotated[
        bool, typer.Option("--shuffle-images", help="A control: every question with the image of another one.")
    ] = False,
    compare: Annotated[
        tuple[Path, Path] | None, typer.Option(metavar="A B", help="Two folders of diptych eval: B against A, paired.")
    ] = None,
    language_model: LanguageModel = None,
    trust_remote_code: TrustRemoteCode = False,
    pixel_decoder: PixelDecoderName = None,
) -> None:
    """Put suites to a morph; each score comes with its interval, its baselines and what it was made with.

    With --compare A B: the difference of two runs on the same examples, by the paired bootstrap.
    """
    if compare is not None:
        if morph is not None or suite:
            raise ValueError("--compare reads two runs that are there; leave out MORPH and --suite")
        from diptych.evaluate.comparison import compare_runs

        _print_comparison(compare_runs(*compare), *compare)
        return
    if morph is None:
        raise ValueError("give a MORPH to evaluate, such as emoji-dual, or two runs with --compare")
    from diptych.evaluate.suites.known_suites import build_suites
    from diptych.evaluate.suites.prompt_judges import Judges

    names = [name.strip() for name in suite.split(",") if name.strip()]
    suites = build_suites(names, _data_folders(data or [], names), Judges(clip, inception))
    prepare_output(out)
    from diptych.commands.datasets import progress_bars
    from diptych.evaluate.answering import Sampling
    from diptych.evaluate.design_cost import design_cost
    from diptych.evaluate.evaluated_morph import load_evaluated
    from diptych.evaluate.harness import evaluate_suites
    from diptych.evaluate.result_files import REPORT, ROWS, SCORES
    from diptych.evaluate.suite import Exporting

    sampling = Sampling(guidance_scale, num_inference_steps, sampler, seed)
    loaded, stamp = load_evaluated(
        morph,
        sampling=sampling,
        language_model=language_model,
        pixel_decoder=pixel_decoder,
        trust_remote_code=trust_remote_code,
    )
    with progress_bars() as report:
        results = evaluate_suites(
            loaded,
            suites,
            out,
            stamp=stamp,
            sampling=sampling,
            limit=limit,
            batch_size=batch_size,
            shuffle_images=shuffle_images,
            cost=lambda: design_cost(loaded.recipe),
            progress=report,
        )
    _print_scores(results)
    for name in (ROWS, SCORES, REPORT, *(s.name for s in suites if isinstance(s, Exporting))):
        print(out / name)


def make_reference(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Of real images, and of those in its folders.")],
    out: Annotated[Path, typer.Option(help="The file to write.")] = Path("reference.safetensors"),
    inception: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Your inception-2015-12-05.pt (a program: TorchScript); else the embedded network."
        ),
    ] = None,
) -> None:
    """Write the features of real images, with which `diptych eval --suite coco-30k` compares drawings."""
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder")
    if out.suffix != ".safetensors":
        raise ValueError(f"--out {out} must end in .safetensors")
    prepare_output(out.parent)
    from diptych.commands.datasets import progress_bars
    from diptych.evaluate.metrics.feature_networks import load_feature_network
    from diptych.evaluate.metrics.reference_statistics import write_reference

    network = load_feature_network(inception)
    with progress_bars() as report:
        num = write_reference(folder, out, network=network, progress=report)
    print(f"{out}: {num:,} images as {network.name} sees them")


def _data_folders(given: Sequence[str], names: Sequence[str]) -> dict[str, Path]:
    """By suite. A folder without a name is that of the only suite."""
    folders: dict[str, Path] = {}
    for entry in given:
        name, found, folder = entry.partition("=")
        if not found:
            if len(names) != 1:
                raise ValueError(f"--data {entry} could be of {', '.join(names)}; write NAME={entry}")
            name, folder = names[0], entry
        if not Path(folder).is_dir():
            raise ValueError(f"--data {folder} is no folder")
        if name in folders:
            raise ValueError(f"--data is given twice for {name}")
        folders[name] = Path(folder)
    return folders


def _print_scores(results: Sequence[SuiteResult]) -> None:
    from diptych.evaluate.suite_report import format_interval, format_value

    rows = [
        [
            result.suite.name,
            metric.words,
            format_value(score.mean, metric),
            format_interval(score, metric),
            f"{score.num}",
            format_value(score.baselines.majority, metric),
            format_value(score.baselines.chance, metric),
        ]
        for result in results
        for metric in result.suite.metrics
        if (score := result.scores.get(metric.name)) is not None
    ]
    _print_table(["suite", "score", "mean", "95% interval", "n", "majority", "chance"], rows)


def _print_comparison(comparison: Comparison, one: Path, other: Path) -> None:
    rows = [
        [
            found.suite,
            f"{found.metric}{f', {found.kind}' if found.kind else ''}",
            f"{found.one:.4g}",
            f"{found.other:.4g}",
            f"{found.difference.mean:+.4g}",
            " to ".join(f"{edge:+.4g}" for edge in found.difference.interval),
            f"{found.difference.num}",
            "clear" if found.is_clear else "",
        ]
        for found in comparison.differences
    ]
    _print_table(["suite", "score", "A", "B", "B - A", "95% interval", "n", ""], rows)
    print(f"A is {one}, B is {other}; intervals are of the paired bootstrap, clear ones leave out 0 (n of 10 or more)")
    for suite in comparison.not_shared:
        print(f"only one of them has {suite}")
    print("made with the same settings" if not comparison.stamp_differences else "what differs (A, not B):")
    for line in comparison.stamp_differences:
        print(f"  {line}")


def _print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number < 2 else "right", no_wrap=number != 1)
    for row in rows:
        table.add_row(*row)
    console = Console()
    console.width = max(console.width, 110)  # numbers are not to be broken
    console.print(table)

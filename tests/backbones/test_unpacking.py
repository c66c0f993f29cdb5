"""Law: unpacking writes regular files below its folder, within the cap, or refuses; whatever the archive holds."""

from __future__ import annotations

import contextlib
import hashlib
import io
import stat
import tarfile
import tempfile
import zipfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from archive_making import CONTENT, files_below, make_tar, make_zip
from diptych.backbones.unpacking import UnsafeArchiveError, unpack_archive

TOTAL = sum(map(len, CONTENT.values()))
STEPS = ("..", "../..", "a/..", "a/../..", "./..", "a/./../..", "../a/..")
UNSAFE_NAMES = sorted(
    {f"{step}/canary" for step in STEPS}
    | {f"a/{step}/canary" for step in STEPS}
    | {f"{root}canary" for root in ("/", "//", "///tmp/", "/tmp/", "/etc/", "/proc/self/")}
    | {f"{drive}canary" for drive in ("C:", "C:/", "C:\\", "c:\\windows\\", "\\\\server\\share\\", "\\", "..\\", "a\\")}
    | {"a\\..\\..\\canary", "..\\..\\canary", "a/b\\..\\canary", "file:///tmp/canary", "pipe:canary", "a|canary"}
    | {f"canary{chr(code)}" for code in (0, 1, 7, 9, 10, 13, 27, 31)}
    | {f"a{chr(code)}/../canary" for code in (0, 10)}
    | {"a//canary", "a///canary", "./canary", "a/./canary", "canary/.", "..", ".", "a/.."}
    | {"...//canary", "a/../../../../../../tmp/canary", "../" * 40 + "tmp/canary"}
    | {"canary*", "canary?", 'canary"', "<canary>", "x" * 600, "a/" * 300 + "canary", "NUL:", "con:canary"}
)


def test_there_are_many_unsafe_names() -> None:
    assert len(UNSAFE_NAMES) >= 60


@pytest.mark.parametrize("make", [make_zip, make_tar])
def test_an_honest_archive_is_unpacked_exactly(tmp_path: Path, make) -> None:
    archive = make(tmp_path / ("x.whl" if make is make_zip else "x.tgz"), CONTENT)
    folder = tmp_path / "out"
    folder.mkdir()

    files = unpack_archive(archive, folder, max_bytes=TOTAL, rename=lambda n: None if n.endswith(".py") else n)

    wanted = {name: data for name, data in CONTENT.items() if not name.endswith(".py")}
    assert files == {name: (len(data), hashlib.sha256(data).hexdigest()) for name, data in wanted.items()}
    assert {name: (folder / name).read_bytes() for name in files} == wanted
    assert files_below(folder) == sorted(wanted)
    assert not any((folder / name).stat().st_mode & 0o111 for name in files)


@pytest.mark.parametrize("make", [make_zip, make_tar])
def test_no_unsafe_name_gets_out(tmp_path: Path, make) -> None:
    suffix = ".whl" if make is make_zip else ".tgz"
    for number, name in enumerate(UNSAFE_NAMES):
        if make is make_tar and ("\0" in name or name == "a/" * 300 + "canary"):
            continue  # a tar header cannot hold them
        base = tmp_path / str(number)
        folder = base / "deep" / "out"
        folder.mkdir(parents=True)
        archive = make(tmp_path / f"{number}{suffix}", {name: b"out"})
        with pytest.raises(UnsafeArchiveError, match=r"unsafe path|not a regular file"):
            unpack_archive(archive, folder, max_bytes=1000)
        assert files_below(base) == [], name
    assert not Path("/tmp/canary").exists()
    assert not Path("/canary").exists()


@pytest.mark.parametrize("kind", ["SYMTYPE", "LNKTYPE", "FIFOTYPE", "CHRTYPE", "BLKTYPE", "CONTTYPE", "GNUTYPE_SPARSE"])
def test_a_tar_holds_regular_files_only(tmp_path: Path, kind: str) -> None:
    archive = tmp_path / "x.tgz"
    with tarfile.open(archive, "w:gz") as tar:
        info = tarfile.TarInfo("link")
        info.type, info.linkname = getattr(tarfile, kind), "/etc/passwd"
        tar.addfile(info)
        data = tarfile.TarInfo("link/through")
        data.size = 1
        tar.addfile(data, io.BytesIO(b"x"))
    folder = tmp_path / "out"
    folder.mkdir()
    if kind == "CONTTYPE":  # by the format's own words a regular file
        with pytest.raises((UnsafeArchiveError, OSError)):
            unpack_archive(archive, folder, max_bytes=1000)
    else:
        with pytest.raises(UnsafeArchiveError, match=r"not a regular file|damaged"):
            unpack_archive(archive, folder, max_bytes=1000)
        assert files_below(folder) == []
    assert not any(path.is_symlink() for path in folder.rglob("*"))


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFSOCK])
def test_a_zip_holds_regular_files_only(tmp_path: Path, kind: int) -> None:
    archive = tmp_path / "x.whl"
    with zipfile.ZipFile(archive, "w") as zipped:
        info = zipfile.ZipInfo("link")
        info.create_system, info.external_attr = 3, (kind | 0o777) << 16
        zipped.writestr(info, "/etc/passwd")
    with pytest.raises(UnsafeArchiveError, match="not a regular file"):
        unpack_archive(archive, tmp_path, max_bytes=1000)
    assert not (tmp_path / "link").exists()


@pytest.mark.parametrize("make", [make_zip, make_tar])
def test_the_size_cap_is_exact_and_counts_what_is_left_out(tmp_path: Path, make) -> None:
    archive = make(tmp_path / ("x.whl" if make is make_zip else "x.tgz"), CONTENT)
    for number, (cap, fits) in enumerate(((TOTAL, True), (TOTAL - 1, False))):
        folder = tmp_path / str(number)
        folder.mkdir()
        if fits:
            unpack_archive(archive, folder, max_bytes=cap, rename=lambda name: None)
        else:
            with pytest.raises(UnsafeArchiveError, match=f"more than {cap} bytes"):
                unpack_archive(archive, folder, max_bytes=cap, rename=lambda name: None)


def test_ratio_bombs_are_refused(tmp_path: Path) -> None:
    bomb = make_zip(tmp_path / "x.whl", {"zeros": bytes(50_000_000)})
    with pytest.raises(UnsafeArchiveError, match="unpacks to more"):
        unpack_archive(bomb, tmp_path, max_bytes=1_000_000)
    bomb = tmp_path / "x.tgz"
    with tarfile.open(bomb, "w:gz", format=tarfile.PAX_FORMAT, pax_headers={"comment": "0" * 110_000_000}) as tar:
        tar.addfile(tarfile.TarInfo("a"))
    with pytest.raises(UnsafeArchiveError, match="far more than it declares"):
        unpack_archive(bomb, tmp_path, max_bytes=1_000)
    assert not (tmp_path / "zeros").exists()


def test_a_member_that_lies_about_its_size_is_refused(tmp_path: Path) -> None:
    archive = make_zip(tmp_path / "x.whl", {"a": b"a" * 5000})
    data = archive.read_bytes()
    # The size after unpacking, in the central directory: 5000 -> 10.
    place = data.rindex((5000).to_bytes(4, "little"))
    archive.write_bytes(data[:place] + (10).to_bytes(4, "little") + data[place + 4 :])
    with pytest.raises(UnsafeArchiveError):
        unpack_archive(archive, tmp_path, max_bytes=1000)


def test_a_name_twice_is_refused(tmp_path: Path) -> None:
    archive = make_zip(tmp_path / "x.whl", {"a": b"1", "b": b"2"})
    with pytest.raises(UnsafeArchiveError, match="twice"):
        unpack_archive(archive, tmp_path, max_bytes=1000, rename=lambda name: "same")


def test_other_kinds_of_archive_are_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "x.rar").write_bytes(b"Rar!")
    with pytest.raises(UnsafeArchiveError, match=r"x\.rar is neither a wheel"):
        unpack_archive(tmp_path / "x.rar", tmp_path, max_bytes=1000)


@pytest.mark.parametrize("make", [make_zip, make_tar])
def test_every_truncation_is_refused(tmp_path: Path, make) -> None:
    archive = make(tmp_path / ("x.whl" if make is make_zip else "x.tgz"), CONTENT)
    whole = archive.read_bytes()
    # The last 8 bytes of a gzip are its checksum, which a streamed tar need not reach.
    for length in range(0, len(whole) - 30, 13):
        archive.write_bytes(whole[:length])
        folder = tmp_path / str(length)
        folder.mkdir()
        with pytest.raises(UnsafeArchiveError):
            unpack_archive(archive, folder, max_bytes=TOTAL)


@settings(max_examples=150)
@given(st.data())
def test_mutated_archives_are_unpacked_or_refused_and_stay_inside(data) -> None:
    with tempfile.TemporaryDirectory() as name:
        base = Path(name)
        is_zip = data.draw(st.booleans())
        archive = (make_zip if is_zip else make_tar)(base / ("x.whl" if is_zip else "x.tgz"), CONTENT)
        mutated = bytearray(archive.read_bytes())
        for _ in range(data.draw(st.integers(1, 4))):
            mutated[data.draw(st.integers(0, len(mutated) - 1))] = data.draw(st.integers(0, 255))
        archive.write_bytes(mutated)
        folder = base / "deep" / "out"
        folder.mkdir(parents=True)
        with contextlib.suppress(UnsafeArchiveError):
            unpack_archive(archive, folder, max_bytes=TOTAL)
        outside = [path for path in files_below(base) if not path.startswith("deep/out/")]
        assert outside == [archive.name]

"""Laws of WebDataset tars: read in place, grouped by name; what is no plain file is skipped, nothing unpacked."""

from __future__ import annotations

import gzip
import io
import json
import os
import tarfile
import warnings
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from diptych.data import references
from diptych.data.references import content_hash, open_reference, read_reference
from diptych.data.samples import RecordError
from diptych.data.sources import Source
from diptych.data.stores.store_opening import open_store
from diptych.data.stores.webdataset import TarShards, expand_shards
from diptych.data_settings import DataConfig, SourceConfig


def encoded(colour: str, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (6, 4), colour).save(file, kind)
    return file.getvalue()


def write_tar(path: Path, *members: tuple[str, bytes] | tarfile.TarInfo, mode: Any = "w") -> Path:
    with tarfile.open(path, mode) as tar:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member)
            else:
                info = tarfile.TarInfo(member[0])
                info.size = len(member[1])
                tar.addfile(info, io.BytesIO(member[1]))
    return path


def test_members_of_one_key_are_one_record(tmp_path: Path) -> None:
    red, blue = encoded("red"), encoded("blue", "JPEG")
    path = write_tar(
        tmp_path / "a.tar",
        ("./000.png", red),
        ("./000.txt", b"a red one\n"),
        ("./001.jpg", blue),
        ("./001.json", json.dumps({"caption": "a blue one", "width": 6}).encode()),
        ("./__index__", b""),
        ("b/001.1.png", red),
        ("b/001.0.png", blue),
        ("b/001.txt", b"both"),
    )
    shards = TarShards([path])
    first, second, third = (shards.read(number) for number in range(3))
    assert len(shards) == 3
    assert first.keys() == {"image", "caption"}
    assert first["caption"] == "a red one"
    assert read_reference(first["image"]) == red
    assert open_reference(first["image"]).getpixel((0, 0)) == (255, 0, 0)
    assert second == {"caption": "a blue one", "width": 6, "image": second["image"]}
    assert [read_reference(image) for image in third["image"]] == [blue, red]
    (tmp_path / "red.png").write_bytes(red)
    assert content_hash(first["image"]) == content_hash(str(tmp_path / "red.png"))
    assert sorted(os.listdir(tmp_path)) == ["a.tar", "red.png"]


def test_images_named_by_words_are_fields_and_a_triple_is_read(tmp_path: Path) -> None:
    red, blue = encoded("red"), encoded("blue", "JPEG")
    members = [("0.output.png", red), ("0.input.jpg", blue), ("0.json", b'{"instruction": "Make it red."}')]
    path = write_tar(tmp_path / "a.tar", *members)
    config = SourceConfig(path=str(path), columns={"input_images": "input", "output_image": "output"})
    (sample,) = Source(config, DataConfig(sources=(config,)))
    assert [read_reference(image) for image in sample.images] == [blue, red]
    assert [message.parts for message in sample.messages] == [(0, "\nMake it red."), (1,)]


def test_images_are_in_the_order_of_their_names(tmp_path: Path) -> None:
    names = ["0.b.png", "0.a.webp", "0.10.png", "0.png", "0.9.webp", "0.0.png"]
    path = write_tar(tmp_path / "a.tar", *((name, name.encode()) for name in names))
    read = [read_reference(image) for image in TarShards([path]).read(0)["image"]]
    assert read == [b"0.png", b"0.a.webp", b"0.b.png", b"0.0.png", b"0.9.webp", b"0.10.png"]


def test_several_tars_are_one_store_by_a_glob_or_a_range(tmp_path: Path) -> None:
    for shard in range(3):
        members = [(f"{shard}{number}.txt", f"{shard}-{number}".encode()) for number in range(shard)]
        write_tar(tmp_path / f"s-{shard:03d}.tar", *members)
    expected = ["1-0", "2-0", "2-1"]
    for path in (str(tmp_path / "s-*.tar"), str(tmp_path / "s-{000..002}.tar"), str(tmp_path)):
        store = open_store(SourceConfig(path=path))
        assert [store.read(number)["caption"] for number in range(len(store))] == expected


@pytest.mark.parametrize(
    "path", ["pipe:cat a.tar", "http://a/b.tar", "s3://a/b.tar", "file:a.tar", "pipe:touch x;{0..1}"]
)
def test_no_scheme_is_followed(tmp_path: Path, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="names a scheme"):
        expand_shards(path)
    with pytest.raises(ValueError, match="names a scheme"):
        open_store(SourceConfig(path=path))
    assert os.listdir(tmp_path) == []


def special(name: str, kind: bytes, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


def test_links_devices_and_climbing_names_are_skipped_and_counted(tmp_path: Path) -> None:
    """Nothing is written anywhere, and no member leads to a file outside."""
    (tmp_path / "secret.txt").write_text("secret")
    path = write_tar(
        tmp_path / "in" / "a.tar" if (tmp_path / "in").mkdir() is None else tmp_path,
        special("000.txt", tarfile.SYMTYPE, "../secret.txt"),
        special("001.txt", tarfile.LNKTYPE, "/etc/passwd"),
        special("002.txt", tarfile.CHRTYPE),
        special("003.txt", tarfile.FIFOTYPE),
        ("../004.txt", b"out"),
        ("/tmp/005.txt", b"out"),
        ("a/../../006.txt", b"out"),
        ("b\\007.txt", b"out"),
        ("008.txt", b"good"),
    )
    before = sorted(tmp_path.rglob("*"))
    with pytest.warns(UserWarning, match=r"link: 2, name that leads out: 4, no plain file: 2"):
        shards = TarShards([path])
    assert [shards.read(number) for number in range(len(shards))] == [{"caption": "good"}]
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("mode", ["w:gz", "w:bz2", "w:xz"])
def test_a_compressed_tar_is_refused_with_the_remedy(tmp_path: Path, mode: str) -> None:
    path = write_tar(tmp_path / "a.tar", ("000.txt", b"a"), mode=mode)
    with pytest.raises(ValueError, match=r"a\.tar is compressed .* decompress it"):
        TarShards([path])


def three_records(path: Path) -> bytes:
    return write_tar(path, *((f"00{number}.txt", b"%d" % number * 3000) for number in range(3))).read_bytes()


def test_a_tar_of_which_nothing_is_whole_is_refused_by_name(tmp_path: Path) -> None:
    whole = three_records(tmp_path / "w.tar")
    for number, body in enumerate([whole[:2000], whole[:3000], b"", b"x" * 2000, whole[:512].replace(b"000", b"zzz")]):
        path = tmp_path / f"{number}.tar"
        path.write_bytes(body)
        with pytest.raises(ValueError, match=rf"{number}\.tar is corrupt"):
            TarShards([path])


@pytest.mark.parametrize("damage", ["cut", "cut header", "bad header", "empty", "noise"])
@pytest.mark.parametrize("kept", [True, False])
def test_of_a_damaged_tar_among_others_what_is_whole_is_read(
    tmp_path: Path, damage: str, kept: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("diptych.data.stores.offset_index.SMALLEST_KEPT_BYTES", 0)
    body = three_records(tmp_path / "a.tar")
    three_records(tmp_path / "c.tar")
    third = 2 * (512 + 3072)
    (tmp_path / "b.tar").write_bytes(
        {
            "cut": body[: third + 600],
            "cut header": body[: third + 100],
            "bad header": body[:third] + b"x" * 512 + body[third + 512 :],
            "empty": b"",
            "noise": b"x" * 9000,
        }[damage]
    )
    for _ in range(2):
        with pytest.warns(UserWarning, match=r"b\.tar is corrupt, or no tar"):
            shards = TarShards(sorted(tmp_path.glob("*.tar")), index_dir=tmp_path / "i" if kept else None)
    found: list[str] = []
    problems: list[tuple[str, str]] = []
    for number in range(len(shards)):
        try:
            found.append(shards.read(number)["caption"][0])
        except RecordError as error:
            problems.append((error.kind, shards.where(number)))
            found.append("bad")
    between = [] if damage in ("empty", "noise") else ["0", "1"] if damage == "cut" else ["0"]
    assert found == ["0", "1", "2", *between, "bad", "0", "1", "2"]
    assert problems == [("shard", f"{tmp_path / 'b.tar'}, record {len(between) + 1}")]


def test_a_header_that_claims_much_is_refused_before_it_is_read(tmp_path: Path) -> None:
    for kind in (tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME):
        info = tarfile.TarInfo("000.txt")
        info.type, info.size = kind, 2**33
        path = tmp_path / "a.tar"
        path.write_bytes(info.tobuf(tarfile.GNU_FORMAT) + b"\0" * 4096)
        with pytest.raises(ValueError, match=r"a\.tar .*header of"):
            TarShards([path])


def test_members_that_are_too_large_are_bad_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_tar(tmp_path / "a.tar", ("0.png", encoded("red")), ("1.txt", b"x" * 900), ("2.txt", b"\xff"))
    shards = TarShards([path])
    image = shards.read(0)["image"]
    monkeypatch.setattr("diptych.data.samples.MAX_RECORD_BYTES", 500)
    monkeypatch.setattr("diptych.data.stores.webdataset.MAX_IMAGE_BYTES", 20)
    monkeypatch.setattr(references, "MAX_IMAGE_BYTES", 20)
    kinds = []
    for number in range(3):
        with pytest.raises(RecordError) as caught:
            shards.read(number)
        kinds.append(caught.value.kind)
    assert kinds == ["too large", "too long", "encoding"]
    with pytest.raises(ValueError, match="more than the 20"):
        read_reference(image)


def test_a_member_that_is_a_compressed_bomb_is_no_image(tmp_path: Path) -> None:
    bomb = gzip.compress(b"\0" * 50_000_000)
    path = write_tar(tmp_path / "a.tar", ("0.png", bomb), ("0.txt", b"a"))
    record = TarShards([path]).read(0)
    with pytest.raises(ValueError, match="none of PNG"):
        open_reference(record["image"])


def test_the_index_of_a_tar_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("diptych.data.stores.offset_index.SMALLEST_KEPT_BYTES", 0)
    path = write_tar(tmp_path / "a.tar", ("0.txt", b"a"), ("1.txt", b"b"))
    TarShards([path], index_dir=tmp_path / "i")
    monkeypatch.setattr("tarfile.open", lambda *_, **__: pytest.fail("the tar is walked again"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert TarShards([path], index_dir=tmp_path / "i").read(1) == {"caption": "b"}

"""The ONNX reader: finds weights and nodes in the wire format, and refuses what is not one."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
import torch

from diptych.backbones.onnx_weights import OnnxNode, read_onnx_weights


def varint(number: int) -> bytes:
    parts = []
    while True:
        number, low = number >> 7, number & 0x7F
        parts.append(low | (0x80 if number else 0))
        if not number:
            return bytes(parts)


def field(number: int, value: int | bytes) -> bytes:
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def tensor(name: str, shape: tuple[int, ...], raw: bytes, *, data_type: int = 1, packed: bool = False) -> bytes:
    dims = field(1, b"".join(map(varint, shape))) if packed else b"".join(field(1, length) for length in shape)
    return field(5, dims + field(2, data_type) + field(8, name.encode()) + field(9, raw))


def model(*parts: bytes) -> bytes:
    # A version number, a fixed32 and a fixed64 that are skipped, the producer's name, the graph.
    skipped = field(1, 8) + varint(30 << 3 | 5) + b"abcd" + varint(31 << 3 | 1) + b"abcdefgh" + field(2, b"by hand")
    return skipped + field(7, b"".join(parts))


VALUES = [0.5, -1.0, 2.0, 3.0, 4.0, 300.0]
RAW = struct.pack("<6f", *VALUES)
NODE = field(1, field(1, b"x") + field(1, b"w") + field(2, b"y") + field(3, b"/layer/MatMul") + field(4, b"MatMul"))


@pytest.mark.parametrize("packed", [False, True])
def test_weights_and_nodes_are_found(tmp_path: Path, packed: bool) -> None:
    path = tmp_path / "x.onnx"
    integers = tensor("count", (1,), bytes(8), data_type=7)
    path.write_bytes(model(NODE, tensor("w", (2, 3), RAW, packed=packed), integers, tensor("s", (), RAW[:4])))
    weights, nodes = read_onnx_weights(path)
    assert weights.keys() == {"w", "s"}
    assert torch.equal(weights["w"], torch.tensor(VALUES).reshape(2, 3))
    assert weights["s"].shape == ()
    assert nodes == [OnnxNode("/layer/MatMul", "MatMul", ("x", "w"))]


def test_truncations_and_other_files_are_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "x.onnx"
    whole = model(NODE, tensor("w", (2, 3), RAW))
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"x\.onnx is no ONNX model"):
            read_onnx_weights(path)
    for content in (b"\xff" * 40, b"PK\x03\x04" * 9, model(tensor("w", (2, 4), RAW)), model(NODE)):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"x\.onnx is no ONNX model"):
            read_onnx_weights(path)

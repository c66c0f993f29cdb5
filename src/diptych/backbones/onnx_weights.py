"""Reads the weights of an ONNX file: just enough of the protobuf wire format, and nothing that executes."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

MODEL_GRAPH, GRAPH_NODE, GRAPH_INITIALIZER = 7, 1, 5
NODE_INPUT, NODE_NAME, NODE_OP_TYPE = 1, 3, 4
TENSOR_DIMS, TENSOR_DATA_TYPE, TENSOR_NAME, TENSOR_RAW_DATA = 1, 2, 8, 9
FLOAT = 1
"""Field numbers and the data type code of onnx.proto3 (ModelProto, GraphProto, NodeProto, TensorProto)."""


@dataclass(frozen=True)
class OnnxNode:
    """An operation of the graph: its name, type, and the names of its inputs."""

    name: str
    op_type: str
    inputs: tuple[str, ...]


def read_onnx_weights(path: Path) -> tuple[dict[str, Tensor], list[OnnxNode]]:
    """All float32 initializers by name (copies), and the nodes in graph order.

    Raises ValueError for a file that is no ONNX model, is truncated, or keeps its weights elsewhere.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            return _read_model(memoryview(mapped).toreadonly())
    except (IndexError, UnicodeDecodeError, ValueError, BufferError) as error:
        raise ValueError(f"{path} is no ONNX model that can be read, or is truncated: {error}") from error


def _read_model(model: memoryview) -> tuple[dict[str, Tensor], list[OnnxNode]]:
    weights: dict[str, Tensor] = {}
    nodes: list[OnnxNode] = []
    with model:
        for field, graph in _fields(model):
            if field != MODEL_GRAPH or not isinstance(graph, memoryview):
                continue
            for part, content in _fields(graph):
                if not isinstance(content, memoryview):
                    continue
                if part == GRAPH_NODE:
                    nodes.append(_read_node(content))
                elif part == GRAPH_INITIALIZER:
                    name, tensor = _read_tensor(content)
                    if tensor is not None:
                        weights[name] = tensor
                content.release()
            graph.release()
    if not weights:
        raise ValueError("it holds no weights")
    return weights, nodes


def _read_node(message: memoryview) -> OnnxNode:
    inputs: list[str] = []
    name = op_type = ""
    for field, value in _fields(message):
        if not isinstance(value, memoryview):
            continue
        if field == NODE_INPUT:
            inputs.append(str(value, "utf-8"))
        elif field == NODE_NAME:
            name = str(value, "utf-8")
        elif field == NODE_OP_TYPE:
            op_type = str(value, "utf-8")
        value.release()
    return OnnxNode(name, op_type, tuple(inputs))


def _read_tensor(message: memoryview) -> tuple[str, Tensor | None]:
    shape: list[int] = []
    name, data_type, raw = "", 0, bytearray()
    for field, value in _fields(message):
        if isinstance(value, int):
            if field == TENSOR_DIMS:
                shape.append(value)
            elif field == TENSOR_DATA_TYPE:
                data_type = value
            continue
        if field == TENSOR_DIMS:
            shape += _packed(value)
        elif field == TENSOR_NAME:
            name = str(value, "utf-8")
        elif field == TENSOR_RAW_DATA:
            raw = bytearray(value)
        value.release()
    if data_type != FLOAT:
        return name, None
    count = 1
    for length in shape:
        count *= length
    if len(raw) != 4 * count:
        raise ValueError(f"{name} has {len(raw)} bytes for the shape {shape}; weights must lie in the file itself")
    return name, torch.frombuffer(raw, dtype=torch.float32).reshape(shape)


def _fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Field number and value (an int, or the bytes of a length-delimited field) of one protobuf message."""
    position = 0
    while position < len(message):
        key, position = _varint(message, position)
        field, wire_type = key >> 3, key & 7
        if wire_type == 0:
            value, position = _varint(message, position)
            yield field, value
            continue
        if wire_type == 2:
            length, position = _varint(message, position)
        elif wire_type in (1, 5):
            length = 8 if wire_type == 1 else 4
        else:
            raise ValueError(f"wire type {wire_type} at byte {position}")
        if position + length > len(message):
            raise ValueError(f"field {field} is longer than its message")
        if wire_type == 2:
            yield field, message[position : position + length]
        position += length


def _varint(message: memoryview, position: int) -> tuple[int, int]:
    value = shift = 0
    while shift < 64:
        byte = message[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
    raise ValueError(f"a number of more than 64 bits at byte {position}")


def _packed(values: memoryview) -> list[int]:
    numbers, position = [], 0
    while position < len(values):
        number, position = _varint(values, position)
        numbers.append(number)
    return numbers

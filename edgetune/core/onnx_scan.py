"""What an ONNX file computes with, read from its bytes: where onnx is not installed, as on a device.

Only three kinds of field are looked at, and weights are passed over, so a file of any size costs one page at a time.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path

from edgetune.core.errors import ModelError

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
# Field numbers of onnx.proto.
_MODEL_GRAPH, _GRAPH_NODE, _GRAPH_INITIALIZER, _NODE_OP_TYPE, _TENSOR_DATA_TYPE = 7, 1, 5, 4, 2
_FLOAT16, _BFLOAT16 = 10, 16
_INTEGER_OPERATORS = frozenset(
    {"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "QLinearConv", "QLinearMatMul", "ConvInteger",
     "MatMulInteger", "QAttention", "DynamicQuantizeMatMul"}
)  # fmt: skip

_Field = tuple[int, int, int, int]


def scan_precision(path: Path) -> str:
    """`int8` where the graph quantizes, else `fp16` where it has half-precision weights, else `fp32`.

    Raises:
        ModelError: the file is missing or empty, or its bytes are no ONNX graph.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            operators, types = _scan(data)
    except (OSError, ValueError, IndexError) as error:
        raise ModelError(f"{path} is not an ONNX file that can be read.") from error
    if not operators:
        raise ModelError(f"{path} holds no ONNX graph.")
    if operators & _INTEGER_OPERATORS:
        return "int8"
    return "fp16" if types & {_FLOAT16, _BFLOAT16} else "fp32"


def _scan(data: mmap.mmap) -> tuple[set[str], set[int]]:
    """The operators of the graph and the types of its weights."""
    operators: set[str] = set()
    types: set[int] = set()
    for graph in _fields(data, 0, len(data), _MODEL_GRAPH):
        for number, _, start, end in _walk(data, *graph[2:]):
            if number == _GRAPH_NODE:
                names = _fields(data, start, end, _NODE_OP_TYPE)
                operators |= {data[first:last].decode("utf-8", "replace") for _, _, first, last in names}
            elif number == _GRAPH_INITIALIZER:
                types |= {_varint(data, first, last)[0] for _, _, first, last in _types(data, start, end)}
    return operators, types


def _types(data: mmap.mmap, start: int, end: int) -> Iterator[_Field]:
    return (field for field in _walk(data, start, end) if field[:2] == (_TENSOR_DATA_TYPE, _VARINT))


def _fields(data: mmap.mmap, start: int, end: int, number: int) -> Iterator[_Field]:
    return (field for field in _walk(data, start, end) if field[:2] == (number, _BYTES))


def _walk(data: mmap.mmap, start: int, end: int) -> Iterator[_Field]:
    """The fields of a message: number, kind, and where the value starts and ends."""
    while start < end:
        key, start = _varint(data, start, end)
        number, kind = key >> 3, key & 7
        if kind == _VARINT:
            stop = _varint(data, start, end)[1]
        elif kind == _BYTES:
            size, start = _varint(data, start, end)
            stop = start + size
        elif kind in (_FIXED64, _FIXED32):
            stop = start + (8 if kind == _FIXED64 else 4)
        else:
            raise ValueError(f"the kind of field {number} is {kind}")
        if stop > end or number == 0:
            raise ValueError(f"field {number} ends after its message")
        yield number, kind, start, stop
        start = stop


def _varint(data: mmap.mmap, start: int, end: int) -> tuple[int, int]:
    """A number and where the next field starts."""
    value = 0
    for index, position in enumerate(range(start, min(end, start + 10))):
        value |= (data[position] & 0x7F) << (7 * index)
        if not data[position] & 0x80:
            return value, position + 1
    raise ValueError("a number is cut off")

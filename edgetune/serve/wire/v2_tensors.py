"""Tensors on the wire of the Open Inference Protocol V2: little-endian bytes or JSON numbers, in and out of arrays.

What a client claims is compared with what it sent before any memory is taken for it.
"""

from __future__ import annotations

import math
from array import array as compact
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any

import numpy as np

from edgetune.core.tensors import Array, TensorSpec
from edgetune.serve.errors import RequestError
from edgetune.serve.wire.v2_json import shown

BINARY_HEADER = "inference-header-content-length"
BYTES = "BYTES"

DATATYPES = {"bool": "BOOL", "uint8": "UINT8", "uint16": "UINT16", "uint32": "UINT32", "uint64": "UINT64",
             "int8": "INT8", "int16": "INT16", "int32": "INT32", "int64": "INT64", "float16": "FP16",
             "float32": "FP32", "float64": "FP64"}  # fmt: skip

# Of Python's compact arrays, which check types and ranges at the speed of C; uint8 goes through `bytes`, faster still.
_TYPECODES = {"int8": "b", "int16": "h", "uint16": "H", "int32": "i", "uint32": "I", "int64": "q", "uint64": "Q",
              "float32": "d", "float64": "d"}  # fmt: skip

_LENGTH_BYTES = 4


def datatype_of(spec: TensorSpec) -> str:
    return DATATYPES[spec.dtype]


def tensor_bytes(spec: TensorSpec, shape: Sequence[int]) -> int:
    return math.prod(shape) * np.dtype(spec.dtype).itemsize


def raw_shape(body_bytes: int, spec: TensorSpec) -> list[int]:
    """One size at most follows from the number of bytes: the batch, or with a batch of 1 another one."""
    shape = list(spec.shape)
    if shape.count(None) > 1 and shape[0] is None:
        shape[0] = 1
    if shape.count(None) > 1:
        raise RequestError(400, f"input {spec.name!r} has several open sizes; send its shape in JSON")
    known = tensor_bytes(spec, [size for size in shape if size is not None])
    sizes, rest = divmod(body_bytes, known)
    if rest or not sizes or (sizes > 1 and None not in shape):
        expected = f"a multiple of {known}" if None in shape else str(known)
        raise RequestError(400, f"the raw body has {body_bytes} bytes, expected {expected}")
    return [sizes if size is None else size for size in shape]


def claimed_shape(entry: dict[str, Any], spec: TensorSpec) -> list[int]:
    shape = entry.get("shape")
    if not isinstance(shape, list) or not all(type(size) is int for size in shape):
        raise RequestError(400, f"input {spec.name!r}: 'shape' must be a list of integers")
    return shape


def check_shape(shape: list[int], spec: TensorSpec, max_batch: int) -> None:
    fits = len(shape) == len(spec.shape) and all(
        have >= 1 if want is None else have == want for have, want in zip(shape, spec.shape, strict=True)
    )
    if not fits:
        wanted = [-1 if size is None else size for size in spec.shape]
        raise RequestError(400, f"input {spec.name!r} has shape {shape[:8]}, expected {wanted}")
    check_count(shape[0] if shape else 1, spec, max_batch)


def check_count(count: int, spec: TensorSpec, max_batch: int) -> None:
    if count > max_batch:
        raise RequestError(400, f"input {spec.name!r} holds {count} items, at most {max_batch} are served at once")


def array_from_bytes(data: memoryview, spec: TensorSpec, shape: Sequence[int]) -> Array:
    """The tensor in `data`, which holds its bytes exactly; a view of them where their address allows it.

    Raises:
        RequestError: a BOOL is neither 0 nor 1.
    """
    if spec.dtype == "bool":
        flags = np.frombuffer(data, np.uint8)
        if flags.max(initial=0) > 1:
            raise RequestError(400, f"input {spec.name!r} holds the byte {flags.max()}, BOOL is 0 or 1")
        return flags.view(np.bool_).reshape(shape)
    dtype = np.dtype(spec.dtype)
    values = np.frombuffer(data, dtype.newbyteorder("<")).astype(dtype, copy=False)
    return (values if values.flags.aligned else values.copy()).reshape(shape)


def array_from_json(data: Any, spec: TensorSpec, shape: Sequence[int]) -> Array:
    """The tensor in a flat list, or in lists nested as the shape is, in row-major order.

    Raises:
        RequestError: other numbers of values, or values that are not the datatype's.
    """
    if spec.dtype == "float16":
        raise RequestError(400, f"input {spec.name!r} is FP16, which JSON cannot carry; send it as binary data")
    values = _flat(data, spec.name, shape)
    try:
        array = _converted(values, spec.dtype)
    except (TypeError, ValueError, OverflowError) as error:
        raise _odd_value(values, spec) from error
    return array.reshape(shape)


def _flat(data: Any, name: str, shape: Sequence[int]) -> list[Any]:
    """Opens nested lists axis by axis, never deeper than the shape."""
    if not isinstance(data, list):
        raise RequestError(400, f"input {name!r}: 'data' is {shown(data)}, expected a list")
    total = math.prod(shape)
    values = data
    for axis in range(1, len(shape)):
        if not values or not isinstance(values[0], list):
            break
        expected = math.prod(shape[:axis])
        if len(values) != expected:
            raise RequestError(
                400, f"input {name!r}: 'data' has {len(values)} lists at depth {axis}, expected {expected}"
            )
        if set(map(type, values)) != {list} or len(set(map(len, values))) != 1:
            raise RequestError(400, f"input {name!r}: the lists in 'data' are not all of one length")
        values = list(chain.from_iterable(values))
    if len(values) != total:
        raise RequestError(400, f"input {name!r}: 'data' holds {len(values)} values, expected {total}")
    return values


def _converted(values: list[Any], dtype: str) -> Array:
    """Raises `TypeError`, `ValueError` or `OverflowError` for a value that the dtype does not hold."""
    if dtype == "bool":
        if set(map(type, values)) - {bool}:
            raise TypeError("not a bool")
        return np.array(values, np.bool_)
    raw = bytes(values) if dtype == "uint8" else compact(_TYPECODES[dtype], values)
    array: Array = np.frombuffer(raw, "float64" if dtype == "float32" else dtype)
    if _holds_bool(values, array):
        raise TypeError("a bool")
    return _float32(array) if dtype == "float32" else array


def _float32(array: Array) -> Array:
    with np.errstate(over="ignore"):
        narrow = array.astype(np.float32)
    if not np.isfinite(narrow).all():
        raise OverflowError("over the largest float32")
    return narrow


def _holds_bool(values: list[Any], array: Array) -> bool:
    """Python takes True for 1 and False for 0: where the array has these, the values are looked at themselves."""
    suspects = np.flatnonzero((array == 0) | (array == 1))
    if 4 * len(suspects) > len(values):
        return bool in set(map(type, values))
    return any(type(values[index]) is bool for index in suspects.tolist())


def _odd_value(values: list[Any], spec: TensorSpec) -> RequestError:
    """Names the first value that is not the datatype's."""
    kind = np.dtype(spec.dtype).kind
    types = {"b": (bool,), "f": (int, float)}.get(kind, (int,))
    low, high = _limits(spec.dtype)
    odd = next((value for value in values if type(value) not in types or not low <= value <= high), None)
    expected = {"b": "true or false", "f": f"numbers that {datatype_of(spec)} holds"}.get(
        kind, f"integers in {low}..{high}"
    )
    return RequestError(400, f"input {spec.name!r}: 'data' holds {shown(odd)}, expected {expected}")


def _limits(dtype: str) -> tuple[float, float]:
    if dtype == "bool":
        return 0, 1
    if np.dtype(dtype).kind == "f":
        largest = float(np.finfo(dtype).max)
        return -largest, largest
    return np.iinfo(dtype).min, np.iinfo(dtype).max


def split_elements(data: memoryview, count: int, name: str) -> tuple[memoryview, ...]:
    """The `count` elements of a BYTES tensor, each behind its length in 4 bytes; views of `data`.

    Raises:
        RequestError: an element is empty or ends beyond `data`, or bytes are left over.
    """
    elements: list[memoryview] = []
    offset = 0
    for index in range(count):
        start = offset + _LENGTH_BYTES
        offset = start + int.from_bytes(data[offset:start], "little")
        if start >= offset or offset > len(data):
            raise RequestError(
                400, f"input {name!r}: element {index} announces {offset - start} bytes, "
                f"{max(0, len(data) - start)} are left; expected 1 or more, behind a length of {_LENGTH_BYTES} bytes"
            )  # fmt: skip
        elements.append(data[start:offset])
    if offset != len(data):
        raise RequestError(400, f"input {name!r}: {len(data) - offset} bytes follow its {count} elements")
    return tuple(elements)


def join_elements(texts: Iterable[str]) -> bytes:
    """A BYTES tensor of texts, each behind its length in 4 bytes."""
    encoded = [text.encode() for text in texts]
    return b"".join(part for text in encoded for part in (len(text).to_bytes(_LENGTH_BYTES, "little"), text))


def little_endian(array: Array) -> memoryview:
    """The array's bytes in row-major order, without a copy where they lie so already."""
    return np.ascontiguousarray(array, array.dtype.newbyteorder("<")).data

from __future__ import annotations

import json
import math
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgetune.core.tensors import Array, TensorSpec
from edgetune.serve.errors import RequestError
from edgetune.serve.wire.v2_tensors import (
    DATATYPES,
    array_from_bytes,
    array_from_json,
    datatype_of,
    join_elements,
    little_endian,
    split_elements,
)

# Bytes by hand, from the standards: two's complement and IEEE 754, least significant byte first.
WORKED = {
    "bool": ([True, False], "0100", "BOOL"),
    "uint8": ([0, 255], "00ff", "UINT8"),
    "uint16": ([1, 65535], "0100ffff", "UINT16"),
    "uint32": ([258, 4294967295], "02010000ffffffff", "UINT32"),
    "uint64": ([1, 18446744073709551615], "0100000000000000ffffffffffffffff", "UINT64"),
    "int8": ([-128, 127], "807f", "INT8"),
    "int16": ([-32768, 32767], "0080ff7f", "INT16"),
    "int32": ([-2147483648, 2147483647], "00000080ffffff7f", "INT32"),
    "int64": ([-9223372036854775808, 1], "00000000000000800100000000000000", "INT64"),
    "float16": ([1.0, -2.0], "003c00c0", "FP16"),
    "float32": ([1.5, -0.1], "0000c03fcdccccbd", "FP32"),
    "float64": ([1.0, -0.1], "000000000000f03f9a9999999999b9bf", "FP64"),
}


def _spec(dtype: str) -> TensorSpec:
    return TensorSpec("x", dtype, (None,))


def test_every_datatype_has_a_worked_example() -> None:
    assert set(WORKED) == set(DATATYPES)


@pytest.mark.parametrize(("dtype", "example"), WORKED.items(), ids=WORKED)
def test_bytes_are_little_endian_in_and_out(dtype: str, example: tuple[list[Any], str, str]) -> None:
    values, text, datatype = example
    array = array_from_bytes(memoryview(bytes.fromhex(text)), _spec(dtype), [2, 1])
    assert array.dtype == np.dtype(dtype)
    assert array.dtype.isnative
    assert array.shape == (2, 1)
    np.testing.assert_array_equal(array.ravel(), np.array(values, dtype))
    assert bytes(little_endian(np.array(values, dtype))).hex() == text
    assert datatype_of(_spec(dtype)) == datatype


@pytest.mark.parametrize(("dtype", "example"), WORKED.items(), ids=WORKED)
def test_json_gives_what_the_bytes_give(dtype: str, example: tuple[list[Any], str, str]) -> None:
    values, text, _ = example
    if dtype == "float16":
        with pytest.raises(RequestError, match="input 'x' is FP16, which JSON cannot carry; send it as binary data"):
            array_from_json(values, _spec(dtype), [2])
        return
    for data in (values, [[values[0]], [values[1]]]):
        array = array_from_json(data, _spec(dtype), [2, 1])
        assert array.dtype == np.dtype(dtype)
        assert array.astype(array.dtype.newbyteorder("<")).tobytes().hex() == text
        assert array.shape == (2, 1)


def test_views_and_other_orders_are_written_row_by_row() -> None:
    transposed = np.array([[1, 2], [3, 4]], np.uint16).T
    assert bytes(little_endian(transposed)) == struct.pack("<4H", 1, 3, 2, 4)
    assert bytes(little_endian(np.array([1, 2], ">u2"))) == struct.pack("<2H", 1, 2)


def test_a_bool_is_one_byte_that_is_0_or_1() -> None:
    with pytest.raises(RequestError, match="input 'x' holds the byte 2, BOOL is 0 or 1"):
        array_from_bytes(memoryview(b"\x00\x01\x02"), _spec("bool"), [3])


NO_INTEGERS: tuple[Any, ...] = (1.0, "1", None, [], {}, True, False)
BAD_VALUES: list[tuple[str, Any, str]] = [
    ("bool", 1, "holds 1, expected true or false"),
    ("bool", "true", "holds 'true', expected true or false"),
    ("bool", None, "holds null, expected true or false"),
    *[
        (dtype, bad, rf"holds {bad}, expected integers in {np.iinfo(dtype).min}\.\.{np.iinfo(dtype).max}")
        for dtype in ("uint8", "uint16", "uint32", "int8", "int16", "int32")
        for bad in (int(np.iinfo(dtype).min) - 1, int(np.iinfo(dtype).max) + 1)
    ],
    ("uint64", -1, "holds -1, expected integers"),
    ("int64", 2**63, "holds 9223372036854775808, expected integers"),
    *[(dtype, bad, "expected integers") for dtype in ("uint8", "int64", "uint64") for bad in NO_INTEGERS],
    ("float32", 3.5e38, r"holds 3.5e\+?38, expected numbers that FP32 holds"),
    ("float32", -1e300, "expected numbers that FP32 holds"),
    *[
        (dtype, bad, "expected numbers that FP")
        for dtype in ("float32", "float64")
        for bad in ("1.5", "nan", None, [1.0], {"a": 1}, True, False)
    ],
]  # fmt: skip


@pytest.mark.parametrize(("dtype", "bad", "words"), BAD_VALUES, ids=lambda value: str(value)[:30])
@pytest.mark.parametrize("others", [[7, 7, 7], [1, 1, 1]], ids=["sevens", "ones"])
@pytest.mark.parametrize("place", [0, 3])
def test_values_of_another_type_or_range_are_refused(
    dtype: str, bad: Any, words: str, others: list[Any], place: int
) -> None:
    values = [bool(other) for other in others] if dtype == "bool" else list(others)
    values.insert(place, bad)
    with pytest.raises(RequestError, match=f"input 'x': 'data' .*{words}") as caught:
        array_from_json(values, _spec(dtype), [4])
    assert caught.value.status == 400


def test_floats_may_be_written_as_integers_and_are_rounded_once() -> None:
    array = array_from_json([1, -3, 2**63, 0.1, 3.4028235e38, 1e-50], _spec("float32"), [6])
    np.testing.assert_array_equal(array, np.array([1, -3, 2.0**63, 0.1, np.finfo("f4").max, 0], np.float32))


def _numpy_of(dtype: str) -> st.SearchStrategy[Array]:
    limits: Any = np.finfo(dtype) if np.dtype(dtype).kind == "f" else np.iinfo(dtype)
    if np.dtype(dtype).kind == "f":
        values: Any = st.floats(float(limits.min), float(limits.max), width=limits.bits)
    else:
        values = st.integers(int(limits.min), int(limits.max))
    shapes = st.lists(st.integers(1, 3), min_size=1, max_size=4)

    def fill(shape: list[int]) -> st.SearchStrategy[Array]:
        count = math.prod(shape)
        return st.lists(values, min_size=count, max_size=count).map(lambda flat: np.array(flat, dtype).reshape(shape))

    return shapes.flatmap(fill)


@settings(max_examples=150, deadline=None, database=None)
@given(array=st.sampled_from(["uint8", "int16", "uint64", "int64", "float32", "float64"]).flatmap(_numpy_of))
def test_any_tensor_survives_json_and_bytes(array: Array) -> None:
    spec, shape = _spec(array.dtype.name), list(array.shape)
    for data in (array.tolist(), array.ravel().tolist()):
        np.testing.assert_array_equal(array_from_json(json.loads(json.dumps(data)), spec, shape), array)
    np.testing.assert_array_equal(array_from_bytes(little_endian(array).cast("B"), spec, shape), array)


def test_elements_are_texts_behind_their_lengths() -> None:
    data = join_elements(["ab", "é"])
    assert data == b"\x02\x00\x00\x00ab\x02\x00\x00\x00\xc3\xa9"
    assert [bytes(element) for element in split_elements(memoryview(data), 2, "x")] == [b"ab", "é".encode()]

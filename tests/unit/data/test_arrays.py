from __future__ import annotations

import io
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgetune.core.errors import DataError
from edgetune.core.tensors import TensorSpec
from edgetune.data import arrays
from edgetune.data.arrays import open_arrays

X = TensorSpec("x", "float32", (None, 2, 3))
IDS = TensorSpec("ids", "int64", (1, None))


def _npz(path: Path, **columns: Any) -> Path:
    np.savez_compressed(path, **columns)
    return path


def _floats(rows: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.arange(rows * 6, dtype=np.float32).reshape(rows, 2, 3)


def test_rows_come_in_batches_of_every_input_whatever_batch_the_model_is_fixed_to(tmp_path: Path) -> None:
    ids = np.arange(35, dtype=np.int64).reshape(5, 7)
    file = open_arrays(_npz(tmp_path / "in.npz", ids=ids, x=_floats(5)), (X, IDS))
    assert file.rows == 5
    found = list(file.batches(2))
    assert [len(batch["x"]) for batch in found] == [2, 2, 1]
    np.testing.assert_array_equal(np.concatenate([batch["x"] for batch in found]), _floats(5))
    np.testing.assert_array_equal(np.concatenate([batch["ids"] for batch in found]), ids)


def test_a_single_input_may_be_a_npy(tmp_path: Path) -> None:
    np.save(tmp_path / "in.npy", _floats(3))
    (batch,) = open_arrays(tmp_path / "in.npy", (X,)).batches(8)
    np.testing.assert_array_equal(batch["x"], _floats(3))


def test_large_rows_come_in_smaller_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrays, "MAX_BATCH_BYTES", 2 * 24)  # two rows of six float32
    file = open_arrays(_npz(tmp_path / "in.npz", x=_floats(5)), (X,))
    assert [len(batch["x"]) for batch in file.batches(8)] == [2, 2, 1]


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"y": _floats(2)}, "holds the arrays ['y'], the model takes ['x']"),
        ({"x": _floats(2), "y": _floats(2)}, "holds the arrays ['x', 'y']"),
        ({"x": _floats(2).astype(np.float64)}, "'x' is float64 (2, 2, 3), the model takes float32 (rows, 2, 3)"),
        ({"x": np.zeros((2, 3, 2), np.float32)}, "'x' is float32 (2, 3, 2), the model takes float32 (rows, 2, 3)"),
        ({"x": np.zeros((2, 6), np.float32)}, "'x' is float32 (2, 6)"),
        ({"x": np.float32(1.0)}, "'x' is float32 ()"),
        ({"x": np.zeros((0, 2, 3), np.float32)}, "holds no rows"),
        ({"x": np.asfortranarray(_floats(2))}, "stored column by column"),
        ({"x": np.array([{"a": 1}], dtype=object)}, "holds Python objects, which are not unpickled"),
    ],
    ids=["other name", "one too many", "dtype", "shape", "rank", "scalar", "no rows", "fortran", "objects"],
)
def test_arrays_that_are_not_the_models_inputs_are_named(tmp_path: Path, columns: Any, words: str) -> None:
    with pytest.raises(DataError, match=re.escape(words)):
        open_arrays(_npz(tmp_path / "in.npz", **columns), (X,))


def test_inputs_need_equally_many_rows(tmp_path: Path) -> None:
    path = _npz(tmp_path / "in.npz", x=_floats(2), ids=np.zeros((3, 4), np.int64))
    with pytest.raises(DataError, match=re.escape("the arrays have {'x': 2, 'ids': 3} rows, expected equally many")):
        open_arrays(path, (X, IDS))


def test_a_npy_is_no_two_inputs(tmp_path: Path) -> None:
    np.save(tmp_path / "in.npy", _floats(3))
    with pytest.raises(DataError, match="is one array, and the model takes 2 inputs: x, ids"):
        open_arrays(tmp_path / "in.npy", (X, IDS))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_an_input_that_is_not_finite_is_named_with_its_row(tmp_path: Path, value: float) -> None:
    bad = _floats(5)
    bad[3, 1, 2] = value
    file = open_arrays(_npz(tmp_path / "in.npz", x=bad), (X,))
    with pytest.raises(DataError, match="'x' holds NaN or infinity in row 3"):
        list(file.batches(2))


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 no archive", b"\x93NUMPY\x01\x00"], ids=["empty", "zip", "npy"])
@pytest.mark.parametrize("suffix", [".npz", ".npy"])
def test_what_is_no_such_file_is_one_line(tmp_path: Path, content: bytes, suffix: str) -> None:
    path = tmp_path / f"in{suffix}"
    path.write_bytes(content)
    with pytest.raises(DataError, match=f"no {suffix} file that can be read") as caught:
        open_arrays(path, (X,))
    assert "\n" not in caught.value.message


def test_a_file_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        open_arrays(tmp_path / "in.npz", (X,))


def test_a_file_that_was_cut_off(tmp_path: Path) -> None:
    np.save(tmp_path / "in.npy", _floats(3))
    path = tmp_path / "in.npy"
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(DataError, match="has 68 bytes of values, its header says 72; it was cut off"):
        open_arrays(path, (X,))


def test_a_damaged_value_in_the_archive_is_found_by_its_checksum(tmp_path: Path) -> None:
    path = tmp_path / "in.npz"
    np.savez(path, x=_floats(3))  # stored, not compressed
    content = bytearray(path.read_bytes())
    content[content.index(_floats(3).tobytes()) + 5] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match="Bad CRC-32"):
        list(open_arrays(path, (X,)).batches(8))


def test_an_archive_that_says_it_is_larger_than_it_is_costs_no_memory(tmp_path: Path) -> None:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "<f4", "fortran_order": False, "shape": (1 << 40, 2, 3)}
    )  # fmt: skip
    with zipfile.ZipFile(tmp_path / "in.npz", "w") as archive:
        archive.writestr("x.npy", header.getvalue())
    with pytest.raises(DataError, match="would unpack to 26,388,279,066,624 bytes, over the limit"):
        open_arrays(tmp_path / "in.npz", (X,))


def test_a_row_over_the_limit_is_refused_before_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrays, "MAX_BATCH_BYTES", 10)
    path = _npz(tmp_path / "in.npz", ids=np.zeros((3, 4), np.int64))
    with pytest.raises(DataError, match="a row of 'ids' has 32 bytes, expected 1 to 10"):
        open_arrays(path, (IDS,))

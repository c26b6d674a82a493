"""Inputs of any model from .npz and .npy files, a few rows at a time; nothing is unpickled."""

from __future__ import annotations

import contextlib
import math
import struct
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
from numpy.lib import format as npy

from edgetune.core.errors import DataError, first_line
from edgetune.core.tensors import Array, TensorSpec

ARRAY_SUFFIXES = (".npz", ".npy")
# One batch of one input in memory; and what one file may unpack to, which a few megabytes of zeros could make endless.
MAX_BATCH_BYTES = 256 << 20
MAX_FILE_BYTES = 64 << 30

_SUFFIX_IN_ARCHIVE = ".npy"
# What a damaged, encrypted or unknown archive raises, in opening and in reading.
_READ_ERRORS = (
    OSError, ValueError, TypeError, KeyError, EOFError, RuntimeError, OverflowError, SyntaxError, MemoryError,
    struct.error, zipfile.BadZipFile, zlib.error,
)  # fmt: skip


@dataclass(frozen=True)
class _Column:
    """One array in the file: `member` is its name in the archive, None in a .npy."""

    member: str | None
    dtype: np.dtype[np.generic]
    shape: tuple[int, ...]

    @property
    def row_bytes(self) -> int:
        return math.prod(self.shape[1:]) * self.dtype.itemsize


@dataclass(frozen=True)
class ArrayFile:
    """Rows for every input of a model, checked by their headers; the values are read by `batches`."""

    path: Path
    columns: dict[str, _Column]

    @property
    def rows(self) -> int:
        return next(iter(self.columns.values())).shape[0]

    def batches(self, size: int) -> Iterator[dict[str, Array]]:
        """Up to `size` rows at a time, by input name; fewer where rows are large.

        Raises:
            DataError: the file is damaged, or an input holds NaN or infinity.
        """
        largest = max(column.row_bytes for column in self.columns.values())
        size = max(1, min(size, MAX_BATCH_BYTES // largest))
        with contextlib.ExitStack() as stack:
            streams = {name: stack.enter_context(_opened(self.path, column)) for name, column in self.columns.items()}
            for start in range(0, self.rows, size):
                count = min(size, self.rows - start)
                yield {
                    name: _read_rows(self.path, name, column, streams[name], range(start, start + count))
                    for name, column in self.columns.items()
                }


def open_arrays(path: Path, specs: tuple[TensorSpec, ...]) -> ArrayFile:
    """`.npz` with one array an input, by its name, or `.npy` for a single input; each `(N, ...)`.

    Raises:
        DataError: the file is damaged, or its arrays are not the model's inputs with equally many rows.
    """
    if not path.is_file():
        raise DataError(f"{path} does not exist or is not a file.")
    columns = _npz_columns(path) if path.suffix.lower() == ".npz" else _npy_column(path, specs)
    wanted = [spec.name for spec in specs]
    if sorted(columns) != sorted(wanted):
        raise DataError(
            f"{path} holds the arrays {sorted(columns)}, the model takes {sorted(wanted)}.",
            hint="save one array an input: numpy.savez(FILE, " + ", ".join(f"{name}=..." for name in wanted) + ")",
        )
    for spec in specs:
        _check_column(path, columns[spec.name], spec)
    counts = {name: column.shape[0] for name, column in columns.items()}
    if len(set(counts.values())) > 1:
        raise DataError(f"{path}: the arrays have {counts} rows, expected equally many.")
    if not next(iter(counts.values())):
        raise DataError(f"{path} holds no rows.")
    return ArrayFile(path, {spec.name: columns[spec.name] for spec in specs})


def _npy_column(path: Path, specs: tuple[TensorSpec, ...]) -> dict[str, _Column]:
    if len(specs) != 1:
        names = ", ".join(spec.name for spec in specs)
        raise DataError(f"{path} is one array, and the model takes {len(specs)} inputs: {names}.", hint="give a .npz")
    try:
        with path.open("rb") as stream:
            return {specs[0].name: _header(path, None, stream, path.stat().st_size)}
    except _READ_ERRORS as error:
        raise _damaged(path, error) from error


def _npz_columns(path: Path) -> dict[str, _Column]:
    try:
        with zipfile.ZipFile(path) as archive:
            columns = {}
            for info in archive.infolist():
                with archive.open(info) as stream:
                    name = info.filename.removesuffix(_SUFFIX_IN_ARCHIVE)
                    columns[name] = _header(path, info.filename, stream, info.file_size)
            return columns
    except _READ_ERRORS as error:
        raise _damaged(path, error) from error


def _header(path: Path, member: str | None, stream: IO[bytes], size_bytes: int) -> _Column:
    """Leaves the stream at the first value."""
    title = f"{path}: {member}" if member else str(path)
    version = npy.read_magic(stream)
    if version not in ((1, 0), (2, 0)):
        raise DataError(f"{title} is of version {version} of the .npy format, expected 1.0 or 2.0.")
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, is_fortran, dtype = read(stream)
    if dtype.hasobject:
        raise DataError(f"{title} holds Python objects, which are not unpickled.", hint="save plain numbers")
    if is_fortran and len(shape) > 1:
        hint = "save numpy.ascontiguousarray(array)"
        raise DataError(f"{title} is stored column by column, expected row by row.", hint=hint)
    wanted = math.prod(shape) * dtype.itemsize
    if wanted > MAX_FILE_BYTES:
        raise DataError(f"{title} would unpack to {wanted:,} bytes, over the limit of {MAX_FILE_BYTES:,}.")
    if stream.tell() + wanted != size_bytes:
        raise DataError(
            f"{title} has {size_bytes - stream.tell():,} bytes of values, its header says {wanted:,}; it was cut off."
        )
    return _Column(member, dtype, tuple(shape))


def _check_column(path: Path, column: _Column, spec: TensorSpec) -> None:
    shape = tuple("any" if size is None else size for size in ("rows", *spec.shape[1:]))
    fits = len(column.shape) == len(spec.shape) and all(
        want is None or have == want for have, want in zip(column.shape[1:], spec.shape[1:], strict=True)
    )
    if str(column.dtype) != spec.dtype or not fits or not column.shape:
        raise DataError(
            f"{path}: {spec.name!r} is {column.dtype} {column.shape}, the model takes {spec.dtype} "
            f"({', '.join(map(str, shape))})."
        )
    if not 0 < column.row_bytes <= MAX_BATCH_BYTES:
        raise DataError(
            f"{path}: a row of {spec.name!r} has {column.row_bytes:,} bytes, expected 1 to {MAX_BATCH_BYTES:,}."
        )


@contextlib.contextmanager
def _opened(path: Path, column: _Column) -> Iterator[IO[bytes]]:
    """The stream of an array, at its first value."""
    with contextlib.ExitStack() as stack:
        try:
            if column.member is None:
                stream: IO[bytes] = stack.enter_context(path.open("rb"))
                size_bytes = path.stat().st_size
            else:
                archive = stack.enter_context(zipfile.ZipFile(path))
                stream = stack.enter_context(archive.open(column.member))
                size_bytes = archive.getinfo(column.member).file_size
            if _header(path, column.member, stream, size_bytes) != column:
                raise DataError(f"{path} was changed while it was read.")
        except _READ_ERRORS as error:
            raise _damaged(path, error) from error
        yield stream


def _read_rows(path: Path, name: str, column: _Column, stream: IO[bytes], rows: range) -> Array:
    try:
        data = stream.read(len(rows) * column.row_bytes)
    except _READ_ERRORS as error:
        raise _damaged(path, error) from error
    if len(data) != len(rows) * column.row_bytes:
        raise DataError(f"{path}: {name!r} ends before its row {rows[-1]}; it was cut off.")
    array: Array = np.frombuffer(data, column.dtype).reshape(len(rows), *column.shape[1:])
    if array.dtype.kind in "fc":
        bad = ~np.isfinite(array).reshape(len(rows), -1).all(axis=1)
        if bad.any():
            raise DataError(f"{path}: {name!r} holds NaN or infinity in row {rows[int(bad.argmax())]}.")
    return array


def _damaged(path: Path, error: BaseException) -> DataError:
    return DataError(f"{path} is no {path.suffix or 'array'} file that can be read: {first_line(error)}.")

"""The calibration images, decoded once and read as often as the passes over them need."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator
from types import TracebackType

import numpy as np
import numpy.typing as npt

from edgetune.core.errors import DataError

ImageBatches = Iterator[npt.NDArray[np.uint8]]


class ImageSpool:
    """Images uint8 `(N, H, W, 3)` of one size in a temporary file; in memory there is one batch at a time.

    They are read in the order of their content's digests, whatever order they came in: what is computed from them
    cannot depend on it.
    """

    def __init__(self, batches: ImageBatches) -> None:
        """Raises `DataError` when there is no image, or one is of another size than the first."""
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the spool
        self.shape: tuple[int, ...] = ()
        self._digests: list[bytes] = []
        try:
            for batch in batches:
                self._append(batch)
        except BaseException:
            self._file.close()
            raise
        if not self._digests:
            self._file.close()
            raise DataError("not one calibration image could be read.")
        self._order = sorted(range(self.count), key=self._digests.__getitem__)

    @property
    def count(self) -> int:
        return len(self._digests)

    def __enter__(self) -> ImageSpool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def batches(self, size: int, limit: int | None = None) -> ImageBatches:
        """The images, `size` at a time; `limit` takes that many, evenly spread over the set."""
        rows = spread(self.count, limit if limit is not None else self.count)
        for start in range(0, len(rows), size):
            yield np.stack([self._read(row) for row in rows[start : start + size]])

    def _append(self, batch: npt.NDArray[np.uint8]) -> None:
        self.shape = self.shape or batch.shape[1:]
        if batch.shape[1:] != self.shape or batch.dtype != np.uint8:
            raise DataError(
                f"a calibration image is {batch.dtype} {batch.shape[1:]}, expected uint8 {self.shape} like the first."
            )
        for image in batch:
            content = image.tobytes()
            self._digests.append(hashlib.sha256(content).digest())
            self._file.write(content)

    def _read(self, row: int) -> npt.NDArray[np.uint8]:
        size_bytes = int(np.prod(self.shape))
        self._file.seek(self._order[row] * size_bytes)
        return np.frombuffer(self._file.read(size_bytes), np.uint8).reshape(self.shape)


def spread(count: int, limit: int) -> list[int]:
    """At most `limit` of the numbers 0 to `count` - 1, evenly spaced."""
    wanted = min(count, limit)
    return [index * count // wanted for index in range(wanted)]

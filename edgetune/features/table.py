"""What a pass over the images leaves: features with the labels, files and content hashes they belong to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from edgetune.core.errors import DataError
from edgetune.data.image_folder import ImageFile, SkippedFile

Features = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]
_Value = TypeVar("_Value", bound=np.generic)


@dataclass(frozen=True)
class FeatureTable:
    """Features float32 `(N, D)`, labels int64 `(N,)`, and the files and content hashes they belong to, in order.

    `views` has one array float32 `(V, D)` for each augmented view, of the V images that have views; `view_rows`
    int64 `(V,)` are their rows, ascending. `cached` bool `(N,)` tells which images were in the cache, views
    included, when the pass began.
    """

    features: Features
    labels: npt.NDArray[np.int64]
    files: tuple[ImageFile, ...]
    hashes: tuple[str, ...]
    skipped: tuple[SkippedFile, ...]
    cached: npt.NDArray[np.bool_]
    views: tuple[Features, ...]
    view_rows: Rows

    @property
    def from_cache(self) -> int:
        return int(self.cached.sum())

    def part(self, files: Sequence[ImageFile]) -> FeatureTable:
        """The rows of `files`, in this table's order, without copying where they lie together.

        Raises:
            DataError: not one of them could be read.
        """
        wanted = {file.path for file in files}
        rows = np.flatnonzero([file.path in wanted for file in self.files])
        if not len(rows):
            raise DataError("not one image of a split could be read; there would be nothing to learn from or judge.")
        views = np.flatnonzero(np.isin(self.view_rows, rows))
        return FeatureTable(
            features=_take(self.features, rows),
            labels=_take(self.labels, rows),
            files=tuple(self.files[row] for row in rows),
            hashes=tuple(self.hashes[row] for row in rows),
            skipped=tuple(file for file in self.skipped if file.path in wanted),
            cached=_take(self.cached, rows),
            views=tuple(_take(view, views) for view in self.views),
            view_rows=np.searchsorted(rows, self.view_rows[views]).astype(np.int64),
        )


def _take(array: npt.NDArray[_Value], rows: npt.NDArray[np.intp]) -> npt.NDArray[_Value]:
    """`array[rows]`, as a view where ascending `rows` have no gap: features may fill most of the memory."""
    if len(rows) and rows[-1] - rows[0] == len(rows) - 1:
        return array[rows[0] : rows[-1] + 1]
    return array[rows]

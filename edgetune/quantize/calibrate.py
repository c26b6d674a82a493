"""Which images calibrate, and the record that lets anyone repeat it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgetune.core.errors import DataError
from edgetune.core.run import Run, Skipped, SplitFile
from edgetune.data.splits import pick_stratified

TARGETS = ("cpu-x86",)
DEFAULT_IMAGES = 300
FEW_IMAGES = 32
_SCHEMA_VERSION = 1

ImageBatches = Iterator[npt.NDArray[np.uint8]]


@dataclass(frozen=True)
class CalibrationRecord:
    """The calibration set by path and content hash, and the range `(low, high)` each quantized tensor got.

    `head` tells whether the target has a head of its own, fitted on the features of the quantized backbone.
    """

    schema_version: int
    method: str
    target: str
    activations: str
    weights: str
    head: str
    images: tuple[SplitFile, ...]
    skipped: tuple[Skipped, ...]
    ranges: dict[str, tuple[float, float]]


def pick_calibration_files(run: Run, count: int) -> tuple[SplitFile, ...]:
    """Picks training images, stratified by class; content that is also in the validation split is left out.

    Raises:
        DataError: no training image is left.
    """
    validation = {file.sha256 for file in run.split.val}
    pool = [file for file in run.split.train if file.sha256 not in validation]
    picked = pick_stratified(pool, [file.label for file in pool], [file.sha256 for file in pool], count)
    if not picked:
        raise DataError("no training image is left to calibrate with: all are in the validation split as well.")
    return tuple(picked)


def calibration_record(
    files: tuple[SplitFile, ...], skipped: tuple[Skipped, ...], target: str, ranges: dict[str, tuple[float, float]],
    head: str,
) -> CalibrationRecord:  # fmt: skip
    unread = {file.path for file in skipped}
    return CalibrationRecord(
        schema_version=_SCHEMA_VERSION,
        method="mean of per-image minimum and maximum",
        target=target,
        activations="uint8 per tensor, zero point free",
        weights="int8 per channel, symmetric",
        head=head,
        images=tuple(file for file in files if file.path not in unread),
        skipped=skipped,
        ranges=ranges,
    )

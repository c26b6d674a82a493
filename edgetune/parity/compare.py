"""The same images through the reference and every candidate, streamed once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgetune.core.errors import DataError
from edgetune.core.preprocess import PreprocessSpec
from edgetune.core.progress import Progress, no_progress
from edgetune.core.tensors import LOGITS_OUTPUT
from edgetune.data.image_folder import ImageFile, SkippedFile
from edgetune.data.samples import Sample, SampleStream, batches
from edgetune.runners.base import Runner, infer_images

BATCH_IMAGES = 8


@dataclass(frozen=True)
class LogitsTable:
    """Per runner the logits float32 `(N, classes)`, with the labels `(N,)` and content hashes of the images."""

    files: tuple[ImageFile, ...]
    hashes: tuple[str, ...]
    labels: npt.NDArray[np.int64]
    logits: dict[str, npt.NDArray[np.float32]]
    skipped: tuple[SkippedFile, ...]


def collect_logits(
    files: Sequence[ImageFile],
    spec: PreprocessSpec,
    runners: Mapping[str, Runner],
    *,
    progress: Progress = no_progress,
) -> LogitsTable:
    """Runs every readable image through every runner, from file bytes on; the runners are open already.

    Raises:
        DataError: not one image could be read.
    """
    if not files:
        raise DataError("there are no images to compare on.")
    samples: list[Sample] = []
    skipped: list[SkippedFile] = []
    rows: dict[str, list[npt.NDArray[np.float32]]] = {name: [] for name in runners}
    with SampleStream(files, spec) as stream:
        for gathered, images in batches(stream, BATCH_IMAGES, skipped.append):
            samples.extend(gathered)
            for name, runner in runners.items():
                rows[name].append(infer_images(runner, images, LOGITS_OUTPUT))
            progress("parity", len(samples), len(files))
    if not samples:
        raise DataError(f"none of {len(files)} images could be read; the first: {skipped[0].path}: {skipped[0].reason}")
    if skipped:
        progress("parity", len(files), len(files))
    return LogitsTable(
        files=tuple(sample.file for sample in samples),
        hashes=tuple(sample.sha256 for sample in samples),
        labels=np.array([sample.file.label for sample in samples], dtype=np.int64),
        logits={name: np.concatenate(parts) for name, parts in rows.items()},
        skipped=tuple(skipped),
    )

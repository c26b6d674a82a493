"""The same images through the reference and every candidate, streamed once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgetune.core.errors import DataError, EdgetuneError, TensorError
from edgetune.core.preprocess import PreprocessSpec
from edgetune.core.progress import Progress, no_progress
from edgetune.core.tensors import LOGITS_OUTPUT
from edgetune.data.image_folder import ImageFile, SkippedFile
from edgetune.data.samples import Sample, SampleStream, batches
from edgetune.runners.base import FileRunner, Runner, infer_images

BATCH_IMAGES = 8

_Logits = npt.NDArray[np.float32]
_Images = npt.NDArray[np.uint8]
_Answer = Callable[[Sequence[Sample], _Images], _Logits]


@dataclass(frozen=True)
class LogitsTable:
    """Per runner the logits float32 `(N, classes)`, with the labels `(N,)` and content hashes of the images.

    `failures` has the runners that did not get through all images, with the reason; they have no logits.
    """

    files: tuple[ImageFile, ...]
    hashes: tuple[str, ...]
    labels: npt.NDArray[np.int64]
    logits: dict[str, _Logits]
    skipped: tuple[SkippedFile, ...]
    failures: dict[str, str]


def collect_logits(
    files: Sequence[ImageFile],
    spec: PreprocessSpec,
    runners: Mapping[str, Runner],
    *,
    file_runners: Mapping[str, FileRunner] | None = None,
    progress: Progress = no_progress,
) -> LogitsTable:
    """Runs every readable image through every runner, from file bytes on; the runners are open already.

    `runners` get the pixels that `spec` makes of a file, `file_runners` the file itself. A runner that fails is left
    out from there on.

    Raises:
        DataError: not one image could be read.
    """
    if not files:
        raise DataError("there are no images to compare on.")
    samples: list[Sample] = []
    skipped: list[SkippedFile] = []
    collectors = [_Collector(name, _answer_to_pixels(runner)) for name, runner in runners.items()]
    collectors += [_Collector(name, _answer_to_files(runner)) for name, runner in (file_runners or {}).items()]
    with SampleStream(files, spec) as stream:
        for gathered, images in batches(stream, BATCH_IMAGES, skipped.append):
            samples.extend(gathered)
            for collector in collectors:
                collector.take(gathered, images)
            progress("parity", len(samples), len(files))
    if not samples:
        raise DataError(f"none of {len(files)} images could be read; the first: {skipped[0].path}: {skipped[0].reason}")
    if skipped:
        progress("parity", len(files), len(files))
    return LogitsTable(
        files=tuple(sample.file for sample in samples),
        hashes=tuple(sample.sha256 for sample in samples),
        labels=np.array([sample.file.label for sample in samples], dtype=np.int64),
        logits={each.name: np.concatenate(each.parts) for each in collectors if not each.failure},
        skipped=tuple(skipped),
        failures={each.name: each.failure for each in collectors if each.failure},
    )


class _Collector:
    """The answers of one runner, up to its first failure."""

    def __init__(self, name: str, answer: _Answer) -> None:
        self.name = name
        self.parts: list[_Logits] = []
        self.failure = ""
        self._answer = answer

    def take(self, samples: Sequence[Sample], images: _Images) -> None:
        if self.failure:
            return
        try:
            self.parts.append(_checked(self._answer(samples, images), len(samples), self.parts))
        except EdgetuneError as error:
            self.failure = error.message
        except OSError as error:  # a file that was read a moment ago
            self.failure = f"an image cannot be read any more: {error}"


def _checked(logits: _Logits, count: int, before: Sequence[_Logits]) -> _Logits:
    """Logits for each image, of as many classes as before."""
    classes = before[0].shape[1] if before else logits.shape[-1]
    if logits.shape != (count, classes):
        raise TensorError(f"the logits are {logits.shape}, expected ({count}, {classes if before else 'classes'}).")
    return logits


def _answer_to_pixels(runner: Runner) -> _Answer:
    def answer(_samples: Sequence[Sample], images: _Images) -> _Logits:
        return infer_images(runner, images, LOGITS_OUTPUT)

    return answer


def _answer_to_files(runner: FileRunner) -> _Answer:
    def answer(samples: Sequence[Sample], _images: _Images) -> _Logits:
        rows = [runner.classify(sample.file.path.read_bytes()) for sample in samples]
        if len({row.shape for row in rows}) > 1:
            raise TensorError(f"the logits of two images are {rows[0].shape} and {rows[-1].shape}.")
        return np.stack(rows)

    return answer


def spread_rows(count: int, limit: int) -> list[int]:
    """At most `limit` of the rows 0 to `count` - 1, evenly spaced."""
    wanted = min(count, limit)
    return [index * count // wanted for index in range(wanted)]

"""One pass over the images: features of the frozen backbone, from the cache where it has them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgetune.core.errors import DataError, ModelError
from edgetune.core.preprocess import PreprocessSpec
from edgetune.core.progress import Progress, no_progress
from edgetune.core.tensors import FEATURES_OUTPUT
from edgetune.data.image_folder import ImageFile, SkippedFile
from edgetune.data.samples import Sample, SampleStream
from edgetune.features.cache import FeatureCache
from edgetune.runners.base import Runner, infer_images

SHARD_IMAGES = 2048


@dataclass(frozen=True)
class FeatureTable:
    """Features float32 `(N, D)`, labels int64 `(N,)`, and the files and content hashes they belong to, in order."""

    features: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]
    files: tuple[ImageFile, ...]
    hashes: tuple[str, ...]
    skipped: tuple[SkippedFile, ...]
    from_cache: int


def extract_features(
    files: Sequence[ImageFile],
    spec: PreprocessSpec,
    cache: FeatureCache,
    open_runner: Callable[[], Runner],
    *,
    batch_size: int,
    progress: Progress = no_progress,
) -> FeatureTable:
    """Computes what the cache lacks, writes it to the cache, and returns the features of all readable files.

    `open_runner` is called only if something is missing; decoding goes on in threads meanwhile.

    Raises:
        DataError: not one file could be read.
        ModelError: the backbone gave NaN or infinity.
    """
    if not files:
        raise DataError("there are no images to compute features of.")
    kept: list[Sample] = []
    skipped: list[SkippedFile] = []
    found = frozenset(cache.known)
    with contextlib.ExitStack() as stack:
        stream = stack.enter_context(SampleStream(files, spec, found))
        writer = _Writer(cache, stack, open_runner, batch_size)
        for done, sample in enumerate(stream, start=1):
            if isinstance(sample, SkippedFile):
                skipped.append(sample)
            else:
                writer.add(sample)
                kept.append(Sample(sample.file, sample.sha256, None))
            progress("features", done, len(files))
        writer.flush()
    if not kept:
        raise DataError(f"none of {len(files)} images could be read; the first: {skipped[0].path}: {skipped[0].reason}")
    return _collect(kept, skipped, cache, sum(sample.sha256 in found for sample in kept))


class _Writer:
    """Gathers decoded samples into batches, and their features into shards."""

    def __init__(
        self, cache: FeatureCache, stack: contextlib.ExitStack, open_runner: Callable[[], Runner], batch_size: int
    ) -> None:
        self._cache = cache
        self._stack = stack
        self._open_runner = open_runner
        self._runner: Runner | None = None
        self._batch_size = batch_size
        self._batch: dict[str, npt.NDArray[np.uint8]] = {}
        self._shard: dict[str, npt.NDArray[np.float32]] = {}

    def add(self, sample: Sample) -> None:
        if sample.image is None or sample.sha256 in self._shard or sample.sha256 in self._cache.known:
            return
        self._batch[sample.sha256] = sample.image
        if len(self._batch) == self._batch_size:
            self._run_batch()

    def flush(self) -> None:
        self._run_batch()
        self._write_shard()

    def _run_batch(self) -> None:
        if not self._batch:
            return
        if self._runner is None:
            self._runner = self._open_runner()
            self._stack.enter_context(self._runner)
        features = infer_images(self._runner, np.stack(list(self._batch.values())), FEATURES_OUTPUT)
        if not np.isfinite(features).all():
            raise ModelError(
                f"the backbone gave NaN or infinity as features on {self._runner.name}.",
                hint="the weights may be damaged; try others with --weights",
            )
        self._shard.update(zip(self._batch, features, strict=True))
        self._batch.clear()
        if len(self._shard) >= SHARD_IMAGES:
            self._write_shard()

    def _write_shard(self) -> None:
        if self._shard:
            self._cache.append(list(self._shard), np.stack(list(self._shard.values())))
        self._shard.clear()


def _collect(kept: list[Sample], skipped: list[SkippedFile], cache: FeatureCache, from_cache: int) -> FeatureTable:
    features = cache.gather([sample.sha256 for sample in kept])
    return FeatureTable(
        features=features,
        labels=np.array([sample.file.label for sample in kept], dtype=np.int64),
        files=tuple(sample.file for sample in kept),
        hashes=tuple(sample.sha256 for sample in kept),
        skipped=tuple(skipped),
        from_cache=from_cache,
    )

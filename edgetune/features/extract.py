"""One pass over the images: features of the frozen backbone, from the caches where they have them."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor

import numpy as np
import numpy.typing as npt

from edgetune.core.errors import DataError, ModelError
from edgetune.core.machine import usable_cpus
from edgetune.core.progress import Progress, no_progress
from edgetune.core.tensors import FEATURES_OUTPUT
from edgetune.data.image_folder import ImageFile, SkippedFile
from edgetune.features.blocks import Answer, Block, BlockPipeline, FeaturePlan, Pixels
from edgetune.features.cache import FeatureCache
from edgetune.features.table import FeatureTable
from edgetune.runners.base import FeatureStream, Runner, infer_images

# A killed pass loses at most this much work; a file a batch would be thousands of files.
SHARD_IMAGES = 2048
SHARD_S = 10.0

OpenRunner = Callable[[], Runner | FeatureStream]


def extract_features(
    files: Sequence[ImageFile], plan: FeaturePlan, open_runner: OpenRunner, *, progress: Progress = no_progress
) -> FeatureTable:
    """Computes what the caches lack, writes it to them, and returns the features of all readable files.

    `open_runner` is called only if something is missing, and images are decoded meanwhile. A `Runner` is called from
    as many threads at once as there are CPUs, so one thread inside it is enough; a `FeatureStream` from one. The
    same files give the same bits, whether the pass was interrupted before or not.

    Raises:
        DataError: not one file could be read, or the cache cannot be written.
        ModelError: the backbone gave NaN or infinity.
    """
    if not files:
        raise DataError("there are no images to compute features of.")
    rows_before = [cache.rows for cache in plan.caches]
    kept: list[tuple[ImageFile, str]] = []
    skipped: list[SkippedFile] = []
    with contextlib.ExitStack() as opened, _decoders() as pool:
        backbone = _Backbone(open_runner, opened, pool)
        writer = _ShardWriter(plan.caches, backbone)
        for block in BlockPipeline(plan, pool, backbone.start).run(files):
            writer.add(block)
            kept += [item for item in block.files if not isinstance(item, SkippedFile)]
            skipped += [item for item in block.files if isinstance(item, SkippedFile)]
            if len(kept) + len(skipped) < len(files):
                progress("features", len(kept) + len(skipped), len(files))
        writer.flush()
    progress("features", len(files), len(files))
    if not kept:
        raise DataError(f"none of {len(files)} images could be read; the first: {skipped[0].path}: {skipped[0].reason}")
    return _collect(kept, skipped, plan, rows_before)


@contextlib.contextmanager
def _decoders() -> Iterator[Executor]:
    pool = ThreadPoolExecutor(usable_cpus(), thread_name_prefix="features")
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


class _Backbone:
    """Opens the backbone at its first batch. A `Runner` shares the decoders' threads: the cores are never contended
    for, and a batch on one core costs less than half a batch on two, whose parts wait for each other.
    """

    def __init__(self, open_runner: OpenRunner, opened: contextlib.ExitStack, pool: Executor) -> None:
        self._open_runner = open_runner
        self._opened = opened
        self._pool = pool
        self._runner: Runner | FeatureStream | None = None

    @property
    def name(self) -> str:
        return "" if self._runner is None else self._runner.name

    def start(self, images: Sequence[Pixels]) -> Answer:
        if self._runner is None:
            self._runner = self._open_runner()
            self._opened.enter_context(self._runner)
        if isinstance(self._runner, FeatureStream):
            return self._runner.start(images)
        return self._pool.submit(_infer, self._runner, images).result


def _infer(runner: Runner, images: Sequence[Pixels]) -> npt.NDArray[np.float32]:
    return infer_images(runner, np.stack(images), FEATURES_OUTPUT)


class _ShardWriter:
    """Gathers the blocks' features into shards. Blocks come in order, and the first that has an image counts."""

    def __init__(self, caches: Sequence[FeatureCache], backbone: _Backbone) -> None:
        self._caches = caches
        self._backbone = backbone
        self._blocks: list[Block] = []
        self._images = 0
        self._written = time.monotonic()

    def add(self, block: Block) -> None:
        if block.running:
            self._blocks.append(block)
            self._images += len(block.files)
        if self._images >= SHARD_IMAGES or time.monotonic() - self._written >= SHARD_S:
            self.flush()

    def flush(self) -> None:
        shards: list[dict[str, npt.NDArray[np.float32]]] = [{} for _ in self._caches]
        for block in self._blocks:
            for version, hashes, answer in block.running:
                for sha256, features in zip(hashes, self._checked(answer()), strict=True):
                    if sha256 not in self._caches[version]:
                        shards[version].setdefault(sha256, features)
        for cache, shard in zip(self._caches, shards, strict=True):
            if shard:
                cache.append(list(shard), np.stack(list(shard.values())))
        self._blocks.clear()
        self._images = 0
        self._written = time.monotonic()

    def _checked(self, features: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        if not np.isfinite(features).all():
            raise ModelError(
                f"the backbone gave NaN or infinity as features on {self._backbone.name}.",
                hint="the weights may be damaged, or overflow this GPU; try --device cpu or other --weights",
            )
        return features


def _collect(
    kept: Sequence[tuple[ImageFile, str]], skipped: Sequence[SkippedFile], plan: FeaturePlan, rows_before: list[int]
) -> FeatureTable:
    hashes = tuple(sha256 for _, sha256 in kept)
    view_rows = np.flatnonzero([len(plan.versions(file)) > 1 for file, _ in kept]).astype(np.int64)
    viewed = [hashes[row] for row in view_rows]
    cached = plan.caches[0].rows_of(hashes) < rows_before[0]
    for cache, rows in zip(plan.caches[1:], rows_before[1:], strict=True):
        cached[view_rows] &= cache.rows_of(viewed) < rows
    return FeatureTable(
        features=plan.caches[0].gather(hashes),
        labels=np.array([file.label for file, _ in kept], dtype=np.int64),
        files=tuple(file for file, _ in kept),
        hashes=hashes,
        skipped=tuple(skipped),
        cached=cached,
        views=tuple(cache.gather(viewed) for cache in plan.caches[1:]),
        view_rows=view_rows,
    )


__all__ = ["FeaturePlan", "FeatureTable", "extract_features"]

"""Blocks of images on their way through decoding and the backbone, in order, in bounded memory.

The last bits of features may depend on which images share a batch. So what a batch holds never depends on what the
cache holds: a block is the same consecutive files on every pass over a list, and it runs whole or not at all.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from edgetune.core.files import sha256_of_bytes
from edgetune.core.preprocess import PreprocessSpec, preprocess_image
from edgetune.data.augment import preprocess_versions, view_digest
from edgetune.data.image_folder import ImageFile, SkippedFile
from edgetune.data.samples import PREFETCH_IMAGES, from_bytes
from edgetune.features.cache import FeatureCache

_PREFETCH_BYTES = 128 << 20
# Blocks that have started and are not asked for their features yet: a device has work while a shard is written.
_IN_FLIGHT = 4

Pixels = npt.NDArray[np.uint8]
Answer = Callable[[], npt.NDArray[np.float32]]
_Item = TypeVar("_Item")


@dataclass(frozen=True)
class FeaturePlan:
    """What is computed, and where it is kept.

    `caches[0]` is for the plain images and `caches[k]` for view k, which only files in `viewed` have; each has a key of
    its own. `batch_size` is the number of images in a block; `seed` decides the views.
    """

    spec: PreprocessSpec
    caches: Sequence[FeatureCache]
    batch_size: int
    seed: int = 0
    viewed: frozenset[Path] = frozenset()

    def versions(self, file: ImageFile) -> range:
        """The versions that are wanted of a file: 0, and its views from 1."""
        return range(len(self.caches) if file.path in self.viewed else 1)

    def lacking(self, file: ImageFile, sha256: str) -> set[int]:
        return {version for version in self.versions(file) if sha256 not in self.caches[version]}


@dataclass(frozen=True)
class Loaded:
    """A readable image with the pixels uint8 `(H, W, 3)` of those versions that were asked for."""

    file: ImageFile
    sha256: str
    pixels: dict[int, Pixels]


@dataclass(frozen=True)
class Block:
    """The files of a block in order, and for each version that runs its images' hashes with what gives features."""

    files: tuple[tuple[ImageFile, str] | SkippedFile, ...]
    running: tuple[tuple[int, tuple[str, ...], Answer], ...]


class BlockPipeline:
    """Decodes in `pool` and hands every batch to `start`, on the thread that iterates."""

    def __init__(self, plan: FeaturePlan, pool: Executor, start: Callable[[Sequence[Pixels]], Answer]) -> None:
        self._plan = plan
        self._pool = pool
        self._start = start

    def run(self, files: Sequence[ImageFile]) -> Iterator[Block]:
        """Yields every block of `files`, in order; each stage works ahead of the next."""
        size = self._plan.batch_size
        pieces = (files[first : first + size] for first in range(0, len(files), size))
        scanned = ([self._pool.submit(self._scan, file) for file in piece] for piece in pieces)
        completed = (self._complete(scans) for scans in _ahead(scanned, self._prefetch_blocks()))
        yield from _ahead((self._run(loads) for loads in _ahead(completed, 1)), _IN_FLIGHT)

    def _prefetch_blocks(self) -> int:
        image_bytes = 3 * self._plan.spec.crop_size**2 * len(self._plan.caches)
        return max(2, min(PREFETCH_IMAGES, _PREFETCH_BYTES // image_bytes) // self._plan.batch_size)

    def _scan(self, file: ImageFile) -> Loaded | SkippedFile:
        """Reads and hashes a file, and decodes it where the caches lack something of it."""

        def make(data: bytes) -> Loaded:
            sha256 = sha256_of_bytes(data)
            return Loaded(file, sha256, self._decode(file, sha256, data, self._plan.lacking(file, sha256)))

        return from_bytes(file, make)

    def _complete(
        self, scans: Sequence[Future[Loaded | SkippedFile]]
    ) -> list[Loaded | SkippedFile | Future[Loaded | SkippedFile]]:
        """A block that lacks a version of one image needs it of all its images: those in the cache are decoded too."""
        found = [scan.result() for scan in scans]
        needed = {version for item in found if isinstance(item, Loaded) for version in item.pixels}
        return [self._with_versions(item, needed) for item in found]

    def _with_versions(
        self, item: Loaded | SkippedFile, needed: Collection[int]
    ) -> Loaded | SkippedFile | Future[Loaded | SkippedFile]:
        if isinstance(item, SkippedFile):
            return item
        wanted = {version for version in self._plan.versions(item.file) if version in needed}
        return item if wanted <= item.pixels.keys() else self._pool.submit(self._load, item, wanted)

    def _load(self, item: Loaded, wanted: Collection[int]) -> Loaded | SkippedFile:
        def make(data: bytes) -> Loaded | SkippedFile:
            if sha256_of_bytes(data) != item.sha256:
                return SkippedFile(item.file.path, "changed while it was being read")
            return Loaded(item.file, item.sha256, self._decode(item.file, item.sha256, data, wanted))

        return from_bytes(item.file, make)

    def _decode(self, file: ImageFile, sha256: str, data: bytes, versions: Collection[int]) -> dict[int, Pixels]:
        spec, name, ordered = self._plan.spec, file.path.name, sorted(versions)
        if not ordered:
            return {}
        if ordered == [0]:
            return {0: preprocess_image(data, spec, name=name)}
        digests = [view_digest(sha256, self._plan.seed, version) if version else None for version in ordered]
        return dict(zip(ordered, preprocess_versions(data, spec, digests, name=name), strict=True))

    def _run(self, loads: Sequence[Loaded | SkippedFile | Future[Loaded | SkippedFile]]) -> Block:
        items = [load.result() if isinstance(load, Future) else load for load in loads]
        images = [item for item in items if isinstance(item, Loaded)]
        running = []
        for version in sorted({version for image in images for version in image.pixels}):
            batch = [image for image in images if version in image.pixels]
            answer = self._start([image.pixels[version] for image in batch])
            running.append((version, tuple(image.sha256 for image in batch), answer))
        files = tuple((item.file, item.sha256) if isinstance(item, Loaded) else item for item in items)
        return Block(files, tuple(running))


def _ahead(items: Iterator[_Item], depth: int) -> Iterator[_Item]:
    """The same items, each taken from `items` when `depth` more have been."""
    waiting: deque[_Item] = deque()
    for item in items:
        waiting.append(item)
        if len(waiting) > depth:
            yield waiting.popleft()
    yield from waiting

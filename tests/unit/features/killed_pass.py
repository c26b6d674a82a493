"""A pass over images, slow enough to be killed: `python -m tests.unit.features.killed_pass IMAGES CACHE RUNNER [MS]`.

Prints the sha256 of the features of every version. RUNNER is "composition", whose features depend on which images
share a batch, or the path of an ONNX model.
"""

from __future__ import annotations

import hashlib
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgetune.core.preprocess import PreprocessSpec
from edgetune.core.tensors import Array, Feed
from edgetune.data.image_folder import ImageFile
from edgetune.features import extract
from edgetune.features.cache import FeatureCache
from edgetune.features.extract import FeaturePlan, FeatureTable, extract_features
from edgetune.runners.base import FeatureStream, Runner
from edgetune.runners.ort_runner import OrtRunner

SPEC = PreprocessSpec(16, 16, "bilinear", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
BATCH = 4


class Composition:
    """Mean colours, and behind them the number of images in the batch and the mean over all of them."""

    name = "composition"

    def __init__(self, delay_s: float) -> None:
        self._delay_s = delay_s

    def start(self, images: Sequence[npt.NDArray[np.uint8]]) -> Callable[[], npt.NDArray[np.float32]]:
        time.sleep(self._delay_s)
        means = np.stack(images).mean(axis=(1, 2))
        shared = np.broadcast_to([len(images), means.mean()], (len(images), 2))
        features = np.concatenate([means, shared], axis=1).astype(np.float32)
        return lambda: features

    def __enter__(self) -> Composition:
        return self

    def __exit__(self, *_: object) -> None:
        pass


class SlowOrtRunner(OrtRunner):
    delay_s = 0.0

    def infer(self, feed: Feed) -> dict[str, Array]:
        time.sleep(self.delay_s)
        return super().infer(feed)


def files_in(folder: Path) -> list[ImageFile]:
    return [ImageFile(path, index % 2) for index, path in enumerate(sorted(folder.iterdir()))]


def passed(folder: Path, cache: Path, runner: str, delay_s: float = 0.0) -> FeatureTable:
    """Two of three files have two views."""
    files = files_in(folder)
    viewed = frozenset(file.path for file in files[: 2 * len(files) // 3])
    caches = [FeatureCache(cache / str(version)) for version in range(3)]

    def open_runner() -> Runner | FeatureStream:
        SlowOrtRunner.delay_s = delay_s
        return Composition(delay_s) if runner == "composition" else SlowOrtRunner(Path(runner), threads=1)

    return extract_features(files, FeaturePlan(SPEC, caches, BATCH, seed=1, viewed=viewed), open_runner)


def digest(table: FeatureTable) -> str:
    return hashlib.sha256(b"".join(array.tobytes() for array in (table.features, *table.views))).hexdigest()


if __name__ == "__main__":
    extract.SHARD_IMAGES = 2 * BATCH
    images, cache, runner, delay_ms = (*sys.argv[1:], "0")[:4]
    print(digest(passed(Path(images), Path(cache), runner, float(delay_ms) / 1000)))  # noqa: T201

"""Features of a run's training images, as one backbone graph computes them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgetune.core.errors import DataError
from edgetune.core.progress import Progress
from edgetune.core.run import Run, SplitFile
from edgetune.data.image_folder import ImageFile
from edgetune.features.blocks import FeaturePlan
from edgetune.features.cache import FeatureCache
from edgetune.features.extract import OpenRunner, extract_features

# Each image is a block by itself: what was computed of some of the files need not be computed again with the others.
_BATCH = 1


@dataclass(frozen=True)
class TrainingFeatures:
    """Features float32 `(N, D)`, labels int64 `(N,)` and content hashes, of the images that are what they were."""

    features: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]
    hashes: tuple[str, ...]


class TrainingImages:
    """A run's training images below `root`."""

    def __init__(self, run: Run, root: Path) -> None:
        self._run = run
        self._root = root

    def features(
        self, cache: FeatureCache, open_runner: OpenRunner, files: Sequence[SplitFile], progress: Progress
    ) -> TrainingFeatures:
        """Features of `files`; images whose content is another than at the fit are left out.

        Raises:
            DataError: a class has lost all its images.
        """
        listed = [ImageFile(self._root / file.path, file.label) for file in files]
        plan = FeaturePlan(self._run.preprocess, [cache], _BATCH)
        table = extract_features(listed, plan, open_runner, progress=progress)
        expected = {self._root / file.path: file.sha256 for file in files}
        pairs = zip(table.files, table.hashes, strict=True)
        same = np.array([expected[file.path] == sha256 for file, sha256 in pairs])
        labels = table.labels[same]
        missing = set(range(len(self._run.classes))) - set(labels.tolist())
        if missing:
            names = ", ".join(self._run.classes[label] for label in sorted(missing))
            raise DataError(f"no unchanged training image is left of {names}.", hint="fit again, or use --keep-head")
        hashes = tuple(sha256 for sha256, unchanged in zip(table.hashes, same, strict=True) if unchanged)
        return TrainingFeatures(table.features[same], labels, hashes)

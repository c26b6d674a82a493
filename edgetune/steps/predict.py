"""predict: labels with probabilities for image files, offline, with the bundle's own preprocessing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgetune.core.bundle import load_bundle
from edgetune.core.errors import ArtifactError, ImageError
from edgetune.core.labels import Prediction, is_rejected, top_predictions
from edgetune.core.preprocess import preprocess_image
from edgetune.core.tensors import LOGITS_OUTPUT
from edgetune.runners.base import infer_images
from edgetune.runners.choice import AUTO, RunnerOptions
from edgetune.runners.from_bundle import open_chosen

_DEFAULT_RUNNER = RunnerOptions()


@dataclass(frozen=True)
class ImagePrediction:
    """`error` says why an image has no predictions. `rejected` tells that it is none of the classes, by the bundle's
    threshold.
    """

    image: str
    predictions: tuple[Prediction, ...]
    logits: tuple[float, ...]
    error: str | None
    rejected: bool = False


@dataclass(frozen=True)
class PredictResult:
    artifact: str
    runner: str
    reason: str
    images: tuple[ImagePrediction, ...]


def predict(
    bundle_path: Path, images: Sequence[Path], *, artifact: str = AUTO, top: int = 3, allow_failed: bool = False,
    options: RunnerOptions = _DEFAULT_RUNNER,
) -> PredictResult:  # fmt: skip
    """Predicts each file on its own; one that cannot be read does not stop the others."""
    bundle = load_bundle(bundle_path)
    results = []
    with open_chosen(bundle, artifact, options, allow_failed=allow_failed) as (choice, runner):
        for path in images:
            try:
                pixels = preprocess_image(_read(path), bundle.manifest.preprocess, name=str(path))
            except ImageError as error:
                results.append(ImagePrediction(str(path), (), (), error.message))
                continue
            logits = infer_images(runner, pixels[np.newaxis], LOGITS_OUTPUT)[0]
            if not np.isfinite(logits).all():
                raise ArtifactError(f"{choice.artifact.name} gives NaN or infinity for {path}.")
            best = top_predictions(logits, bundle.manifest.classes, top)
            rejected = is_rejected(best[0], bundle.manifest.reject_below)
            results.append(ImagePrediction(str(path), best, tuple(logits.tolist()), None, rejected))
        name = runner.name
    return PredictResult(choice.artifact.name, name, choice.reason, tuple(results))


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ImageError(f"{path} cannot be read: {error.strerror or error}.") from error

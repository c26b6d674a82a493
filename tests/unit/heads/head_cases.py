"""Small sets to fit heads on."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from edgetune.heads.examples import Examples, row_weights
from edgetune.heads.folds import assign_folds

Features = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]
Wide = npt.NDArray[np.float64]


def clusters(classes: int, images: int = 60, spread: float = 3.0) -> tuple[Features, Labels]:
    """Overlapping clusters in five dimensions, far from the origin and not of unit size."""
    random = np.random.default_rng(classes)
    labels = np.arange(images) % classes
    features = random.normal(size=(images, 5)) * spread + 4.0 + 3.0 * np.eye(classes, 5)[labels]
    return features.astype(np.float32), labels.astype(np.int64)


def standardised(features: Features) -> Wide:
    """Mean 0 in each dimension, variance 1 over all of them."""
    centred = features.astype(np.float64) - features.astype(np.float64).mean(axis=0)
    scaled: Wide = centred / np.sqrt((centred**2).mean())
    return scaled


def centred_rows(logits: npt.NDArray[np.generic]) -> Wide:
    """Logits mean the same when a constant is added to a row."""
    wide = logits.astype(np.float64)
    result: Wide = wide - wide.mean(axis=1, keepdims=True)
    return result


def examples(
    features: Features, labels: Labels, classes: int, *, folds: int = 5, seed: int = 0, class_weights: str = "none"
) -> Examples:
    """Every row an image, and a group, of its own."""
    count = len(labels)
    fold = assign_folds(labels, np.arange(count), folds, seed=seed)
    weights = row_weights(labels, classes, class_weights, count)
    return Examples(features, labels, classes, weights, fold, folds, np.ones(count, np.bool_))

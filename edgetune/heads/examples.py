"""What a head is fitted on, with everything decided: how much each row counts, and in which fold it is held out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgetune.core.head_recipe import BALANCED

Labels = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Examples:
    """`features` float32 `(N, D)`, `labels` int64 `(N,)`. A row counts `weights` float32 `(N,)` in the loss; over all
    rows the weights' mean is 1, or the images' share where rows are views. `fold` int64 `(N,)` is the one of `folds`
    parts that a row is held out with; rows are judged there where `is_judged` `(N,)` holds.
    """

    features: npt.NDArray[np.float32]
    labels: Labels
    classes: int
    weights: npt.NDArray[np.float32]
    fold: Labels
    folds: int
    is_judged: npt.NDArray[np.bool_]


def row_weights(labels: Labels, classes: int, class_weights: str, images: int) -> npt.NDArray[np.float32]:
    """float32 `(N,)` with the sum `images`: a penalty means the same whether an image is one row or, with its views,
    several. "balanced" gives each class the same sum: N / (classes * rows of the class) (King and Zeng 2001).
    """
    weights = np.full(len(labels), images / len(labels))
    if class_weights == BALANCED:
        counts = np.bincount(labels, minlength=classes)
        weights *= len(labels) / (classes * counts[labels])
    return weights.astype(np.float32)

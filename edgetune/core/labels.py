"""Logits to labels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgetune.core.tensors import softmax


@dataclass(frozen=True)
class Prediction:
    label: str
    index: int
    probability: float


def is_rejected(best: Prediction, reject_below: float | None) -> bool:
    """Whether an image is none of the classes, by the most probable of them; never without a threshold."""
    return reject_below is not None and best.probability < reject_below


def top_predictions(logits: npt.NDArray[np.float32], classes: tuple[str, ...], count: int) -> tuple[Prediction, ...]:
    """The `count` most probable classes of one image's logits `(classes,)`, best first."""
    probabilities = softmax(logits)
    order = np.argsort(-probabilities, kind="stable")[:count]
    return tuple(Prediction(classes[index], int(index), float(probabilities[index])) for index in order)

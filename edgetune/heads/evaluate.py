"""How good a head is on held-out images."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgetune.core.stats import wilson_interval
from edgetune.core.tensors import softmax


@dataclass(frozen=True)
class ClassMetrics:
    """`precision` and `recall` are None where nothing was predicted or nothing was there."""

    images: int
    precision: float | None
    recall: float | None
    f1: float | None


@dataclass(frozen=True)
class Metrics:
    """`confusion` has `(true class, called class, images)` by index, for pairs that occurred: its size is bounded by
    the images, not by the square of the classes. Log loss in nats per image.
    """

    task: str
    images: int
    top1_accuracy: float
    top1_accuracy_ci95: tuple[float, float]
    log_loss: float
    per_class: dict[str, ClassMetrics]
    confusion: tuple[tuple[int, int, int], ...]


def evaluate(logits: npt.NDArray[np.float32], labels: npt.NDArray[np.int64], classes: tuple[str, ...]) -> Metrics:
    """Compares logits `(N, classes)` with labels `(N,)`."""
    predicted = logits.argmax(axis=1)
    confusion = np.zeros((len(classes), len(classes)), dtype=np.int64)
    np.add.at(confusion, (labels, predicted), 1)
    hits = int(np.trace(confusion))
    probabilities = softmax(logits)[np.arange(len(labels)), labels]
    return Metrics(
        task="classification",
        images=len(labels),
        top1_accuracy=hits / len(labels),
        top1_accuracy_ci95=wilson_interval(hits, len(labels)),
        log_loss=float(-np.log(np.maximum(probabilities, 1e-30)).mean()),
        per_class={name: _class_metrics(confusion, index) for index, name in enumerate(classes)},
        confusion=tuple((int(i), int(j), int(confusion[i, j])) for i, j in np.argwhere(confusion)),
    )


def _class_metrics(confusion: npt.NDArray[np.int64], index: int) -> ClassMetrics:
    hits, there, called = int(confusion[index, index]), int(confusion[index].sum()), int(confusion[:, index].sum())
    precision = hits / called if called else None
    recall = hits / there if there else None
    f1 = 2 * hits / (there + called) if there + called else None
    return ClassMetrics(there, precision, recall, f1)

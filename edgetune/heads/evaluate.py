"""How good a head is on held-out images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict

import numpy as np
import numpy.typing as npt

from edgetune.core.errors import DataError, EdgetuneError
from edgetune.core.stats import wilson_interval
from edgetune.core.tensors import softmax
from edgetune.heads.calibration import Answers, ReliabilityBin, answers, calibration_error, reliability_bins

_MOST_LOSS = 69.0775527898  # nats, of a probability of 1e-30: a certain mistake costs no more

Logits = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]


@dataclass(frozen=True)
class ClassMetrics:
    """`precision` and `recall` are None where nothing was predicted or nothing was there."""

    images: int
    precision: float | None
    recall: float | None
    f1: float | None


class _Others(TypedDict, total=False):
    duplicates: int
    accuracy_without_duplicates: float | None


@dataclass(frozen=True)
class Rejection:
    """What a threshold does: of the images, so many are `rejected`, `rejected_mistakes` of them rightly so; of the kept
    ones that share is named right, None where none is kept.
    """

    reject_below: float
    rejected: int
    rejected_mistakes: int
    kept_accuracy: float | None


@dataclass(frozen=True)
class Metrics:
    """`confusion` has `(true class, called class, images)` by index, for pairs that occurred: its size is bounded by
    the images, not by the square of the classes. Log loss in nats per image. `macro_f1` is the mean over classes that
    occur or were called, `balanced_accuracy` the mean recall of classes that occur. `reliability` has the bins that
    the calibration error is computed of.

    `accuracy_without_duplicates` leaves out `duplicates` images that are in the training set too; None without any.
    `rejection` is None where nothing is rejected.
    """

    task: str
    images: int
    top1_accuracy: float
    top1_accuracy_ci95: tuple[float, float]
    log_loss: float
    per_class: dict[str, ClassMetrics]
    confusion: tuple[tuple[int, int, int], ...]
    macro_f1: float
    balanced_accuracy: float
    expected_calibration_error: float
    reliability: tuple[ReliabilityBin, ...]
    duplicates: int = 0
    accuracy_without_duplicates: float | None = None
    rejection: Rejection | None = None


@dataclass(frozen=True)
class Mistake:
    """An image, by its row among those judged, that was given another class than its own: indices and probabilities of
    the called class and of the next most probable one.
    """

    row: int
    label: int
    called: int
    probability: float
    second: int
    second_probability: float


def evaluate(
    logits: Logits,
    labels: Labels,
    classes: tuple[str, ...],
    *,
    is_duplicate: npt.NDArray[np.bool_] | None = None,
    reject_below: float | None = None,
) -> Metrics:
    """Compares logits `(N, classes)` with labels `(N,)`. `is_duplicate` `(N,)` marks images whose exact copy is in the
    training set; an image whose highest probability is below `reject_below` would be rejected, and is judged here all
    the same.

    Raises:
        DataError: there is no image.
        EdgetuneError: a logit is NaN or infinite.
    """
    _check(logits, labels)
    called, answered = logits.argmax(axis=1), answers(logits, labels)
    counts = _Counts.of(labels, called, len(classes))
    per_class = [counts.metrics(index) for index in range(len(classes))]
    hits = int(answered.is_right.sum())
    return Metrics(
        task="classification",
        images=len(labels),
        top1_accuracy=hits / len(labels),
        top1_accuracy_ci95=wilson_interval(hits, len(labels)),
        log_loss=float(np.minimum(answered.losses, _MOST_LOSS).mean()),
        per_class=dict(zip(classes, per_class, strict=True)),
        confusion=_confusion(labels, called, len(classes)),
        macro_f1=_mean([each.f1 for each in per_class]),
        balanced_accuracy=_mean([each.recall for each in per_class]),
        expected_calibration_error=calibration_error(answered, np.ones(len(labels))),
        reliability=reliability_bins(answered),
        rejection=None if reject_below is None else _rejection(answered, reject_below),
        **_without_duplicates(answered.is_right, is_duplicate),
    )


def most_confident_mistakes(logits: Logits, labels: Labels, limit: int = 24) -> tuple[Mistake, ...]:
    """The wrong answers of the highest probability, those first; among equals the earlier image.

    Raises:
        EdgetuneError: see `evaluate`.
    """
    _check(logits, labels)
    answered = answers(logits, labels)
    wrong = np.flatnonzero(~answered.is_right)
    rows = wrong[np.argsort(-answered.confidence[wrong], kind="stable")[:limit]]
    return tuple(_mistake(int(row), logits[row], int(labels[row])) for row in rows)


def _mistake(row: int, logits: Logits, label: int) -> Mistake:
    probabilities = softmax(logits)
    called, second = np.argsort(-logits, kind="stable")[:2]
    return Mistake(
        row, label, int(called), float(probabilities[called]), int(second), float(probabilities[second])
    )  # fmt: skip


def _check(logits: Logits, labels: Labels) -> None:
    if not len(labels):
        raise DataError("there is no image to judge the head by.", hint="add images to the validation split")
    bad = np.flatnonzero(~np.isfinite(logits).all(axis=1))
    if len(bad):
        raise EdgetuneError(
            f"the head gives NaN or infinity for {len(bad)} of {len(labels)} images, first for number {bad[0]}, "
            "expected finite logits.",
            hint="fit with another --head or a lower learning rate; look at the images and the weights file",
        )


@dataclass(frozen=True)
class _Counts:
    """By class: images called so rightly, images there, images called so."""

    hits: npt.NDArray[np.int64]
    there: npt.NDArray[np.int64]
    called: npt.NDArray[np.int64]

    @classmethod
    def of(cls, labels: Labels, called: npt.NDArray[np.int64], classes: int) -> _Counts:
        hit = labels[called == labels]
        hits, there, named = (np.bincount(each, minlength=classes) for each in (hit, labels, called))
        return cls(hits, there, named)

    def metrics(self, index: int) -> ClassMetrics:
        hits, there, called = int(self.hits[index]), int(self.there[index]), int(self.called[index])
        precision = hits / called if called else None
        recall = hits / there if there else None
        f1 = 2 * hits / (there + called) if there + called else None
        return ClassMetrics(there, precision, recall, f1)


def _confusion(
    labels: Labels, called: npt.NDArray[np.int64], classes: int
) -> tuple[tuple[int, int, int], ...]:  # fmt: skip
    pairs, images = np.unique(labels * classes + called, return_counts=True)
    return tuple(
        (int(pair) // classes, int(pair) % classes, int(count)) for pair, count in zip(pairs, images, strict=True)
    )


def _without_duplicates(is_hit: npt.NDArray[np.bool_], is_duplicate: npt.NDArray[np.bool_] | None) -> _Others:
    """Nothing is left to judge by where every image is a duplicate."""
    if is_duplicate is None or not is_duplicate.any():
        return {}
    rest = is_hit[~is_duplicate]
    return {
        "duplicates": int(is_duplicate.sum()),
        "accuracy_without_duplicates": float(rest.mean()) if len(rest) else None,
    }


def _rejection(answered: Answers, reject_below: float) -> Rejection:
    is_kept = answered.confidence >= reject_below
    kept = float(answered.is_right[is_kept].mean()) if is_kept.any() else None
    return Rejection(reject_below, int((~is_kept).sum()), int((~is_kept & ~answered.is_right).sum()), kept)


def _mean(values: Sequence[float | None]) -> float:
    known = [value for value in values if value is not None]
    return sum(known) / len(known)

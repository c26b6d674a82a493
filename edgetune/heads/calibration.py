"""Whether probabilities can be believed: temperature scaling, calibration error, and a threshold for "none of these".

All of it is judged on out-of-fold logits: those of training images by heads that were not fitted on them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgetune.core.tensors import softmax

BINS = 15

_COLDEST, _HOTTEST = 0.05, 20.0
_BLOCK_CELLS = 1 << 20
_STEPS = 60

Floats = npt.NDArray[np.float64]
Logits = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]


@dataclass(frozen=True)
class ReliabilityBin:
    """Answers whose highest probability is above `low` and at most `high`; `confidence` is their mean probability and
    `accuracy` the share of right ones, both None in an empty bin.
    """

    low: float
    high: float
    images: int
    confidence: float | None
    accuracy: float | None


@dataclass(frozen=True)
class Calibration:
    """Before and after logits are divided by `temperature`: log loss in nats per image, expected calibration error
    (ECE) in 0..1, and the bins it is computed of. `images` were judged, all out of fold.
    """

    temperature: float
    images: int
    log_loss_before: float
    log_loss_after: float
    ece_before: float
    ece_after: float
    bins_before: tuple[ReliabilityBin, ...]
    bins_after: tuple[ReliabilityBin, ...]


@dataclass(frozen=True)
class Reject:
    """Answers whose highest probability is below `below` are none of the classes. `share` was asked for; the others
    are shares of out-of-fold training images, None where there is no right or no wrong answer.
    """

    share: float
    below: float
    rejected: float
    rejected_of_right: float | None
    rejected_of_wrong: float | None


@dataclass(frozen=True)
class Answers:
    """Of each image `(N,)` the highest probability, whether it is the label's, and the log loss in nats."""

    confidence: Floats
    is_right: npt.NDArray[np.bool_]
    losses: Floats


def answers(logits: Logits, labels: Labels, temperature: float = 1.0) -> Answers:
    """What heads answer whose logits `(N, classes)` are divided by `temperature`."""
    confidence, is_right, losses = np.empty(len(labels)), np.empty(len(labels), np.bool_), np.empty(len(labels))
    for rows in _blocks(logits):
        scaled = logits[rows].astype(np.float64) / temperature
        scaled -= scaled.max(axis=1, keepdims=True)
        log_sums = np.log(np.exp(scaled).sum(axis=1))
        confidence[rows] = np.exp(-log_sums)
        is_right[rows] = scaled.argmax(axis=1) == labels[rows]
        losses[rows] = log_sums - scaled[np.arange(len(scaled)), labels[rows]]
    return Answers(confidence, is_right, losses)


def fit_calibration(logits: Logits, labels: Labels, weights: Floats) -> Calibration:
    """Fits the temperature on out-of-fold logits `(N, classes)`. Log losses and ECE are means weighted by `weights`
    `(N,)`, as the fit's own loss is; the bins count images.
    """
    temperature = best_temperature(logits, labels, weights)
    before, after = answers(logits, labels), answers(logits, labels, temperature)
    return Calibration(
        temperature=temperature,
        images=len(labels),
        log_loss_before=float(np.average(before.losses, weights=weights)),
        log_loss_after=float(np.average(after.losses, weights=weights)),
        ece_before=calibration_error(before, weights),
        ece_after=calibration_error(after, weights),
        bins_before=reliability_bins(before),
        bins_after=reliability_bins(after),
    )


def best_temperature(logits: Logits, labels: Labels, weights: Floats) -> float:
    """What to divide logits by so that their log loss is lowest (Guo et al. 2017), between 0.05 and 20.

    Where every image is right the loss is lowest with no doubt left at all: then, as in the rule of succession, one
    image more is counted whose label could be any.
    """
    rows = np.arange(len(labels))
    target = weights * logits[rows, labels]
    if bool((logits.argmax(axis=1) == labels).all()):
        share = weights / len(labels)
        target = target + share * logits.mean(axis=1, dtype=np.float64)
        weights = weights + share
    low, high = 1.0 / _HOTTEST, 1.0 / _COLDEST
    factor = 1.0
    for _ in range(_STEPS):
        slope, curvature = _slope(logits, factor, target, weights)
        low, high = (factor, high) if slope < 0.0 else (low, factor)
        if abs(slope) <= 1e-9 * curvature * factor or high - low <= 1e-9 * low:
            break
        newton = factor - slope / curvature if curvature > 0.0 else 0.0
        factor = newton if low < newton < high else 0.5 * (low + high)
    return 1.0 / factor


def _slope(logits: Logits, factor: float, target: Floats, weights: Floats) -> tuple[float, float]:
    """First and second derivative, by `factor`, of the log loss of `factor * logits`, which is convex."""
    slope, curvature = -float(target.sum()), 0.0
    for rows in _blocks(logits):
        block = logits[rows].astype(np.float64)
        probabilities = softmax(factor * block)
        means = (probabilities * block).sum(axis=1)
        slope += float(weights[rows] @ means)
        curvature += float(weights[rows] @ (probabilities * np.square(block - means[:, np.newaxis])).sum(axis=1))
    return slope, curvature


def calibration_error(answered: Answers, weights: Floats) -> float:
    """The expected calibration error over 15 bins of equal width (Guo et al. 2017): the mean distance between
    confidence and accuracy of a bin, weighted by what is in it.
    """
    gaps = weights * (answered.confidence - answered.is_right)
    sums = np.bincount(_bin_of(answered.confidence), weights=gaps, minlength=BINS)
    return float(np.abs(sums).sum() / weights.sum())


def reliability_bins(answered: Answers) -> tuple[ReliabilityBin, ...]:
    places = _bin_of(answered.confidence)
    bins = []
    for number in range(BINS):
        inside = places == number
        count = int(inside.sum())
        confidence = float(answered.confidence[inside].mean()) if count else None
        accuracy = float(answered.is_right[inside].mean()) if count else None
        bins.append(ReliabilityBin(number / BINS, (number + 1) / BINS, count, confidence, accuracy))
    return tuple(bins)


def _bin_of(confidence: Floats) -> Labels:
    """Bins are open below and closed above."""
    return np.clip(np.ceil(confidence * BINS).astype(np.int64) - 1, 0, BINS - 1)


def fit_reject(logits: Logits, labels: Labels, temperature: float, share: float) -> Reject:
    """The threshold that turns `share` of the images away, whose out-of-fold logits `(N, classes)` these are; as many
    fewer as have the very same probability as the first that stays.
    """
    answered = answers(logits, labels, temperature)
    kept_from = min(round(share * len(labels)), len(labels) - 1)
    below = float(np.sort(answered.confidence)[kept_from])
    rejected = answered.confidence < below
    right, wrong = rejected[answered.is_right], rejected[~answered.is_right]
    return Reject(
        share=share,
        below=below,
        rejected=float(rejected.mean()),
        rejected_of_right=float(right.mean()) if len(right) else None,
        rejected_of_wrong=float(wrong.mean()) if len(wrong) else None,
    )


def _blocks(logits: Logits) -> Iterator[slice]:
    """Rows a few at a time: double precision of all of them could take more memory than the features."""
    length = max(1, _BLOCK_CELLS // logits.shape[1])
    return (slice(row, row + length) for row in range(0, len(logits), length))

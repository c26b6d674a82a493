"""How far a candidate's logits are from the reference's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgetune.core.errors import TensorError
from edgetune.core.stats import paired_drop_interval, paired_drop_upper_bound
from edgetune.core.tensors import softmax

Logits = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]
_Exact = npt.NDArray[np.float64]


@dataclass(frozen=True)
class ClassCount:
    """Images of one class: how many each model labels right, and on how many only one of them does."""

    index: int
    images: int
    reference_right: int
    candidate_right: int
    worse: int
    better: int


@dataclass(frozen=True)
class Comparison:
    """Figures of one candidate against its reference, on the same images in the same order.

    `sqnr_db` is 10 log10 of the reference's power over the difference's power: higher is better, and None
    stands for "no difference at all". `flip_rows` are the images whose label differs, and `flip_margins` how far apart
    the reference held the two labels' logits; `lost_margins` and `won_margins` are those of the images that only the
    reference, or only the candidate, labels right. `drop` is reference accuracy minus candidate accuracy,
    `drop_upper_bound` its one-sided and `drop_ci95` its two-sided 95 % bounds; accuracies need labels. `kl` is the
    Kullback-Leibler divergence of the softmax, reference to candidate, in nats. The two `rms` are of logits without
    their row's mean, which the softmax does not see.
    """

    images: int
    finite: bool
    max_abs_diff: float
    reference_max_abs: float
    sqnr_db: float | None
    top1_agreement: float
    flip_margins: tuple[float, ...]
    reference_accuracy: float | None
    candidate_accuracy: float | None
    drop: float | None
    drop_upper_bound: float | None
    drop_ci95: tuple[float, float] | None = None
    flip_rows: tuple[int, ...] = ()
    lost_margins: tuple[float, ...] = ()
    won_margins: tuple[float, ...] = ()
    kl_mean: float | None = None
    kl_p99: float | None = None
    reference_rms: float = 0.0
    noise_rms: float = 0.0
    per_class: tuple[ClassCount, ...] = ()


def compare_logits(reference: Logits, candidate: Logits, labels: Labels | None) -> Comparison:
    """Compares float32 logits `(N, classes)`, row by row; `labels` int64 `(N,)`.

    Raises:
        TensorError: the two have other shapes, or there is no row.
    """
    if reference.shape != candidate.shape or reference.ndim != 2 or 0 in reference.shape:
        raise TensorError(f"the reference's logits are {reference.shape}, the candidate's {candidate.shape}.")
    finite = bool(np.isfinite(reference).all() and np.isfinite(candidate).all())
    exact = reference.astype(np.float64)
    difference = candidate.astype(np.float64) - exact if finite else np.full_like(exact, np.inf)
    named, called = reference.argmax(axis=1), candidate.argmax(axis=1)
    flipped = np.flatnonzero(named != called)
    margins = exact[flipped, named[flipped]] - exact[flipped, called[flipped]] if finite else np.zeros(len(flipped))
    figures: dict[str, Any] = _paired_accuracy(named, called, labels)
    if labels is not None:
        figures |= {
            "lost_margins": _of(margins[(named == labels)[flipped]]),
            "won_margins": _of(margins[(called == labels)[flipped]]),
        }
    if finite:
        figures |= _distances(exact, difference)
    return Comparison(
        images=len(reference),
        finite=finite,
        max_abs_diff=float(np.abs(difference).max()),
        reference_max_abs=float(np.abs(exact).max()) if finite else float("inf"),
        sqnr_db=sqnr_db(float(np.sum(exact**2)), float(np.sum(difference**2))) if finite else None,
        top1_agreement=1.0 - len(flipped) / len(reference),
        flip_margins=_of(margins),
        flip_rows=tuple(int(row) for row in flipped),
        **figures,
    )


def sqnr_db(signal: float, noise: float) -> float | None:
    """10 log10 of two powers or sums of squares; None without noise, -inf where there is noise only."""
    if noise == 0.0:
        return None
    return 10.0 * float(np.log10(signal / noise)) if signal > 0.0 else float("-inf")


def _of(values: npt.NDArray[np.float64]) -> tuple[float, ...]:
    return tuple(float(value) for value in values)


def _distances(exact: _Exact, difference: _Exact) -> dict[str, float]:
    divergence = _kl(exact, exact + difference)
    return {
        "kl_mean": float(divergence.mean()),
        "kl_p99": float(np.quantile(divergence, 0.99)),
        "reference_rms": _rms(exact - exact.mean(axis=1, keepdims=True)),
        "noise_rms": _rms(difference - difference.mean(axis=1, keepdims=True)),
    }


def _rms(values: _Exact) -> float:
    return float(np.sqrt(np.mean(values**2)))


def _kl(reference: _Exact, candidate: _Exact) -> _Exact:
    """Per row; from logits, so that a probability that underflows to 0 leaves no infinity."""
    logs = [logits - logits.max(axis=1, keepdims=True) for logits in (reference, candidate)]
    logs = [each - np.log(np.exp(each).sum(axis=1, keepdims=True)) for each in logs]
    divergence: _Exact = np.sum(softmax(reference) * (logs[0] - logs[1]), axis=1)
    return np.maximum(divergence, 0.0)  # rounding may leave a hair below


def _paired_accuracy(named: Labels, called: Labels, labels: Labels | None) -> dict[str, Any]:
    if labels is None:
        return dict.fromkeys(("reference_accuracy", "candidate_accuracy", "drop", "drop_upper_bound"))
    reference_hits, candidate_hits = named == labels, called == labels
    worse = int((reference_hits & ~candidate_hits).sum())
    better = int((~reference_hits & candidate_hits).sum())
    count = len(labels)
    return {
        "reference_accuracy": float(reference_hits.mean()),
        "candidate_accuracy": float(candidate_hits.mean()),
        "drop": (worse - better) / count,
        "drop_upper_bound": paired_drop_upper_bound(worse, better, count),
        "drop_ci95": paired_drop_interval(worse, better, count),
        "per_class": tuple(_count(int(index), labels, reference_hits, candidate_hits) for index in np.unique(labels)),
    }


def _count(
    index: int, labels: Labels, reference_hits: npt.NDArray[np.bool_], candidate_hits: npt.NDArray[np.bool_]
) -> ClassCount:
    rows = labels == index
    reference, candidate = reference_hits[rows], candidate_hits[rows]
    return ClassCount(
        index,
        int(rows.sum()),
        int(reference.sum()),
        int(candidate.sum()),
        int((reference & ~candidate).sum()),
        int((~reference & candidate).sum()),
    )

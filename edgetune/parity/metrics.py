"""How far a candidate's logits are from the reference's."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgetune.core.errors import TensorError
from edgetune.core.stats import paired_drop_upper_bound

Logits = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Comparison:
    """Figures of one candidate against its reference, on the same images in the same order.

    `sqnr_db` is 10 log10 of the reference's power over the difference's power: higher is better, and None
    stands for "no difference at all". `flip_margins` has, for each image whose label differs, how far apart the
    reference held the two labels' logits. `drop` is reference accuracy minus candidate accuracy,
    `drop_upper_bound` its one-sided 95 % bound; accuracies need labels.
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


def compare_logits(reference: Logits, candidate: Logits, labels: npt.NDArray[np.int64] | None) -> Comparison:
    """Compares float32 logits `(N, classes)`, row by row; `labels` int64 `(N,)`.

    Raises:
        TensorError: the two have other shapes.
    """
    if reference.shape != candidate.shape or reference.ndim != 2:
        raise TensorError(f"the reference's logits are {reference.shape}, the candidate's {candidate.shape}.")
    finite = bool(np.isfinite(reference).all() and np.isfinite(candidate).all())
    exact = reference.astype(np.float64)
    difference = candidate.astype(np.float64) - exact if finite else np.full_like(exact, np.inf)
    named, called = reference.argmax(axis=1), candidate.argmax(axis=1)
    flipped = np.flatnonzero(named != called)
    margins = exact[flipped, named[flipped]] - exact[flipped, called[flipped]] if finite else np.zeros(len(flipped))
    accuracy = _paired_accuracy(named, called, labels)
    return Comparison(
        images=len(reference),
        finite=finite,
        max_abs_diff=float(np.abs(difference).max()),
        reference_max_abs=float(np.abs(exact).max()) if finite else float("inf"),
        sqnr_db=_sqnr_db(exact, difference) if finite else None,
        top1_agreement=1.0 - len(flipped) / len(reference),
        flip_margins=tuple(float(margin) for margin in margins),
        **accuracy,
    )


def _sqnr_db(reference: npt.NDArray[np.float64], difference: npt.NDArray[np.float64]) -> float | None:
    noise = float(np.sum(difference**2))
    if noise == 0.0:
        return None
    signal = float(np.sum(reference**2))
    return 10.0 * float(np.log10(signal / noise)) if signal > 0.0 else float("-inf")


def _paired_accuracy(
    named: npt.NDArray[np.int64], called: npt.NDArray[np.int64], labels: npt.NDArray[np.int64] | None
) -> dict[str, float | None]:
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
    }

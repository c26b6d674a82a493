"""How far two outputs of any shape are apart, in sums that do not grow with the number of rows."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from edgetune.core.errors import TensorError
from edgetune.core.tensors import Array
from edgetune.parity.gates import Gate
from edgetune.parity.metrics import Comparison, sqnr_db

# Where a precision is held to labels and there are none: what every INT8 graph that works keeps to by far.
_MIN_SQNR_DB = 15.0


class RunningDistance:
    """Adds up rows of a reference's and a candidate's output, `(N, ...)` of any numeric type."""

    def __init__(self) -> None:
        self.rows = 0
        self._signal = self._noise = 0.0
        self._largest = self._largest_diff = 0.0
        self._reference_is_finite = self._candidate_is_finite = True

    def add(self, reference: Array, candidate: Array) -> None:
        """Raises `TensorError` when the two have other shapes."""
        if reference.shape != candidate.shape:
            raise TensorError(f"the reference's output is {reference.shape}, the candidate's {candidate.shape}.")
        self.rows += len(reference)
        self._reference_is_finite &= bool(np.isfinite(reference).all())
        self._candidate_is_finite &= bool(np.isfinite(candidate).all())
        if self._reference_is_finite and self._candidate_is_finite and reference.size:
            exact = reference.astype(np.float64)
            difference = candidate.astype(np.float64) - exact
            self._signal += float(np.sum(exact**2))
            self._noise += float(np.sum(difference**2))
            self._largest = max(self._largest, float(np.abs(exact).max()))
            self._largest_diff = max(self._largest_diff, float(np.abs(difference).max()))

    @property
    def not_finite(self) -> str:
        """Whose output holds NaN or infinity; empty where all is finite."""
        sides = (("reference", self._reference_is_finite), ("candidate", self._candidate_is_finite))
        return " and ".join(name for name, is_finite in sides if not is_finite)

    def comparison(self) -> Comparison:
        """The figures that need no labels; the rest are what they are where labels agree."""
        finite = not self.not_finite
        return Comparison(
            images=self.rows,
            finite=finite,
            max_abs_diff=self._largest_diff if finite else math.inf,
            reference_max_abs=self._largest if finite else math.inf,
            sqnr_db=sqnr_db(self._signal, self._noise) if finite else None,
            top1_agreement=1.0,
            flip_margins=(),
            reference_accuracy=None,
            candidate_accuracy=None,
            drop=None,
            drop_upper_bound=None,
        )


def without_labels(gate: Gate) -> Gate:
    """The gate's rules for distances; a floor where it has none, so that no output passes unjudged."""
    floor = gate.min_sqnr_db
    if floor is None and gate.max_relative_diff is None:
        floor = _MIN_SQNR_DB
    return dataclasses.replace(
        gate, min_sqnr_db=floor, min_agreement=None, max_drop=None, max_kl=None, max_class_drop=None
    )

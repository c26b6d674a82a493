"""Online sums of how far one tensor is from another: nothing of the tensors themselves is kept."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgetune.core.tensors import Array
from edgetune.parity.metrics import sqnr_db

_Sums = npt.NDArray[np.float64]


@dataclass(frozen=True)
class View:
    """A candidate that holds a tensor in other units: reference = candidate * `scale` + `shift`, both `(channels,)`."""

    scale: npt.NDArray[np.float32]
    shift: npt.NDArray[np.float32]

    def to_reference(self, values: Array) -> Array:
        return values * _along(self.scale, values) + _along(self.shift, values)

    def to_candidate(self, values: Array) -> Array:
        given: Array = (values - _along(self.shift, values)) / _along(self.scale, values)
        return given.astype(np.float32)


class Moments:
    """Sums of squares of a reference and of a candidate's difference from it, over any number of batches."""

    def __init__(self) -> None:
        self.signal = 0.0
        self.noise = 0.0
        self.max_abs_diff = 0.0
        self.largest = 0.0
        self.reference_finite = True
        self.candidate_finite = True

    def add(self, reference: Array, candidate: Array) -> None:
        """Adds float arrays of one shape."""
        if not np.isfinite(reference).all():
            self.reference_finite = False
        if not np.isfinite(candidate).all():
            self.candidate_finite = False
        if not self.reference_finite:
            return
        self.signal += _square_sum(reference)
        self.largest = max(self.largest, float(np.abs(reference).max(initial=0.0)))
        if not self.candidate_finite:
            return
        difference = candidate - reference
        self.noise += _square_sum(difference)
        self.max_abs_diff = max(self.max_abs_diff, float(np.abs(difference).max(initial=0.0)))

    @property
    def finite(self) -> bool:
        return self.reference_finite and self.candidate_finite

    @property
    def sqnr_db(self) -> float | None:
        """None without any difference; -inf where NaN or infinity came out."""
        return sqnr_db(self.signal, self.noise) if self.finite else -math.inf


@dataclass(frozen=True)
class ChannelFit:
    """candidate = `factor` * reference + `offset` by least squares, per channel; `left_db` is the SQNR that remains
    after this is taken back, None where nothing remains. A channel that does not vary has factor 1.
    """

    factor: _Sums
    offset: _Sums
    left_db: float | None
    spread: _Sums


class ChannelMoments:
    """Sums per channel of r, c, r*r, c*c and r*c in float64, from which an affine fit can be had at the end."""

    def __init__(self) -> None:
        self._count = 0
        self._sums: _Sums | None = None

    def add(self, reference: Array, candidate: Array) -> None:
        """Adds arrays `(N, C)` or `(N, C, ...)`; of those of other ranks the last axis counts as channels."""
        r, c = (_by_channel(values) for values in (reference, candidate))
        found = np.stack([r.sum(1), c.sum(1), (r * r).sum(1), (c * c).sum(1), (r * c).sum(1)])
        self._sums = found if self._sums is None else self._sums + found
        self._count += r.shape[1]

    def fit(self) -> ChannelFit:
        """Raises `ValueError` before anything was added."""
        if self._sums is None:
            raise ValueError("no tensor was added.")
        r, c, rr, cc, rc = self._sums / self._count
        variance = np.maximum(rr - r * r, 0.0)
        varies = variance > 1e-12 * np.maximum(rr, 1e-300)
        factor = np.where(varies, (rc - r * c) / np.where(varies, variance, 1.0), 1.0)
        offset = c - factor * r
        left = np.maximum(cc - c * c - factor * (rc - r * c), 0.0)
        left = np.where(varies, left, np.maximum(cc - c * c, 0.0))
        # What float64 sums cannot tell from nothing is nothing.
        left = np.where(left <= 1e-13 * np.maximum(cc, 1e-300), 0.0, left)
        return ChannelFit(factor, offset, sqnr_db(float(cc.sum()), float(left.sum())), np.sqrt(variance))

    def ratio(self) -> _Sums:
        """The reference over the candidate by least squares without an offset, `(C,)`; 1 where that is not positive."""
        if self._sums is None:
            raise ValueError("no tensor was added.")
        _, _, _, cc, rc = self._sums
        return np.where((rc > 0) & (cc > 0), rc / np.where(cc > 0, cc, 1.0), 1.0)

    def power(self) -> _Sums:
        """Sums of the reference's squares, `(C,)`."""
        if self._sums is None:
            raise ValueError("no tensor was added.")
        squares: _Sums = self._sums[2]
        return squares


class CrossMoments:
    """Which channel of the reference each channel of a candidate goes along with, by correlation."""

    def __init__(self) -> None:
        self._count = 0
        self._means = np.zeros((2, 0))
        self._products = np.zeros((0, 0))
        self._squares = np.zeros((2, 0))

    def add(self, reference: Array, candidate: Array) -> None:
        r, c = (_by_channel(values) for values in (reference, candidate))
        means, squares = np.stack([r.sum(1), c.sum(1)]), np.stack([(r * r).sum(1), (c * c).sum(1)])
        if self._count == 0:
            self._means, self._squares, self._products = means, squares, c @ r.T
        else:
            self._means, self._squares = self._means + means, self._squares + squares
            self._products = self._products + c @ r.T
        self._count += r.shape[1]

    def permutation(self, least: float = 0.999) -> tuple[int, ...] | None:
        """For each channel of the candidate the reference's that it is; None where they are in order, or it is no
        permutation with correlations of at least `least`.
        """
        (r, c), (rr, cc) = self._means / self._count, self._squares / self._count
        products = self._products / self._count - np.outer(c, r)
        spread = np.sqrt(np.maximum(np.outer(cc - c * c, rr - r * r), 1e-300))
        correlation = products / spread
        best = correlation.argmax(axis=1)
        in_order = np.diagonal(correlation) >= correlation.max(axis=1) - 1e-6
        best = np.where(in_order, np.arange(len(best)), best)
        sure = (correlation.max(axis=1) >= least).all() and len(set(best.tolist())) == len(best)
        return tuple(int(index) for index in best) if sure and not in_order.all() else None


def _along(values: Array, like: Array) -> Array:
    """Per-channel values shaped so that they go along the channels of `like`."""
    return values.reshape(-1, *[1] * (like.ndim - 2)) if like.ndim in (2, 4) else values


def _by_channel(values: Array) -> _Sums:
    """float64 `(C, n)`."""
    exact = values.astype(np.float64)
    axis = 1 if values.ndim in (2, 4) else max(values.ndim - 1, 0)
    return np.moveaxis(exact, axis, 0).reshape(exact.shape[axis] if exact.ndim else 1, -1)


def _square_sum(values: Array) -> float:
    flat = np.ascontiguousarray(values, dtype=np.float32).reshape(-1)
    with np.errstate(over="ignore"):  # the sum is then taken in float64
        found = float(np.dot(flat, flat))
    return found if math.isfinite(found) else float(np.square(flat, dtype=np.float64).sum())

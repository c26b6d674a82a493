"""Linear heads with an L2 penalty in a basis where the problem is round, for all folds of a split at once.

Features of a CNN are strongly correlated: their covariance spans many orders of magnitude, and plain L-BFGS takes
hundreds of steps through such a valley. In the basis of the covariance's eigenvectors, with each direction scaled by
the curvature expected there, it takes tens. The solution is the same: a change of variables moves no minimum.

Nothing here depends on how many CPUs there are, down to the last bit: BLAS works with one thread, and blocks of rows,
which are always the same, are added up in their order.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from edgetune.core.machine import usable_cpus
from edgetune.heads.examples import Examples
from edgetune.heads.head import Head
from edgetune.heads.lbfgs import minimise

Floats = npt.NDArray[np.float64]
Features = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]

_FINAL = 0.04
_BLOCK_ROWS = 1024
_BLOCK_CELLS = 1 << 22  # logits of one block, over all problems


class Loss(Protocol):
    """`curvature` is what the scaling assumes of the mean second derivative; it changes the speed only. `tolerance` is
    how large an entry of the scaled gradient may be for cross-validation to see the loss exactly enough.
    """

    curvature: float
    tolerance: float

    def __call__(self, logits: Features, labels: Labels) -> tuple[Features, Features]:
        """Logits `(n, P, classes)` of n rows in P problems to losses `(n, P)` and their slopes by the logits, which
        may be in the logits' place.
        """
        ...


@dataclass(frozen=True)
class Solution:
    """`weight` `(B, classes, R)` in the basis and `bias` `(B, classes)`, of B problems."""

    weight: Floats
    bias: Floats


class Basis:
    """Features moved to mean 0, scaled by one factor to variance 1 and turned: R directions, R = min(N, D) or fewer.

    Directions without any variance are left out; the penalty keeps every solution's weights at zero there.
    """

    def __init__(self, features: Features) -> None:
        self._features = features
        self._centre: Features = features.mean(axis=0, dtype=np.float64).astype(np.float32)
        variances, directions = _spectrum(features, self._centre)
        self._scale = float(np.sqrt(variances.sum() / features.shape[1])) or 1.0
        self.variances: Floats = variances / self._scale**2
        self._turn: Features = (directions / self._scale).astype(np.float32)

    def rows(self, order: Labels) -> Features:
        """The rows `order` of the features in the basis, float32 `(len(order), R)`."""
        turned = np.empty((len(order), len(self.variances)), np.float32)
        for first in range(0, len(order), _BLOCK_ROWS):
            block = slice(first, first + _BLOCK_ROWS)
            turned[block] = (self._features[order[block]] - self._centre) @ self._turn
        return turned

    def head(self, weight: Floats, bias: Floats) -> Head:
        """A head in the basis, `(classes, R)` and `(classes,)`, as one for features as they came."""
        outer = weight @ self._turn.T.astype(np.float64)
        moved = bias - outer @ self._centre.astype(np.float64)
        return Head(outer.astype(np.float32), moved.astype(np.float32))


def _spectrum(features: Features, centre: Features) -> tuple[Floats, Floats]:
    """The covariance's eigenvalues above zero, and their directions `(D, R)`."""
    count, width = features.shape
    if width <= count:
        covariance = np.zeros((width, width))
        for first in range(0, count, _BLOCK_ROWS):
            block = features[first : first + _BLOCK_ROWS] - centre
            covariance += block.T @ block
        values, directions = np.linalg.eigh(covariance / count)
    else:
        centred = (features - centre).astype(np.float64)
        values, vectors = np.linalg.eigh(centred @ centred.T / count)
        directions = centred.T @ vectors / np.sqrt(np.maximum(values * count, 1e-300))
    # What is left of equal features behind float32's rounding is no variance.
    floor = max(1e-9 * float(values[-1]), 1e-12 * float(np.mean(np.square(centre, dtype=np.float64))))
    kept = values > floor
    return values[kept], directions[:, kept]


class Problems:
    """The same fit once without each of the examples' folds, and last, as problem number `folds`, with all rows.

    With M the sum of the weights of its rows, a problem minimises `sum(weight * loss) / M + l2 / (2 M) * |W|^2`; the
    bias is not penalised.
    """

    def __init__(self, basis: Basis, examples: Examples) -> None:
        self._classes, self._folds = examples.classes, examples.folds
        self._order = np.argsort(examples.fold, kind="stable")
        self._rows = basis.rows(self._order)
        self._labels, self._weights = examples.labels[self._order], examples.weights[self._order]
        self._variances = basis.variances
        held_out = np.bincount(examples.fold, weights=examples.weights, minlength=self._folds)
        self._totals: Floats = held_out.sum() - np.append(held_out, 0.0)
        self._blocks = self._cut(examples.fold[self._order])

    def _cut(self, fold: Labels) -> list[tuple[int, slice]]:
        """Blocks of rows that lie in one fold each, with the fold."""
        length = max(1, min(_BLOCK_ROWS, _BLOCK_CELLS // (self._folds * self._classes)))
        blocks = []
        for part in range(self._folds):
            first, last = np.searchsorted(fold, [part, part + 1])
            blocks += [(part, slice(row, min(row + length, last))) for row in range(first, last, length)]
        return blocks

    def without_each_fold(self, loss: Loss, l2: float, starts: Sequence[Solution]) -> Solution:
        """Solved to the loss' tolerance for cross-validation. Starts at zero, or at the first of `starts`; where that
        is not near enough yet, at the second, if there is one.
        """
        return self._solve(loss, l2, np.arange(self._folds), starts, loss.tolerance)

    def with_all_rows(self, loss: Loss, l2: float, starts: Sequence[Solution]) -> Solution:
        """As `without_each_fold`, of one problem, and solved to a twenty-fifth of that tolerance."""
        return self._solve(loss, l2, np.array([self._folds]), starts, _FINAL * loss.tolerance)

    def _solve(
        self, loss: Loss, l2: float, solved: Labels, starts: Sequence[Solution], tolerance: float
    ) -> Solution:  # fmt: skip
        penalties = l2 / self._totals[solved]
        scale = 1.0 / np.sqrt(loss.curvature * self._variances + penalties[:, np.newaxis])
        shape = (len(solved), self._classes, len(self._variances))
        chosen = starts or [Solution(np.zeros(shape), np.zeros(shape[:2]))]
        points = [_packed(each.weight / scale[:, np.newaxis], each.bias) for each in chosen]
        with ThreadPoolExecutor(usable_cpus()) as pool:

            def evaluate(points: Floats, running: Labels) -> tuple[Floats, Floats]:
                at = self._unpacked(points, scale[running])
                losses, by_weight, by_bias = self._means(loss, at, solved[running], pool)
                pull = penalties[running, np.newaxis, np.newaxis] * at.weight
                losses += 0.5 * (pull * at.weight).sum(axis=(1, 2))
                by_weight += pull
                return losses, _packed(by_weight * scale[running, np.newaxis], by_bias)

            return self._unpacked(minimise(evaluate, *points, tolerance=tolerance), scale)

    def _unpacked(self, points: Floats, scale: Floats) -> Solution:
        weight = points[:, : -self._classes].reshape(len(points), self._classes, scale.shape[1])
        return Solution(weight * scale[:, np.newaxis], points[:, -self._classes :])

    def _means(
        self, loss: Loss, at: Solution, numbers: Labels, pool: ThreadPoolExecutor
    ) -> tuple[Floats, Floats, Floats]:
        """Mean losses `(A,)` of the problems `numbers`, and their slopes by weight and bias."""
        weight, bias = at.weight.astype(np.float32), at.bias.astype(np.float32)
        losses, by_weight, by_bias = np.zeros(len(numbers)), np.zeros(at.weight.shape), np.zeros(at.bias.shape)
        fitting = {part: np.flatnonzero(numbers != part) for part in range(self._folds)}
        layers = {part: (weight[chosen], bias[chosen]) for part, chosen in fitting.items()}

        def block_sums(block: tuple[int, slice]) -> tuple[Floats, Features, Features]:
            return self._block_sums(loss, *layers[block[0]], block[1])

        blocks = [block for block in self._blocks if len(fitting[block[0]])]
        for (part, _), (block_loss, block_weight, block_bias) in zip(blocks, pool.map(block_sums, blocks), strict=True):
            losses[fitting[part]] += block_loss
            by_weight[fitting[part]] += block_weight
            by_bias[fitting[part]] += block_bias
        count = self._totals[numbers]
        return losses / count, by_weight / count[:, np.newaxis, np.newaxis], by_bias / count[:, np.newaxis]

    def _block_sums(
        self, loss: Loss, weight: Features, bias: Features, rows: slice
    ) -> tuple[Floats, Features, Features]:
        problems, classes, width = weight.shape
        logits = self._rows[rows] @ weight.reshape(problems * classes, width).T + bias.ravel()
        losses, errors = loss(logits.reshape(len(logits), problems, classes), self._labels[rows])
        weights = self._weights[rows]
        errors *= weights[:, np.newaxis, np.newaxis]
        by_weight = errors.reshape(len(weights), problems * classes).T @ self._rows[rows]
        summed = (losses * weights[:, np.newaxis]).sum(axis=0, dtype=np.float64)
        return summed, by_weight.reshape(weight.shape), errors.sum(axis=0)

    def held_out_logits(self, solution: Solution) -> Features:
        """Logits `(N, classes)` of each row by the problem that did not fit it, in the order of the examples."""
        logits = np.empty((len(self._order), self._classes), np.float32)
        for part, rows in self._blocks:
            weight, bias = solution.weight[part].astype(np.float32), solution.bias[part].astype(np.float32)
            logits[self._order[rows]] = self._rows[rows] @ weight.T + bias
        return logits


def _packed(weight: Floats, bias: Floats) -> Floats:
    return np.concatenate([weight.reshape(len(weight), -1), bias], axis=1)


@contextlib.contextmanager
def one_blas_thread() -> Iterator[None]:
    """Products of a millisecond each: blocks side by side use the CPUs better than threads inside a product, which on
    a busy machine wait for each other and were seen fifty times slower; and the bits are those of every machine's
    thread count.
    """
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1, user_api="blas"):
        yield

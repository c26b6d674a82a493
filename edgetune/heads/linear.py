"""Heads of one linear layer that are solved to convergence: softmax regression and the linear SVM."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgetune.core.head_recipe import LINEAR, SVM
from edgetune.core.progress import Progress
from edgetune.heads.calibration import answers, best_temperature
from edgetune.heads.eigenbasis import Basis, Loss, Problems, Solution, one_blas_thread
from edgetune.heads.examples import Examples
from edgetune.heads.head import Head
from edgetune.heads.history import PathPoint
from edgetune.heads.losses import LogLoss, SquaredHinge

LOSSES: dict[str, Loss] = {LINEAR: LogLoss(), SVM: SquaredHinge()}

# L2 strengths are relative to features scaled to unit variance, from "almost no head" to "no penalty at all".
L2_GRID = tuple(float(10.0**exponent) for exponent in np.arange(4.0, -3.01, -0.125))
MIN_VALUES = 20
# Nothing weaker can be expected to win any more: the loss has risen for half a decade, or not fallen for a whole one.
_RISES, _STANDSTILL = 4, 8
# Losses nearer than this share are alike, as far as they are computed: of such the strongest penalty is taken.
_ALIKE = 1e-3


@dataclass(frozen=True)
class LinearFit:
    """`logits` float32 `(N, classes)` are out of fold: of each row by the head that was not fitted on its fold."""

    head: Head
    l2: float
    path: tuple[PathPoint, ...]
    logits: npt.NDArray[np.float32]


@dataclass(frozen=True)
class _Step:
    point: PathPoint
    solution: Solution
    logits: npt.NDArray[np.float32]


def fit_linear(examples: Examples, kind: str, progress: Progress) -> LinearFit:
    """Chooses the L2 strength by cross-validation and fits with it on all rows.

    The strength with the lowest loss on held-out images wins, or a stronger one within 0.1 % of it, by the very loss
    that the head minimises: it tells heads apart on small sets too, unlike accuracy, and the hinge judges margins where
    a log loss would judge probabilities that margins are not. Features are centred and scaled by one common factor
    first, which makes the grid independent of the backbone; both are folded into the returned head.
    """
    with one_blas_thread():
        basis = Basis(examples.features)
        problems = Problems(basis, examples)
        path, best = _walk(problems, examples, LOSSES[kind], progress)
        start = Solution(best.solution.weight.mean(axis=0)[np.newaxis], best.solution.bias.mean(axis=0)[np.newaxis])
        final = problems.with_all_rows(LOSSES[kind], best.point.l2, [start])
        head = basis.head(final.weight[0], final.bias[0])
    return LinearFit(head, best.point.l2, path, best.logits)


def refit_linear(examples: Examples, kind: str, l2: float) -> Head:
    """The head that `fit_linear` gives where `l2` has been chosen already; the folds do not matter."""
    with one_blas_thread():
        basis = Basis(examples.features)
        solution = Problems(basis, examples).with_all_rows(LOSSES[kind], l2, [])
        return basis.head(solution.weight[0], solution.bias[0])


def _walk(
    problems: Problems, examples: Examples, loss: Loss, progress: Progress
) -> tuple[tuple[PathPoint, ...], _Step]:
    """From the strongest penalty down, at least 20 strengths, and on until no weaker one can be expected to win: these
    take most of the time. Each starts where the last two point to.
    """
    path: list[PathPoint] = []
    best: _Step | None = None
    best_at = 0
    solved: list[Solution] = []
    for done, l2 in enumerate(L2_GRID, start=1):
        solved = [*solved[-1:], problems.without_each_fold(loss, l2, _starts(solved))]
        logits = problems.held_out_logits(solved[-1])
        path.append(_judge(l2, logits, examples, loss))
        if best is None or path[-1].loss < (1.0 - _ALIKE) * best.point.loss:
            best, best_at = _Step(path[-1], solved[-1], logits), done
        is_over = done >= MIN_VALUES and (_has_risen(path) or done - best_at >= _STANDSTILL)
        progress("cross-validation", len(L2_GRID) if is_over else done, len(L2_GRID))
        if is_over:
            break
    if best is None:
        raise ValueError("the grid of L2 strengths is empty")
    return tuple(path), best


def _starts(solved: list[Solution]) -> list[Solution]:
    """The last solution, and where the last two point to."""
    if len(solved) < 2:
        return solved
    earlier, last = solved
    return [last, Solution(2.0 * last.weight - earlier.weight, 2.0 * last.bias - earlier.bias)]


def _has_risen(path: list[PathPoint]) -> bool:
    recent = [point.loss for point in path[-1 - _RISES :]]
    return all(before < after for before, after in itertools.pairwise(recent))


def _judge(l2: float, logits: npt.NDArray[np.float32], examples: Examples, loss: Loss) -> PathPoint:
    """Means over the held-out images, weighted as in the fit, but for the accuracy."""
    rows = np.flatnonzero(examples.is_judged)
    judged, labels, weights = logits[rows], examples.labels[rows], examples.weights[rows].astype(np.float64)
    losses = loss(judged[:, np.newaxis].copy(), labels)[0][:, 0]
    temperature = 1.0 if isinstance(loss, LogLoss) else best_temperature(judged, labels, weights)
    answered = answers(judged, labels, temperature)
    return PathPoint(
        l2=l2,
        log_loss=float(np.average(answered.losses, weights=weights)),
        accuracy=float(answered.is_right.mean()),
        loss=float(np.average(losses, weights=weights)),
    )

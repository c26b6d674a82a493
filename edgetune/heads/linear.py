"""Multinomial logistic regression on cached features, solved to convergence."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgetune.core.errors import DataError, RunError
from edgetune.core.machine import usable_cpus
from edgetune.core.progress import Progress, no_progress
from edgetune.heads.softmax import SoftmaxProblem, Solution

# L2 strengths are relative to features scaled to unit variance, from "almost no head" to "hardly any penalty".
L2_GRID = tuple(float(10.0**exponent) for exponent in np.arange(3.0, -2.01, -0.5))
MAX_FOLDS = 5
_HELD_OUT_PARTS = 3

_CV_TOLERANCE, _FINAL_TOLERANCE = 3e-5, 1e-6


@dataclass(frozen=True)
class LinearHead:
    """logits = features @ weight.T + bias; `weight` float32 `(classes, D)`, `bias` float32 `(classes,)`."""

    weight: npt.NDArray[np.float32]
    bias: npt.NDArray[np.float32]

    def logits(self, features: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        logits: npt.NDArray[np.float32] = features @ self.weight.T + self.bias
        return logits


@dataclass(frozen=True)
class PathPoint:
    """What cross-validation inside the training set saw at one L2 strength; log loss in nats per image."""

    l2: float
    log_loss: float
    accuracy: float


@dataclass(frozen=True)
class LinearFit:
    head: LinearHead
    l2: float
    folds: int
    path: tuple[PathPoint, ...]


def fit_linear(
    features: npt.NDArray[np.float32],
    labels: npt.NDArray[np.int64],
    classes: int,
    *,
    seed: int = 0,
    progress: Progress = no_progress,
) -> LinearFit:
    """Minimises the mean log loss plus `l2 / (2 N) * |W|^2`; the bias is not penalised.

    Features are centred and scaled by one common factor first, which makes the L2 grid independent of the
    backbone; both are folded into the returned head. The L2 strength with the lowest cross-validated log loss
    wins: a proper score, unlike accuracy, tells heads apart on small sets too.

    Raises:
        DataError: a class has no image, or only one.
    """
    counts = np.bincount(labels, minlength=classes)
    if counts.min() < 2:
        raise DataError(
            f"the class with index {int(counts.argmin())} has {counts.min()} readable training images, "
            "expected at least 2."
        )
    problem = _Problem(features, labels, classes)
    folds = int(min(MAX_FOLDS, counts.min()))
    path = _cross_validate(problem.softmax, labels, folds, seed, progress)
    best = min(path, key=lambda point: point.log_loss)
    return LinearFit(problem.head(best.l2), best.l2, folds, path)


def refit_linear(
    features: npt.NDArray[np.float32], labels: npt.NDArray[np.int64], classes: int, l2: float
) -> LinearHead:
    """The same head on other features of the same images, at an L2 strength that is known already."""
    return _Problem(features, labels, classes).head(l2)


@dataclass(frozen=True)
class HeldOutHead:
    """A head, and those of the judged rows that it was not fitted on, counted among these."""

    head: LinearHead
    rows: npt.NDArray[np.int64]


def held_out_heads(
    features: npt.NDArray[np.float32], labels: npt.NDArray[np.int64], l2: float, judged: npt.NDArray[np.int64],
    *, seed: int = 0,
) -> tuple[HeldOutHead, ...]:  # fmt: skip
    """Splits the rows `judged` in three parts, always alike, and fits a head on all rows but those of each part: heads
    that have seen nearly as much as the final one, for rows that they have not seen.

    Raises:
        DataError: a class has fewer than two rows among `judged`.
    """
    counts = np.bincount(labels[judged], minlength=int(labels.max()) + 1)
    if counts.min() < 2:
        raise DataError("a class has fewer than two images; held-out accuracy needs two.")
    from sklearn.model_selection import StratifiedKFold

    splitter = StratifiedKFold(min(_HELD_OUT_PARTS, int(counts.min())), shuffle=True, random_state=seed)
    heads = []
    for _, part in splitter.split(np.zeros(len(judged)), labels[judged]):
        rest = np.setdiff1d(np.arange(len(labels)), judged[part])
        heads.append(HeldOutHead(refit_linear(features[rest], labels[rest], len(counts), l2), part))
    return tuple(heads)


def held_out_hits(
    heads: Sequence[HeldOutHead], features: npt.NDArray[np.float32], labels: npt.NDArray[np.int64]
) -> npt.NDArray[np.bool_]:
    """Which of the judged rows the head that never saw them names right. `features` `(N, D)` are of the judged rows
    alone, maybe by another backbone than the one whose features the heads were fitted on.
    """
    hits = np.zeros(len(labels), dtype=np.bool_)
    for part in heads:
        hits[part.rows] = part.head.logits(features[part.rows]).argmax(axis=1) == labels[part.rows]
    return hits


class _Problem:
    """Features moved to mean 0 and scaled by one factor to variance 1, and the way back."""

    def __init__(self, features: npt.NDArray[np.float32], labels: npt.NDArray[np.int64], classes: int) -> None:
        self._centre = features.mean(axis=0, dtype=np.float64)
        scaled = (features - self._centre).astype(np.float32)
        self._scale = float(np.sqrt(np.mean(scaled**2, dtype=np.float64))) or 1.0
        scaled /= np.float32(self._scale)
        self.softmax = SoftmaxProblem(scaled, labels, classes)

    def head(self, l2: float) -> LinearHead:
        with _one_blas_thread():
            solution = self.softmax.solve(l2, tolerance=_FINAL_TOLERANCE)
        weight = self.softmax.weight_in_features(solution) / self._scale
        bias = solution.bias - weight @ self._centre
        return LinearHead(weight.astype(np.float32), bias.astype(np.float32))


def _cross_validate(
    problem: SoftmaxProblem, labels: npt.NDArray[np.int64], folds: int, seed: int, progress: Progress
) -> tuple[PathPoint, ...]:
    """Walks the grid from the strongest penalty down, each fold from its last solution, and stops when the log
    loss has risen twice in a row: the weakly penalised rest takes most of the time and cannot win any more.
    """
    from sklearn.model_selection import StratifiedKFold

    splitter = StratifiedKFold(folds, shuffle=True, random_state=seed)
    held_out = [rows for _, rows in splitter.split(np.zeros(len(labels)), labels)]
    starts: Sequence[Solution | None] = [None] * folds
    path: list[PathPoint] = []
    for done, l2 in enumerate(L2_GRID, start=1):
        solve = functools.partial(_solve_without, problem, l2)
        with _one_blas_thread(), ThreadPoolExecutor(usable_cpus()) as pool:
            starts = solutions = list(pool.map(solve, held_out, starts))
        scores = [_score(problem, solution, labels, rows) for solution, rows in zip(solutions, held_out, strict=True)]
        losses, hits = zip(*scores, strict=True)
        path.append(PathPoint(l2, sum(losses) / len(labels), sum(hits) / len(labels)))
        is_over = done >= 3 and path[-3].log_loss < path[-2].log_loss < path[-1].log_loss
        progress("cross-validation", len(L2_GRID) if is_over else done, len(L2_GRID))
        if is_over:
            break
    return tuple(path)


def _solve_without(
    problem: SoftmaxProblem, l2: float, held_out: npt.NDArray[np.int64], start: Solution | None
) -> Solution:
    fitted = np.ones(len(problem.features), dtype=np.bool_)
    fitted[held_out] = False
    return problem.solve(l2, rows=fitted, start=start, tolerance=_CV_TOLERANCE)


def _score(
    problem: SoftmaxProblem, solution: Solution, labels: npt.NDArray[np.int64], rows: npt.NDArray[np.int64]
) -> tuple[float, int]:
    """The summed log loss and the hits on `rows`."""
    log_probabilities = _log_softmax(problem.features[rows] @ solution.weight.T + solution.bias)
    loss = -float(log_probabilities[np.arange(len(rows)), labels[rows]].sum())
    return loss, int((log_probabilities.argmax(axis=1) == labels[rows]).sum())


@contextlib.contextmanager
def _one_blas_thread() -> Iterator[None]:
    """The solver's products take about a millisecond each: folds side by side use the CPUs better than threads
    inside a product, which on a busy machine wait for each other and were seen fifty times slower.
    """
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1, user_api="blas"):
        yield


def _log_softmax(logits: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    shifted = logits - logits.max(axis=1, keepdims=True)
    result: npt.NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return result


def save_head(path: Path, head: LinearHead) -> None:
    from safetensors.numpy import save

    path.write_bytes(save({"weight": head.weight, "bias": head.bias}))


def load_head(path: Path) -> LinearHead:
    """Raises `RunError` when the file is missing, damaged, or holds NaN."""
    import safetensors
    from safetensors.numpy import load

    try:
        tensors = load(path.read_bytes())
        head = LinearHead(tensors["weight"], tensors["bias"])
    except (OSError, KeyError, safetensors.SafetensorError) as error:
        raise RunError(f"the head {path} cannot be read: {error}", hint="fit again with edgetune fit") from error
    if head.weight.ndim != 2 or head.bias.shape != head.weight.shape[:1]:
        raise RunError(f"the head {path} has weights {head.weight.shape} and bias {head.bias.shape}.")
    if not (np.isfinite(head.weight).all() and np.isfinite(head.bias).all()):
        raise RunError(f"the head {path} holds NaN or infinity.", hint="fit again with edgetune fit")
    return head

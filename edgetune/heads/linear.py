"""Multinomial logistic regression on cached features, solved to convergence."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgetune.core.errors import DataError, RunError
from edgetune.core.progress import Progress, no_progress

# L2 strengths are relative to features scaled to unit variance, from "almost no head" to "hardly any penalty".
L2_GRID = tuple(float(10.0**exponent) for exponent in np.arange(3.0, -2.01, -0.5))
MAX_FOLDS = 5


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
    """Minimises the mean log loss plus `l2 / (2 N) * |W|^2` with L-BFGS; the bias is not penalised.

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
    scaled = _Scaled(features)
    folds = int(min(MAX_FOLDS, counts.min()))
    path = _cross_validate(scaled.values, labels, folds, seed, progress)
    best = min(path, key=lambda point: point.log_loss)
    return LinearFit(_solve_head(scaled, labels, best.l2), best.l2, folds, path)


def refit_linear(features: npt.NDArray[np.float32], labels: npt.NDArray[np.int64], l2: float) -> LinearHead:
    """The same head on other features of the same images, at an L2 strength that is known already."""
    return _solve_head(_Scaled(features), labels, l2)


class _Scaled:
    """Features moved to mean 0 and scaled by one factor to variance 1."""

    def __init__(self, features: npt.NDArray[np.float32]) -> None:
        self.centre = features.mean(axis=0, dtype=np.float64)
        centred = features - self.centre
        self.scale = float(np.sqrt(np.mean(centred**2))) or 1.0
        self.values: npt.NDArray[np.float64] = centred / self.scale


def _solve_head(scaled: _Scaled, labels: npt.NDArray[np.int64], l2: float) -> LinearHead:
    weight, bias = _solve(scaled.values, labels, (l2,), tolerance=1e-5)[0]
    weight = weight / scaled.scale
    bias = bias - weight @ scaled.centre
    return LinearHead(weight.astype(np.float32), bias.astype(np.float32))


_Coefficients = tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]


def _cross_validate(
    features: npt.NDArray[np.float64],
    labels: npt.NDArray[np.int64],
    folds: int,
    seed: int,
    progress: Progress,
) -> tuple[PathPoint, ...]:
    from sklearn.model_selection import StratifiedKFold

    losses = np.zeros(len(L2_GRID))
    hits = np.zeros(len(L2_GRID))
    splitter = StratifiedKFold(folds, shuffle=True, random_state=seed)
    for fold, (fitted, held_out) in enumerate(splitter.split(features, labels), start=1):
        for index, (weight, bias) in enumerate(_solve(features[fitted], labels[fitted], L2_GRID, tolerance=1e-3)):
            log_probabilities = _log_softmax(features[held_out] @ weight.T + bias)
            losses[index] -= log_probabilities[np.arange(len(held_out)), labels[held_out]].sum()
            hits[index] += (log_probabilities.argmax(axis=1) == labels[held_out]).sum()
        progress("cross-validation", fold, folds)
    count = len(labels)
    return tuple(
        PathPoint(l2, float(loss / count), float(hit / count))
        for l2, loss, hit in zip(L2_GRID, losses, hits, strict=True)
    )


def _solve(
    features: npt.NDArray[np.float64], labels: npt.NDArray[np.int64], l2_grid: tuple[float, ...], *, tolerance: float
) -> list[_Coefficients]:
    """One solution per L2 strength, strongest first; each starts from the last."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    solutions: list[_Coefficients] = []
    model = LogisticRegression(warm_start=True, max_iter=2000, tol=tolerance)
    with warnings.catch_warnings():
        # The path's weakly penalised end may stop early; it loses the cross-validation by its own log loss.
        warnings.simplefilter("ignore", ConvergenceWarning)
        for l2 in l2_grid:
            model.C = 1.0 / l2
            model.fit(features, labels)
            solutions.append(_coefficients(model.coef_, model.intercept_))
    return solutions


def _coefficients(weight: npt.NDArray[np.float64], bias: npt.NDArray[np.float64]) -> _Coefficients:
    """Two classes come as one row of log odds; as logits of both classes they are its halves with either sign."""
    if len(weight) == 1:
        return np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
    return weight.copy(), bias.copy()


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
    if not (np.isfinite(head.weight).all() and np.isfinite(head.bias).all()):
        raise RunError(f"the head {path} holds NaN or infinity.", hint="fit again with edgetune fit")
    return head

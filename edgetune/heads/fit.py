"""Fits a head of any kind on features, calibrates it, and fits it again on other features of the same images."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgetune.core.errors import DataError
from edgetune.core.head_recipe import MLP, HeadRecipe, TrainingRecipe
from edgetune.core.progress import Progress, no_progress
from edgetune.heads.calibration import Calibration, Reject, fit_calibration, fit_reject
from edgetune.heads.examples import Examples, row_weights
from edgetune.heads.folds import assign_folds, fits_every_class
from edgetune.heads.head import Head
from edgetune.heads.history import EpochPoint, PathPoint
from edgetune.heads.linear import fit_linear, refit_linear
from edgetune.heads.options import HeadOptions, check_options, training_recipe

__all__ = [
    "HeadFit",
    "HeadOptions",
    "TrainingSet",
    "check_options",
    "fit_head",
    "refit_head",
]

MAX_FOLDS = 5


@dataclass(frozen=True)
class TrainingSet:
    """Rows to fit on: `features` float32 `(N, D)`, `labels` int64 `(N,)` in 0..classes-1.

    Rows of one group (`groups` int64 `(N,)`) are never on both sides of a split; None makes each row its own. Rows
    where `is_view` bool `(N,)` holds are augmented views: they are fitted on, never judged, and must be in the group
    of the image that they show.
    """

    features: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]
    classes: int
    groups: npt.NDArray[np.int64] | None = None
    is_view: npt.NDArray[np.bool_] | None = None


@dataclass(frozen=True)
class HeadFit:
    """A head with its temperature folded in, and how it came to be.

    `path` is for heads solved to convergence, `epochs` for heads trained in epochs; the other is empty. `folds` held
    images out to choose and to calibrate.
    """

    head: Head
    recipe: HeadRecipe
    folds: int
    path: tuple[PathPoint, ...]
    epochs: tuple[EpochPoint, ...]
    calibration: Calibration
    reject: Reject | None


@dataclass(frozen=True)
class _Fitted:
    """A head before its temperature, and logits `(M, classes)` of the rows `judged` that are out of fold."""

    head: Head
    folds: int
    judged: npt.NDArray[np.int64]
    logits: npt.NDArray[np.float32]
    l2: float = 0.0
    training: TrainingRecipe | None = None
    path: tuple[PathPoint, ...] = ()
    epochs: tuple[EpochPoint, ...] = ()


def fit_head(training: TrainingSet, options: HeadOptions, *, progress: Progress = no_progress) -> HeadFit:
    """Chooses what there is to choose by splits inside `training`, fits on all of it, and calibrates.

    Raises:
        DataError: a class has fewer than two images, or all its images are in one group.
        UsageError: an option does not go with the kind of head, or is out of range.
    """
    check_options(options)
    examples = _examples(training, options)
    fitted = _fit(examples, options, progress)
    labels = examples.labels[fitted.judged]
    weights = examples.weights[fitted.judged].astype(np.float64)
    calibration = fit_calibration(fitted.logits, labels, weights)
    temperature, share = calibration.temperature, options.reject_share
    return HeadFit(
        head=fitted.head.divided_by(temperature),
        recipe=HeadRecipe(
            options.kind, fitted.l2, options.class_weights, options.seed, temperature, fitted.training
        ),
        folds=fitted.folds,
        path=fitted.path,
        epochs=fitted.epochs,
        calibration=calibration,
        reject=None if share is None else fit_reject(fitted.logits, labels, temperature, share),
    )  # fmt: skip


def refit_head(
    features: npt.NDArray[np.float32], labels: npt.NDArray[np.int64], classes: int, recipe: HeadRecipe
) -> Head:
    """The head that `recipe` gives on other features of the same images, its temperature included."""
    count = len(labels)
    weights = row_weights(labels, classes, recipe.class_weights, count)
    examples = Examples(features, labels, classes, weights, np.zeros(count, np.int64), 1, np.ones(count, np.bool_))
    if recipe.training is None:
        head = refit_linear(examples, recipe.kind, recipe.l2)
    else:
        from edgetune.heads.training import Place, retrain

        head = retrain(examples, recipe.training, Place("cpu", recipe.seed), no_progress)
    return head.divided_by(recipe.temperature)


def _fit(examples: Examples, options: HeadOptions, progress: Progress) -> _Fitted:
    recipe = training_recipe(options)
    if recipe is None:
        solved = fit_linear(examples, options.kind, progress)
        judged = np.flatnonzero(examples.is_judged)
        return _Fitted(
            solved.head, examples.folds, judged, solved.logits[judged], l2=solved.l2, path=solved.path
        )  # fmt: skip
    from edgetune.heads.training import Place, fit_trained

    place = Place(options.device, options.seed)
    trained = fit_trained(examples, recipe, place, stops_early=options.kind == MLP, progress=progress)
    return _Fitted(
        trained.head, trained.folds, trained.judged, trained.logits, training=trained.recipe, epochs=trained.epochs
    )  # fmt: skip


def _examples(training: TrainingSet, options: HeadOptions) -> Examples:
    labels, count = training.labels, len(training.labels)
    groups = np.arange(count) if training.groups is None else training.groups
    is_judged = np.ones(count, np.bool_) if training.is_view is None else ~training.is_view
    _check_classes(labels, groups, is_judged, training.classes)
    fold, folds = _split(labels, groups, is_judged, (training.classes, options.seed))
    weights = row_weights(labels, training.classes, options.class_weights, int(is_judged.sum()))
    return Examples(training.features, labels, training.classes, weights, fold, folds, is_judged)


def _check_classes(
    labels: npt.NDArray[np.int64], groups: npt.NDArray[np.int64], is_judged: npt.NDArray[np.bool_], classes: int
) -> None:
    counts = np.bincount(labels[is_judged], minlength=classes)
    if counts.min() < 2:
        raise DataError(
            f"the class with index {int(counts.argmin())} has {counts.min()} readable training images, "
            "expected at least 2."
        )
    pairs = np.unique(np.stack([labels[is_judged], groups[is_judged]]), axis=1)
    groups_of = np.bincount(pairs[0], minlength=classes)
    if groups_of.min() < 2:
        label = int(groups_of.argmin())
        raise DataError(
            f"all {counts[label]} training images of the class with index {label} belong together, as one group or as "
            "copies of one image, expected at least 2 that do not: one to fit on, one to judge by.",
            hint="add other images of that class, or group the images more finely",
        )


def _split(
    labels: npt.NDArray[np.int64],
    groups: npt.NDArray[np.int64],
    is_judged: npt.NDArray[np.bool_],
    classes_and_seed: tuple[int, int],
) -> tuple[npt.NDArray[np.int64], int]:
    """Five folds, or as many as there are groups; fewer where a class would lie in one fold altogether.

    Raises:
        DataError: the groups cannot be split in two so that both have every class.
    """
    classes, seed = classes_and_seed
    for folds in range(min(MAX_FOLDS, len(np.unique(groups[is_judged]))), 1, -1):
        fold = assign_folds(labels, groups, folds, seed=seed)
        if fits_every_class(labels, fold, classes, folds):
            return fold, folds
    raise DataError(
        "the groups of the training images cannot be split so that every class is on both sides.",
        hint="group the images more finely, or not at all",
    )

"""Splits of training rows into folds: every class in every fold as far as it goes, groups never torn apart."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Labels = npt.NDArray[np.int64]


def assign_folds(labels: Labels, groups: Labels, folds: int, *, seed: int) -> Labels:
    """The fold 0..folds-1 of each row `(N,)`; rows of one group have the same.

    Groups come in the order of their size, the largest first, those of one size in a random order by `seed`. Each
    goes where least of its classes is so far, a class counting by its share; then where fewest rows are.
    """
    _, number = np.unique(groups, return_inverse=True)
    sizes = np.bincount(number)
    order = np.random.default_rng(seed).permutation(len(sizes))
    order = order[np.argsort(-sizes[order], kind="stable")]
    members = np.split(np.argsort(number, kind="stable"), np.cumsum(sizes)[:-1])
    totals = np.bincount(labels)
    counts: list[dict[int, int]] = [{} for _ in range(folds)]
    rows_of = [0] * folds
    fold = np.empty(len(labels), np.int64)
    for group in order.tolist():
        rows = members[group]
        found = _count(labels[rows])
        shares = [
            sum(seen.get(label, 0) * count / float(totals[label]) ** 2 for label, count in found.items())
            for seen in counts
        ]
        place = min(range(folds), key=lambda part: (shares[part], rows_of[part], part))
        fold[rows] = place
        rows_of[place] += len(rows)
        for label, count in found.items():
            counts[place][label] = counts[place].get(label, 0) + count
    return fold


def _count(labels: Labels) -> dict[int, int]:
    if len(labels) == 1:
        return {int(labels[0]): 1}
    found, counts = np.unique(labels, return_counts=True)
    return dict(zip(found.tolist(), counts.tolist(), strict=True))


def fits_every_class(labels: Labels, fold: Labels, classes: int, folds: int) -> bool:
    """Whether each class has rows outside each fold, so that no head is fitted without it."""
    table = np.zeros((classes, folds), np.int64)
    np.add.at(table, (labels, fold), 1)
    return bool((table.sum(axis=1, keepdims=True) > table).all())

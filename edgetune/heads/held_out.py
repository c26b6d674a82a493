"""Heads that have not seen the rows they are judged on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgetune.core.errors import DataError
from edgetune.core.head_recipe import HeadRecipe
from edgetune.heads.fit import refit_head
from edgetune.heads.folds import assign_folds
from edgetune.heads.head import Head

_PARTS = 3


@dataclass(frozen=True)
class HeldOutHead:
    """A head, and those of the judged rows that it was not fitted on, counted among these."""

    head: Head
    rows: npt.NDArray[np.int64]


def held_out_heads(
    features: npt.NDArray[np.float32],
    labels: npt.NDArray[np.int64],
    recipe: HeadRecipe,
    judged: npt.NDArray[np.int64],
    *,
    seed: int = 0,
) -> tuple[HeldOutHead, ...]:
    """Splits the rows `judged` in three parts, always alike, and fits a head on all rows but those of each part: heads
    that have seen nearly as much as the final one, for rows that they have not seen.

    Raises:
        DataError: a class has fewer than two rows among `judged`.
    """
    counts = np.bincount(labels[judged], minlength=int(labels.max()) + 1)
    if counts.min() < 2:
        raise DataError("a class has fewer than two images; held-out accuracy needs two.")
    fold = assign_folds(labels[judged], np.arange(len(judged)), min(_PARTS, int(counts.min())), seed=seed)
    heads = []
    for part in (np.flatnonzero(fold == number) for number in range(fold.max() + 1)):
        rest = np.setdiff1d(np.arange(len(labels)), judged[part])
        heads.append(HeldOutHead(refit_head(features[rest], labels[rest], len(counts), recipe), part))
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

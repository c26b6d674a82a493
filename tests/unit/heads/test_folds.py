"""Folds keep classes apart evenly and groups together."""

from __future__ import annotations

import numpy as np
import pytest

from edgetune.heads.folds import assign_folds, fits_every_class


@pytest.mark.parametrize("counts", [(50, 50), (97, 31, 12), (5, 5, 5), (400, 7)], ids=str)
def test_single_rows_are_stratified_to_within_one(counts: tuple[int, ...]) -> None:
    labels = np.repeat(np.arange(len(counts)), counts)
    fold = assign_folds(labels, np.arange(len(labels)), 5, seed=3)
    for label in range(len(counts)):
        held_out = np.bincount(fold[labels == label], minlength=5)
        assert held_out.max() - held_out.min() <= 1
    sizes = np.bincount(fold, minlength=5)
    assert sizes.max() - sizes.min() <= 1


def test_groups_stay_together_and_classes_are_still_spread() -> None:
    """120 rows in 40 groups of 1 to 5, each of one class."""
    random = np.random.default_rng(0)
    groups = np.repeat(np.arange(40), random.integers(1, 6, 40))
    labels = groups % 2
    fold = assign_folds(labels, groups, 5, seed=1)
    assert all(len(set(fold[groups == group].tolist())) == 1 for group in range(40))
    for label in range(2):
        held_out = np.bincount(fold[labels == label], minlength=5)
        assert held_out.max() - held_out.min() <= 5


def test_groups_of_several_classes_stay_together() -> None:
    groups = np.arange(60) // 6
    labels = np.arange(60) % 3
    fold = assign_folds(labels, groups, 5, seed=0)
    assert all(len(set(fold[groups == group].tolist())) == 1 for group in range(10))
    assert np.bincount(fold, minlength=5).tolist() == [12] * 5


def test_one_group_in_several_places_of_the_table_is_one_group() -> None:
    groups = np.array([7, 1, 7, 2, 3, 7, 4, 5])
    fold = assign_folds(np.zeros(8, np.int64), groups, 2, seed=0)
    assert len(set(fold[groups == 7].tolist())) == 1


def test_no_fold_is_empty_with_as_many_groups() -> None:
    fold = assign_folds(np.array([0, 0, 0, 1, 1]), np.arange(5), 5, seed=0)
    assert sorted(fold.tolist()) == [0, 1, 2, 3, 4]


def test_a_seed_always_splits_alike_and_another_otherwise() -> None:
    labels = np.arange(50) % 2
    first, again, other = (assign_folds(labels, np.arange(50), 5, seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_a_class_in_one_fold_alone_is_seen() -> None:
    labels = np.array([0, 0, 1, 1])
    assert fits_every_class(labels, np.array([0, 1, 0, 1]), 2, 2)
    assert not fits_every_class(labels, np.array([0, 1, 1, 1]), 2, 2)

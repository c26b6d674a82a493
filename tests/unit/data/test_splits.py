from __future__ import annotations

import hashlib
from collections import Counter

import numpy as np
import pytest

from edgetune.data.splits import is_validation, pick_stratified


@pytest.mark.parametrize(
    ("start", "fraction", "expected"),
    [
        ("00000000", 0.2, True),
        ("33333333", 0.2, True),
        ("33333334", 0.2, False),
        ("ffffffff", 0.2, False),
        ("7fffffff", 0.5, True),
        ("80000000", 0.5, False),
        ("ffffffff", 1.0, True),
        ("00000000", 0.0, False),
    ],
)
def test_the_first_eight_digits_of_the_hash_decide(start: str, fraction: float, expected: bool) -> None:
    """0.2 * 2**32 is 858,993,459.2, and 858,993,459 is 0x33333333."""
    assert is_validation(start + "f" * 56, fraction) is expected


def test_about_a_fifth_goes_to_validation() -> None:
    """Of 5,000 hashes 1,000 are expected, with a standard deviation of 28."""
    count = sum(is_validation(hashlib.sha256(str(index).encode()).hexdigest()) for index in range(5000))
    np.testing.assert_allclose(count, 1000, rtol=0, atol=115)


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (0, []),
        (1, ["a1"]),
        (3, ["a1", "b1", "c1"]),
        (5, ["a1", "b1", "c1", "a2", "b2"]),
        (6, ["a1", "b1", "c1", "a2", "b2", "a3"]),
        (7, ["a1", "b1", "c1", "a2", "b2", "a3", "a4"]),
        (99, ["a1", "b1", "c1", "a2", "b2", "a3", "a4"]),
    ],
)
def test_labels_take_turns_in_the_order_of_the_keys(count: int, expected: list[str]) -> None:
    items = ["a3", "b2", "c1", "a1", "a2", "b1", "a4"]
    labels = [0, 1, 2, 0, 0, 1, 0]
    keys = ["33", "22", "99", "11", "22", "11", "44"]
    assert pick_stratified(items, labels, keys, count) == expected


def test_the_pick_does_not_depend_on_the_order_of_the_items() -> None:
    keys = [hashlib.sha256(str(index).encode()).hexdigest() for index in range(30)]
    labels = [index % 3 for index in range(30)]
    backwards = pick_stratified(range(29, -1, -1), labels[::-1], keys[::-1], 10)
    assert pick_stratified(range(30), labels, keys, 10) == backwards


def test_no_label_gets_more_than_one_item_above_another() -> None:
    keys = [hashlib.sha256(str(index).encode()).hexdigest() for index in range(300)]
    labels = [index % 7 for index in range(300)]
    picked = pick_stratified(labels, labels, keys, 100)
    counts = Counter(picked).values()
    assert max(counts) - min(counts) == 1
    assert sum(counts) == 100

from __future__ import annotations

import hashlib

import numpy as np

from edgetune.features.hash_index import HashIndex, digests_of


def _hashes(count: int) -> list[str]:
    return [hashlib.sha256(str(index).encode()).hexdigest() for index in range(count)]


def test_rows_are_those_of_a_dict_that_keeps_the_first() -> None:
    random = np.random.default_rng(0)
    hashes, index = _hashes(300), HashIndex()
    expected: dict[str, int] = {}
    row = 0
    for size in (0, 1, 120, 7, 300):
        chosen = [hashes[place] for place in random.integers(0, 250, size)]
        index.add(digests_of(chosen), np.arange(row, row + size))
        for sha256 in chosen:
            expected.setdefault(sha256, row)
            row += 1
    assert len(index) == len(expected) > 200
    np.testing.assert_array_equal(index.find(digests_of(hashes)), [expected.get(sha256, -1) for sha256 in hashes])


def test_an_empty_index_knows_nothing() -> None:
    np.testing.assert_array_equal(HashIndex().find(digests_of(_hashes(2))), [-1, -1])
    assert HashIndex().find(digests_of([])).shape == (0,)


def test_digests_that_end_in_zero_bytes_are_told_apart() -> None:
    hashes = ["ab" + "00" * 31, "ab01" + "00" * 30, "00" * 32]
    index = HashIndex()
    index.add(digests_of(hashes), np.array([5, 6, 7]))
    np.testing.assert_array_equal(index.find(digests_of(hashes[::-1])), [7, 6, 5])


def test_a_hundred_thousand_images_take_four_megabytes() -> None:
    index = HashIndex()
    random = np.random.default_rng(0).bytes(32 * 100_000)
    index.add(np.frombuffer(random, "S32"), np.arange(100_000))
    assert sum(array.nbytes for array in index._known) == 4_000_000

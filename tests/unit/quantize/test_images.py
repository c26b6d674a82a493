"""The spool of calibration images: the same images in the same order, whatever order they came in."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from edgetune.core.errors import DataError
from edgetune.quantize.images import ImageSpool, spread
from tests.unit.quantize.small_graphs import Images, images, spool


def _read(pictures: Images, batch: int = 4, size: int = 3, limit: int | None = None) -> Images:
    with spool(pictures, batch) as held:
        return np.concatenate(list(held.batches(size, limit)))


@pytest.mark.parametrize("batch", [1, 5, 11])
def test_neither_order_nor_batches_of_the_source_change_what_is_read(batch: int) -> None:
    pictures = images(11)
    shuffled = pictures[np.random.default_rng(0).permutation(11)]
    np.testing.assert_array_equal(_read(shuffled, batch), _read(pictures))


def test_every_image_is_read_once_in_batches_of_the_size_asked_for() -> None:
    pictures = images(11)
    with spool(pictures) as held:
        batches = list(held.batches(4))
        assert (held.count, held.shape) == (11, (8, 8, 3))
        np.testing.assert_array_equal(np.concatenate(list(held.batches(4))), np.concatenate(batches))  # once more
    assert [len(batch) for batch in batches] == [4, 4, 3]
    assert sorted(image.tobytes() for batch in batches for image in batch) == sorted(p.tobytes() for p in pictures)


def test_the_same_image_twice_counts_twice() -> None:
    picture = images(1)
    np.testing.assert_array_equal(_read(np.concatenate([picture, picture])), np.concatenate([picture, picture]))


def test_a_limit_takes_images_evenly_spread_over_the_set() -> None:
    pictures = images(11)
    np.testing.assert_array_equal(_read(pictures, limit=3), _read(pictures)[[0, 3, 7]])
    np.testing.assert_array_equal(_read(pictures, limit=99), _read(pictures))


@pytest.mark.parametrize(
    ("count", "limit", "rows"), [(6, 3, [0, 2, 4]), (5, 2, [0, 2]), (3, 3, [0, 1, 2]), (2, 5, [0, 1]), (7, 1, [0])]
)
def test_spread_numbers_are_those_worked_by_hand(count: int, limit: int, rows: list[int]) -> None:
    assert spread(count, limit) == rows


def test_an_image_of_another_size_is_an_error_with_both_sizes() -> None:
    with pytest.raises(DataError, match=r"uint8 \(6, 6, 3\), expected uint8 \(8, 8, 3\)"):
        ImageSpool(iter([images(2, 8), images(1, 6)]))


def test_images_of_another_type_are_an_error() -> None:
    wrong: Any = images(2).astype(np.float32)
    with pytest.raises(DataError, match=r"a calibration image is float32 \(8, 8, 3\), expected uint8"):
        ImageSpool(iter([wrong]))


@pytest.mark.parametrize("count", [0, 1])
def test_no_image_is_an_error(count: int) -> None:
    with pytest.raises(DataError, match="not one calibration image could be read"):
        ImageSpool(iter([images(3)[:0]] * count))


def test_an_error_of_the_source_comes_through() -> None:
    def broken() -> Iterator[Images]:
        yield images(1)
        raise DataError("damaged")

    with pytest.raises(DataError, match="damaged"):
        ImageSpool(broken())

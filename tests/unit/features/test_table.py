from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgetune.core.errors import DataError
from edgetune.data.image_folder import ImageFile, SkippedFile
from edgetune.features.table import FeatureTable

FILES = tuple(ImageFile(Path(f"{index}.png"), index % 2) for index in range(6))


def _table() -> FeatureTable:
    """Six images; 1, 2 and 4 have two views, whose features are the image's number plus 0.1 and 0.2."""
    numbers = np.arange(6, dtype=np.float32).reshape(6, 1)
    viewed = np.array([1, 2, 4])
    return FeatureTable(
        features=numbers,
        labels=np.arange(6) % 2,
        files=FILES,
        hashes=tuple("abcdef"),
        skipped=(SkippedFile(Path("7.png"), "x"), SkippedFile(Path("8.png"), "y")),
        cached=np.array([True, False, True, True, False, False]),
        views=tuple(numbers[viewed] + np.float32(shift) for shift in (0.1, 0.2)),
        view_rows=viewed,
    )


def test_a_part_holds_the_rows_of_its_files_and_their_views() -> None:
    skipped = ImageFile(Path("8.png"), 0)
    part = _table().part([FILES[4], FILES[1], FILES[2], skipped])
    np.testing.assert_array_equal(part.features, [[1], [2], [4]])
    np.testing.assert_array_equal(part.labels, [1, 0, 0])
    assert part.files == (FILES[1], FILES[2], FILES[4])
    assert part.hashes == ("b", "c", "e")
    assert part.skipped == (SkippedFile(Path("8.png"), "y"),)
    assert part.from_cache == 1
    np.testing.assert_array_equal(part.view_rows, [0, 1, 2])
    np.testing.assert_allclose(part.views[0], part.features + 0.1, rtol=0, atol=1e-6)
    np.testing.assert_allclose(part.views[1], part.features + 0.2, rtol=0, atol=1e-6)


def test_a_part_may_have_views_of_some_rows_or_of_none() -> None:
    some, none = _table().part([FILES[3], FILES[4]]), _table().part([FILES[0], FILES[5]])
    np.testing.assert_array_equal(some.view_rows, [1])
    np.testing.assert_allclose(some.views[1], [[4.2]], rtol=0, atol=1e-6)
    assert [view.shape for view in none.views] == [(0, 1), (0, 1)]
    assert none.view_rows.shape == (0,)


def test_the_parts_counts_from_the_cache_add_up() -> None:
    table = _table()
    assert table.from_cache == table.part(FILES[:2]).from_cache + table.part(FILES[2:]).from_cache == 3


@pytest.mark.parametrize(("chosen", "shared"), [(slice(1, 4), True), (slice(0, 6, 2), False)])
def test_rows_that_lie_together_are_not_copied(chosen: slice, shared: bool) -> None:
    table = _table()
    assert np.shares_memory(table.part(FILES[chosen]).features, table.features) == shared


def test_a_part_without_rows_is_a_data_error() -> None:
    with pytest.raises(DataError, match="not one image of a split could be read"):
        _table().part([ImageFile(Path("7.png"), 0)])

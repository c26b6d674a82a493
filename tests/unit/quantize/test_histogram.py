"""Histograms: power-of-two growth, and counts that depend on neither order nor batching."""

from __future__ import annotations

from random import Random

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgetune.quantize.histogram import BINS, Histogram

Values = npt.NDArray[np.float32]

_ZERO_BIN = BINS // 2
_FLOATS = st.floats(-1e6, 1e6, width=32, allow_subnormal=False)


def _of(*batches: npt.ArrayLike) -> Histogram:
    histogram = Histogram()
    for batch in batches:
        values = np.asarray(batch, np.float32)
        histogram.add(values, float(values.min()), float(values.max()))
    return histogram


def _counted_exactly(values: Values, reach: float) -> npt.NDArray[np.int64]:
    """Bin by bin in float64, where every edge is exact."""
    edges = (np.arange(BINS + 1) - _ZERO_BIN) * (2.0 * reach / BINS)
    bins = np.searchsorted(edges, values.astype(np.float64), side="right") - 1
    return np.bincount(bins, minlength=BINS)


@pytest.mark.parametrize(
    ("highest", "reach"),
    [(0.3, 0.5), (0.5, 1.0), (0.99, 1.0), (1.0, 2.0), (3.0, 4.0), (-3.0, 4.0), (1024.0, 2048.0), (2.0**-20, 2.0**-19)],
)
def test_the_reach_is_the_next_power_of_two_above_the_largest_value(highest: float, reach: float) -> None:
    assert _of([highest, 0.0]).reach == reach


def test_values_at_bin_edges_belong_to_the_bin_that_starts_there() -> None:
    width = 2.0 * 1.0 / BINS  # 0.75 gives a reach of 1
    counts = _of([0.75, width, 0.0, -width, -2 * width]).counts
    expected = np.zeros(BINS, np.int64)
    expected[[_ZERO_BIN + int(0.75 / width), _ZERO_BIN + 1, _ZERO_BIN, _ZERO_BIN - 1, _ZERO_BIN - 2]] = 1
    np.testing.assert_array_equal(counts, expected)


def test_values_next_to_a_bin_edge_stay_on_their_side() -> None:
    """Adding half the number of bins in float32 would round them across it, or out of the last bin."""
    width = np.float32(2.0 / BINS)
    below = np.nextafter(width, np.float32(0))
    highest = np.nextafter(np.float32(1), np.float32(0))
    counts = _of([below, -np.float32(1e-30), highest, -highest]).counts
    expected = np.zeros(BINS, np.int64)
    expected[[_ZERO_BIN, _ZERO_BIN - 1, BINS - 1, 0]] = 1
    np.testing.assert_array_equal(counts, expected)


def test_a_value_exactly_at_the_reach_doubles_it() -> None:
    histogram = _of([0.75], [1.0], [-2.0])
    assert histogram.reach == 4.0
    assert histogram.counts.sum() == 3
    np.testing.assert_array_equal(histogram.counts, _counted_exactly(np.array([0.75, 1, -2], np.float32), 4.0))


def test_folding_gives_the_counts_of_a_histogram_that_was_wide_from_the_start() -> None:
    random = np.random.default_rng(0)
    small, large = random.normal(size=5000).astype(np.float32), (random.normal(size=50) * 300).astype(np.float32)
    grown, wide = _of(small, large), _of(large, small)
    assert grown.reach == wide.reach > 256
    np.testing.assert_array_equal(grown.counts, wide.counts)
    np.testing.assert_array_equal(grown.counts, _counted_exactly(np.concatenate([small, large]), grown.reach))


def test_zeros_alone_have_no_reach_and_are_kept_when_values_come() -> None:
    zeros = _of(np.zeros(7), np.zeros(4))
    assert (zeros.reach, zeros.low, zeros.high) == (0.0, 0.0, 0.0)
    assert zeros.counts[_ZERO_BIN] == zeros.counts.sum() == 11
    zeros.add(np.array([5.0], np.float32), 5.0, 5.0)
    assert zeros.counts[_ZERO_BIN] == 11
    assert zeros.counts[_ZERO_BIN + int(5 / (16 / BINS))] == 1


def test_extremes_beyond_the_samples_set_the_reach_and_are_not_counted() -> None:
    histogram = Histogram()
    histogram.add(np.array([1.0], np.float32), -9.0, 40.0)
    assert (histogram.low, histogram.high, histogram.reach) == (-9.0, 40.0, 64.0)
    assert histogram.counts.sum() == 1


@pytest.mark.parametrize("extreme", [np.finfo(np.float32).max, np.finfo(np.float32).tiny, 1e-45, 1e-40, 1e38])
def test_the_largest_and_smallest_floats_are_counted(extreme: float) -> None:
    histogram = _of([extreme, -extreme, 0.0])
    assert histogram.reach > float(np.float32(extreme))
    assert histogram.counts.sum() == 3
    assert (histogram.high, histogram.low) == (np.float32(extreme), -np.float32(extreme))


def test_centres_are_the_bins_middles_and_zero_for_zero() -> None:
    centres = _of([0.75]).centres()
    np.testing.assert_allclose(centres[[0, _ZERO_BIN - 1]], [-1 + 1 / BINS, -1 / BINS], rtol=0, atol=0)
    np.testing.assert_allclose(centres[[_ZERO_BIN, _ZERO_BIN + 1, -1]], [0, 3 / BINS, 1 - 1 / BINS], rtol=0, atol=0)


@settings(deadline=None, max_examples=200)
@given(st.lists(_FLOATS, min_size=1, max_size=60), st.randoms(use_true_random=False), st.integers(1, 60))
def test_order_and_batching_do_not_matter(values: list[float], shuffler: Random, size: int) -> None:
    at_once = _of(values)
    mixed = list(values)
    shuffler.shuffle(mixed)
    batched = _of(*[mixed[start : start + size] for start in range(0, len(mixed), size)])
    np.testing.assert_array_equal(batched.counts, at_once.counts)
    assert (batched.reach, batched.low, batched.high) == (at_once.reach, at_once.low, at_once.high)
    if at_once.reach:
        np.testing.assert_array_equal(at_once.counts, _counted_exactly(np.array(values, np.float32), at_once.reach))

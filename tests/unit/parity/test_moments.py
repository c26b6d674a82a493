"""Online sums against figures worked out by hand, and whatever the batches are."""

from __future__ import annotations

import math

import numpy as np
import pytest

from edgetune.parity.moments import ChannelMoments, CrossMoments, Moments, View


def test_sums_by_hand() -> None:
    """Signal 1 + 4 + 4 + 16 = 25, noise 0 + 1 + 0 + 0.25 = 1.25: a ratio of 20."""
    moments = Moments()
    moments.add(np.array([1.0, 2.0], np.float32), np.array([1.0, 3.0], np.float32))
    moments.add(np.array([-2.0, 4.0], np.float32), np.array([-2.0, 3.5], np.float32))
    assert (moments.signal, moments.noise, moments.max_abs_diff, moments.largest) == (25.0, 1.25, 1.0, 4.0)
    assert moments.sqnr_db == pytest.approx(13.0103, abs=1e-4)


def test_no_difference_is_none_and_no_number_is_minus_infinity() -> None:
    moments = Moments()
    moments.add(np.ones(2, np.float32), np.ones(2, np.float32))
    assert moments.sqnr_db is None
    moments.add(np.array([70000.0], np.float32), np.array([np.inf], np.float32))
    assert (moments.candidate_finite, moments.reference_finite, moments.largest) == (False, True, 70000.0)
    overflowed = Moments()
    overflowed.add(np.array([70000.0], np.float32), np.array([np.inf], np.float32))
    assert overflowed.sqnr_db == -math.inf


def test_squares_beyond_float32_are_still_summed() -> None:
    moments = Moments()
    moments.add(np.array([3e19], np.float32), np.array([0.0], np.float32))
    assert moments.sqnr_db == pytest.approx(0.0, abs=1e-6)


def test_the_affine_fit_of_each_channel() -> None:
    random = np.random.default_rng(0)
    r = random.normal(size=(6, 3, 4, 4)).astype(np.float32)
    factor, offset = np.array([2.0, -1.0, 1.0]), np.array([0.5, 0.0, -3.0])
    c = r * factor[:, None, None] + offset[:, None, None]
    moments = ChannelMoments()
    for rows in (slice(0, 1), slice(1, 6)):
        moments.add(r[rows], c[rows])
    fit = moments.fit()
    np.testing.assert_allclose(fit.factor, factor, rtol=0, atol=1e-9)
    np.testing.assert_allclose(fit.offset, offset, rtol=0, atol=1e-9)
    assert fit.left_db is None or fit.left_db > 120


def test_what_no_line_explains_is_left() -> None:
    """c = r + noise with a hundredth of the power: 20 dB are left, give or take what 6,000 samples tell."""
    random = np.random.default_rng(0)
    r = random.normal(size=(6000, 1))
    moments = ChannelMoments()
    moments.add(r, r + 0.1 * random.normal(size=r.shape))
    assert moments.fit().left_db == pytest.approx(20.0, abs=0.3)


def test_a_channel_that_does_not_vary_has_factor_one() -> None:
    moments = ChannelMoments()
    moments.add(np.full((4, 2), 2.0), np.full((4, 2), 5.0))
    fit = moments.fit()
    assert (fit.factor.tolist(), fit.offset.tolist(), fit.left_db) == ([1.0, 1.0], [3.0, 3.0], None)


def test_the_ratio_is_positive_or_one() -> None:
    moments = ChannelMoments()
    moments.add(np.array([[1.0, 1.0, 0.0], [3.0, 2.0, 0.0]]), np.array([[2.0, -1.0, 0.0], [6.0, -2.0, 0.0]]))
    assert moments.ratio().tolist() == [0.5, 1.0, 1.0]


def test_channels_that_changed_places() -> None:
    random = np.random.default_rng(0)
    r = random.normal(size=(5, 4, 3, 3))
    cross = CrossMoments()
    order = (2, 1, 0, 3)
    cross.add(r[:2], r[:2, order] * 3 + 1)
    cross.add(r[2:], r[2:, order] * 3 + 1)
    assert cross.permutation() == order


@pytest.mark.parametrize("kind", ["in order", "negated", "unrelated"])
def test_no_permutation(kind: str) -> None:
    random = np.random.default_rng(0)
    r = random.normal(size=(50, 4))
    c = {"in order": r * 2, "negated": -r, "unrelated": random.normal(size=(50, 4))}[kind]
    cross = CrossMoments()
    cross.add(r, c)
    assert cross.permutation() is None


def test_a_view_goes_both_ways() -> None:
    view = View(np.array([0.5, 2.0], np.float32), np.array([1.0, 0.0], np.float32))
    values = np.array([[[[4.0]], [[3.0]]]], np.float32)
    assert view.to_reference(values).reshape(-1).tolist() == [3.0, 6.0]
    assert view.to_candidate(view.to_reference(values)).tolist() == values.tolist()

from __future__ import annotations

import math

import numpy as np
import pytest

from edgetune.core.stats import (
    detectable_drop,
    drop_is_over,
    images_to_certify,
    paired_drop_interval,
    paired_drop_upper_bound,
    wilson_interval,
)

Z_TWO_SIDED = 1.959963984540054
Z_ONE_SIDED = 1.6448536269514722


@pytest.mark.parametrize(
    ("hits", "count", "low", "high"),
    [
        (8, 10, 0.49016, 0.94332),
        (0, 10, 0.0, 0.27753),
        (10, 10, 0.72247, 1.0),
        (81, 263, 0.2553, 0.3662),
        (1, 29, 0.0061, 0.1718),
    ],
    ids=["8 of 10", "none of 10", "all of 10", "81 of 263", "1 of 29"],
)
def test_the_wilson_interval_has_the_published_values(hits: int, count: int, low: float, high: float) -> None:
    """81/263 and 1/29 are Newcombe's (1998) examples: 0.2553 to 0.3662 and 0.0061 to 0.1718.

    8/10 by hand, with z*z = 3.84146: centre (0.8 + 0.192073) / 1.384146 = 0.716740, half width
    1.959964 * sqrt(0.016 + 0.009604) / 1.384146 = 0.226577.
    0/10: the upper end is z*z / (10 + z*z) = 3.84146 / 13.84146 = 0.277533; 10/10 mirrors it.
    """
    np.testing.assert_allclose(wilson_interval(hits, count), (low, high), rtol=0, atol=5e-5)


@pytest.mark.parametrize(("hits", "count"), [(1, 3), (50, 100), (997, 1000)])
def test_the_ends_of_the_interval_are_z_standard_errors_from_the_share(hits: int, count: int) -> None:
    for end in wilson_interval(hits, count):
        errors = abs(hits / count - end) / math.sqrt(end * (1 - end) / count)
        np.testing.assert_allclose(errors, Z_TWO_SIDED, rtol=1e-9, atol=0)


def test_no_images_tell_nothing() -> None:
    assert wilson_interval(0, 0) == (0.0, 1.0)


@pytest.mark.parametrize("count", [1, 2, 7, 1000])
def test_the_interval_stays_between_0_and_1(count: int) -> None:
    none_low, none_high = wilson_interval(0, count)
    all_low, all_high = wilson_interval(count, count)
    assert 0.0 <= none_low < none_high < 1.0
    assert 0.0 < all_low < all_high <= 1.0
    np.testing.assert_allclose([none_low, all_high], [0.0, 1.0], rtol=0, atol=1e-15)


@pytest.mark.parametrize(
    ("worse", "better", "count", "bound"),
    [
        (10, 4, 100, 0.120540),
        (4, 10, 100, 0.002893),
        (0, 0, 100, 0.016126),
        (0, 0, 1000, 0.001642),
        (3, 0, 50, 0.119572),
    ],
    ids=["worse", "better", "same", "same on many", "only worse"],
)
def test_the_paired_bound_has_the_worked_values(worse: int, better: int, count: int, bound: float) -> None:
    """Half an observation in each of the four cells makes 102 of 100 images and 10.5 of 10 worse ones.

    10 worse, 4 better of 100: drop 6 / 102 = 0.0588235, variance (15 - 36 / 102) / 102**2 = 0.00140783,
    bound 0.0588235 + 1.644854 * 0.0375210 = 0.120540. None of 100: 1.644854 * sqrt(1) / 102 = 0.016126.
    3 worse of 50: 3 / 52 + 1.644854 * sqrt(4 - 9 / 52) / 52 = 0.0576923 + 0.0618798 = 0.119572.
    """
    np.testing.assert_allclose(paired_drop_upper_bound(worse, better, count), bound, rtol=0, atol=1e-6)


def test_the_paired_bound_holds_about_95_times_in_100() -> None:
    """A true drop of 2 points, on 400 images: 6 % worse, 4 % better; 20,000 draws, standard error 0.0015."""
    draws = np.random.default_rng(0).multinomial(400, (0.06, 0.04, 0.90), size=20_000)
    pairs, counts = np.unique(draws[:, :2], axis=0, return_counts=True)
    holds = [paired_drop_upper_bound(int(worse), int(better), 400) >= 0.02 for worse, better in pairs]
    share = float(np.dot(holds, counts)) / 20_000
    np.testing.assert_allclose(share, 0.95, rtol=0, atol=0.01)


def test_certifying_without_any_difference_takes_163_images_for_one_percent() -> None:
    """1.644854 / (n + 2) <= 0.01 needs n >= 162.49."""
    assert images_to_certify(0.01, 0.0) == 163


@pytest.mark.parametrize(
    ("budget", "discordant"), [(0.01, 0.02), (0.01, 0.1), (0.005, 0.05), (0.02, 0.5), (0.5, 0.0), (1.0, 1.0)]
)
def test_the_count_is_the_smallest_that_meets_the_budget(budget: float, discordant: float) -> None:
    def bound(count: int) -> float:
        return Z_ONE_SIDED * math.sqrt(discordant * count + 1) / (count + 2)

    count = images_to_certify(budget, discordant)
    assert bound(count) <= budget
    assert count == 1 or bound(count - 1) > budget


def test_that_many_images_do_certify() -> None:
    count = images_to_certify(0.01, 0.02)
    each = math.floor(0.02 * count / 2)
    assert paired_drop_upper_bound(each, each, count) <= 0.01
    assert paired_drop_upper_bound(each, each, count // 2) > 0.01


def test_the_paired_interval_has_the_worked_values() -> None:
    """The same 10 worse and 4 better of 100: 0.0588235 -+ 1.959964 * 0.0375210."""
    np.testing.assert_allclose(paired_drop_interval(10, 4, 100), (-0.014716, 0.132363), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("budget", "worse", "better", "count", "tests", "over"),
    [
        (0.0, 5, 0, 1000, 1, True),
        (0.0, 4, 0, 1000, 1, False),
        (0.01, 6, 0, 153, 1, True),
        (0.01, 5, 0, 153, 1, False),
        (0.0, 8, 1, 1000, 1, True),
        (0.0, 6, 1, 1000, 1, False),
        (0.0, 5, 0, 1000, 2, False),
        (0.0, 6, 0, 1000, 2, True),
        (0.05, 3, 0, 100, 1, False),
        (0.0, 0, 9, 100, 1, False),
    ],
)
def test_a_drop_is_proven_by_its_bound_and_by_the_sign_test(
    budget: float, worse: int, better: int, count: int, tests: int, over: bool
) -> None:
    """Signs: 1/32 and 1/16; (1 + 9) / 512, (1 + 7) / 128 = 0.0625; shared by two: 0.025. Bounds, of 153 images: 6 lost:
    6 / 155 - 1.644854 * sqrt(7 - 36 / 155) / 155 = 0.0111; 5 lost: 0.0064.
    """
    assert drop_is_over(budget, worse, better, count, tests=tests) is over


@pytest.mark.parametrize(
    ("shares", "budget"), [((0.05, 0.05), 0.0), ((0.10, 0.0), 0.10), ((0.02, 0.01), 0.01)], ids=["none", "10 %", "1 %"]
)
def test_a_drop_within_its_budget_is_a_false_alarm_in_at_most_5_of_100(
    shares: tuple[float, float], budget: float
) -> None:
    """1000 images whose true drop is the budget; 5 % and three standard errors of 20,000 draws."""
    draws = np.random.default_rng(1).multinomial(1000, (*shares, 1.0 - sum(shares)), size=20_000)
    pairs, counts = np.unique(draws[:, :2], axis=0, return_counts=True)
    alarms = [drop_is_over(budget, int(worse), int(better), 1000) for worse, better in pairs]
    assert 0.005 < np.dot(alarms, counts) / 20_000 <= 0.055


@pytest.mark.parametrize(("share", "drop", "count"), [(0.05, 0.05, 154.6), (0.2, 0.05, 625.0), (0.02, 0.01, 1564.9)])
def test_the_detectable_drop_solves_connors_equation(share: float, drop: float, count: float) -> None:
    """n = (1.959964 sqrt(p) + 0.841621 sqrt(p - d^2))^2 / d^2 (Connor 1987); for p = 0.2, d = 0.05:
    (0.876523 + 0.374021)^2 / 0.0025 = 625.5.
    """
    np.testing.assert_allclose(detectable_drop(share, round(count)), drop, rtol=0.002, atol=0)


def test_that_drop_is_detected_about_80_times_in_100() -> None:
    """Drawn: 7.5 % worse and 2.5 % better of 310 images; p = 0.1, d = 0.05 needs 305."""
    assert detectable_drop(0.1, 310) == pytest.approx(0.05, rel=0.02)
    draws = np.random.default_rng(2).multinomial(310, (0.075, 0.025, 0.90), size=20_000)
    z = (draws[:, 0] - draws[:, 1]) / np.sqrt(np.maximum(draws[:, 0] + draws[:, 1], 1))
    np.testing.assert_allclose(np.mean(z > Z_TWO_SIDED), 0.80, rtol=0, atol=0.03)


def test_no_number_of_images_shows_less_than_nothing() -> None:
    assert 0.0 < detectable_drop(0.0, 10**6) < 1e-4
    assert detectable_drop(0.5, 1) == 1.0

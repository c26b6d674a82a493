from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest

from edgetune.core.errors import EdgetuneError
from edgetune.parity.metrics import ClassCount, Comparison, compare_logits

NAN, INF = math.nan, math.inf


def _logits(*rows: list[float]) -> npt.NDArray[np.float32]:
    return np.array(rows, dtype=np.float32)


def _labels(*labels: int) -> npt.NDArray[np.int64]:
    return np.array(labels, dtype=np.int64)


def _compare(reference: list[list[float]], candidate: list[list[float]]) -> Comparison:
    return compare_logits(_logits(*reference), _logits(*candidate), None)


@pytest.mark.parametrize(
    ("reference", "candidate", "sqnr_db"),
    [
        ([[3.0, 4.0]], [[3.03, 4.04]], 40.0),
        ([[3.0, 4.0]], [[2.97, 3.96]], 40.0),
        ([[1.0, 0.0], [0.0, 1.0]], [[1.0, 1.0], [0.0, 1.0]], 3.0103),
        ([[1.0, 0.0]], [[2.0, 3.0]], -10.0),
        ([[2.0, 0.0]], [[-2.0, 0.0]], -6.0206),
    ],
    ids=["power 25 over 0.0025", "other side", "power 2 over 1", "power 1 over 10", "sign"],
)
def test_sqnr_is_the_ratio_of_powers_in_decibels(
    reference: list[list[float]], candidate: list[list[float]], sqnr_db: float
) -> None:
    """10 log10 of: 25 / 0.0025 = 10**4; 2 / 1; 1 / (1 + 9); 4 / 16."""
    found = _compare(reference, candidate)
    assert found.sqnr_db is not None
    np.testing.assert_allclose(found.sqnr_db, sqnr_db, rtol=0, atol=1e-4)


def test_no_difference_has_no_sqnr() -> None:
    found = _compare([[3.0, 4.0]], [[3.0, 4.0]])
    assert (found.sqnr_db, found.max_abs_diff, found.top1_agreement, found.finite) == (None, 0.0, 1.0, True)


def test_a_difference_from_nothing_is_infinitely_bad() -> None:
    assert _compare([[0.0, 0.0]], [[0.0, 0.5]]).sqnr_db == -INF


def test_small_differences_of_large_logits_are_not_rounded_away() -> None:
    """One float32 step at 1000 is 2**-14; 1000**2 over its square is 60 + 84.288 dB."""
    found = _compare([[1000.0]], [[1000.0 + 2**-14]])
    assert found.max_abs_diff == 2**-14
    assert found.sqnr_db is not None
    np.testing.assert_allclose(found.sqnr_db, 144.288, rtol=0, atol=1e-3)


def test_the_largest_logits_do_not_overflow() -> None:
    found = _compare([[3e38, -3e38]], [[-3e38, 3e38]])
    assert found.finite
    np.testing.assert_allclose(found.max_abs_diff, 6e38, rtol=1e-6, atol=0)
    assert found.sqnr_db is not None
    np.testing.assert_allclose(found.sqnr_db, -6.0206, rtol=0, atol=1e-4)


def test_the_largest_difference_and_logit_are_absolute() -> None:
    found = _compare([[1.0, -7.0], [2.0, 3.0]], [[1.5, -7.0], [2.0, 0.5]])
    assert (found.images, found.max_abs_diff, found.reference_max_abs) == (2, 2.5, 7.0)


def test_agreement_counts_equal_labels() -> None:
    reference = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]
    candidate = [[9.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 2.0, 1.0], [1.0, 0.0, 0.5]]
    found = _compare(reference, candidate)
    assert (found.flip_margins, found.top1_agreement) == ((1.0,), 0.75)


def test_accuracies_and_the_drop_are_paired() -> None:
    """Six images: 0 and 1 both right, 2 and 3 only the reference, 4 only the candidate, 5 neither."""
    first, second = [1.0, 0.0], [0.0, 1.0]
    reference = _logits(first, second, first, second, first, second)
    candidate = _logits(first, second, second, first, second, second)
    found = compare_logits(reference, candidate, _labels(0, 1, 0, 1, 1, 0))
    assert found.reference_accuracy == 4 / 6
    assert found.candidate_accuracy == 3 / 6
    assert found.drop is not None
    assert found.drop_upper_bound is not None
    np.testing.assert_allclose(found.drop, 1 / 6, rtol=1e-12, atol=0)
    bound = 1 / 8 + 1.6448536 * math.sqrt((2 + 1 + 1) - 1 / 8) / 8
    np.testing.assert_allclose(found.drop_upper_bound, bound, rtol=1e-6, atol=0)


def test_a_better_candidate_has_a_negative_drop() -> None:
    found = compare_logits(_logits([0.0, 1.0]), _logits([1.0, 0.0]), _labels(0))
    assert (found.reference_accuracy, found.candidate_accuracy, found.drop) == (0.0, 1.0, -1.0)


def test_without_labels_there_are_no_accuracies() -> None:
    found = _compare([[1.0, 0.0]], [[1.0, 0.5]])
    accuracies = (found.reference_accuracy, found.candidate_accuracy, found.drop, found.drop_upper_bound)
    assert accuracies == (None, None, None, None)


@pytest.mark.parametrize(
    ("reference", "candidate"),
    [
        ([1.0, 0.0], [NAN, 0.0]),
        ([1.0, 0.0], [1.0, INF]),
        ([1.0, 0.0], [-INF, 0.0]),
        ([NAN, 0.0], [1.0, 0.0]),
        ([INF, 0.0], [1.0, 0.0]),
        ([INF, 0.0], [INF, 0.0]),
        ([-INF, INF], [INF, -INF]),
        ([NAN, NAN], [NAN, NAN]),
    ],
    ids=[
        "NaN",
        "infinity",
        "minus infinity",
        "reference NaN",
        "reference infinity",
        "both infinity",
        "flipped",
        "both NaN",
    ],
)
def test_nan_and_infinity_make_a_comparison_not_finite(reference: list[float], candidate: list[float]) -> None:
    found = compare_logits(_logits(reference, [0.0, 1.0]), _logits(candidate, [0.0, 1.0]), _labels(0, 1))
    assert not found.finite
    assert found.max_abs_diff == INF
    assert found.sqnr_db is None


def test_a_flip_keeps_how_far_apart_the_reference_held_the_labels() -> None:
    found = _compare([[1.5, 1.0, 0.0], [5.0, 0.0, 1.0]], [[1.5, 1.75, 0.0], [5.0, 0.0, 6.0]])
    assert found.flip_margins == (0.5, 4.0)


@pytest.mark.parametrize(
    ("reference", "candidate"),
    [((3, 2), (2, 2)), ((3, 2), (1, 2)), ((3, 2), (3, 1))],
    ids=["fewer classes on one image", "one candidate row", "one candidate column"],
)
def test_logits_of_other_shapes_are_not_compared(reference: tuple[int, int], candidate: tuple[int, int]) -> None:
    with pytest.raises((EdgetuneError, ValueError)):
        compare_logits(np.ones(reference, np.float32), np.ones(candidate, np.float32), None)


def test_empty_logits_are_not_compared() -> None:
    with pytest.raises(EdgetuneError):
        compare_logits(np.ones((0, 3), np.float32), np.ones((0, 3), np.float32), None)


def test_the_divergence_of_worked_probabilities() -> None:
    """Row 0: 1/2, 1/2 against 1/4, 3/4: 0.5 ln 2 + 0.5 ln(2/3) = 0.143841. Row 1: no difference but a constant."""
    reference = _logits([0.0, 0.0], [1.0, 2.0])
    candidate = _logits([0.0, math.log(3.0)], [5.0, 6.0])
    found = compare_logits(reference, candidate, None)
    assert found.kl_mean is not None
    assert found.kl_p99 is not None
    np.testing.assert_allclose(found.kl_mean, 0.143841 / 2, rtol=1e-5, atol=0)
    np.testing.assert_allclose(found.kl_p99, 0.143841 * 0.99, rtol=1e-5, atol=0)


def test_a_probability_of_nothing_has_a_finite_divergence() -> None:
    found = _compare([[0.0, 2000.0]], [[2000.0, 0.0]])
    assert found.kl_mean == pytest.approx(2000.0, rel=1e-9)


def test_noise_and_signal_are_without_their_rows_mean() -> None:
    """Reference rows (-1, 1) and (-3, 3) about their means: rms sqrt(5); differences (1, 3) and (-2, 2): (-1, 1) and
    (-2, 2) about theirs: rms sqrt(2.5).
    """
    found = _compare([[9.0, 11.0], [-3.0, 3.0]], [[10.0, 14.0], [-5.0, 5.0]])
    np.testing.assert_allclose([found.reference_rms, found.noise_rms], [5.0**0.5, 2.5**0.5], rtol=1e-12, atol=0)


def test_margins_of_lost_and_won_images() -> None:
    """0: lost by 2; 1: won by 1; 2: both wrong, labels differ by 0.5; 3: both right."""
    reference = _logits([2.0, 0.0, -1.0], [1.0, 0.0, -1.0], [0.5, 0.0, -1.0], [1.0, 0.0, 0.0])
    candidate = _logits([0.0, 2.0, -1.0], [0.0, 1.0, -1.0], [0.0, 0.5, -1.0], [1.0, 0.0, 0.0])
    found = compare_logits(reference, candidate, _labels(0, 1, 2, 0))
    assert (found.flip_rows, found.flip_margins) == ((0, 1, 2), (2.0, 1.0, 0.5))
    assert (found.lost_margins, found.won_margins) == ((2.0,), (1.0,))


def test_classes_are_counted_by_themselves() -> None:
    first, second = [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]
    reference = _logits(first, first, second, second)
    candidate = _logits(first, second, second, first)
    found = compare_logits(reference, candidate, _labels(0, 0, 0, 1))
    assert found.per_class == (ClassCount(0, 3, 2, 1, 1, 0), ClassCount(1, 1, 1, 0, 1, 0))


def test_the_interval_of_the_drop_has_the_worked_ends() -> None:
    """10 images, 2 lost: drop 2 / 12, variance (3 - 4 / 12) / 144 = 0.0185185; 1.959964 * 0.136083 = 0.266717."""
    right, wrong = [1.0, 0.0], [0.0, 1.0]
    found = compare_logits(_logits(*[right] * 10), _logits(*[right] * 8, wrong, wrong), _labels(*[0] * 10))
    assert found.drop_ci95 is not None
    np.testing.assert_allclose(found.drop_ci95, (1 / 6 - 0.266717, 1 / 6 + 0.266717), rtol=0, atol=1e-6)

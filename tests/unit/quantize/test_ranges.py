"""Scales and zero points worked by hand, and ranges held against quantizing the values themselves."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgetune.core.errors import UsageError
from edgetune.quantize.histogram import Histogram
from edgetune.quantize.ranges import RangeChoice, choose_range, to_params
from edgetune.quantize.targets import TARGETS, find_target

X86, ARM, TENSORRT = TARGETS["cpu-x86"], TARGETS["cpu-arm"], TARGETS["tensorrt"]
Values = npt.NDArray[np.float32]

# target, low, high -> scale, zero point
_BY_HAND = [
    ("cpu-x86", 0.0, 25.5, 0.1, 0),
    ("cpu-x86", -1.0, 1.55, 0.01, 100),
    ("cpu-x86", -25.5, 0.0, 0.1, 255),
    ("cpu-x86", 5.0, 25.5, 0.1, 0),  # widened to hold 0
    ("cpu-x86", -51.0, -10.0, 0.2, 255),
    ("cpu-x86", -1.004, 1.546, 0.01, 100),  # 100.4 steps below 0
    ("cpu-arm", 0.0, 25.5, 0.1, -128),
    ("cpu-arm", -1.0, 1.55, 0.01, -28),
    ("cpu-arm", -25.5, 0.0, 0.1, 127),
    ("cpu-arm", 5.0, 25.5, 0.1, -128),
    ("tensorrt", 0.0, 12.7, 0.1, 0),
    ("tensorrt", -25.4, 12.7, 0.2, 0),
    ("tensorrt", -1.0, 25.4, 0.2, 0),
    ("tensorrt", 3.0, 12.7, 0.1, 0),
]


@pytest.mark.parametrize(("target", "low", "high", "scale", "zero_point"), _BY_HAND)
def test_scales_and_zero_points_are_those_worked_by_hand(
    target: str, low: float, high: float, scale: float, zero_point: int
) -> None:
    params = to_params(low, high, TARGETS[target])
    np.testing.assert_allclose(params.scale, scale, rtol=1e-6, atol=0)
    assert params.zero_point == zero_point
    assert params.scale.dtype == np.float32


@pytest.mark.parametrize(("target", "zero_point"), [("cpu-x86", 0), ("cpu-arm", -128), ("tensorrt", 0)])
@pytest.mark.parametrize("reach", [0.0, 1e-30])
def test_a_range_of_nothing_gets_a_finite_positive_scale(target: str, zero_point: int, reach: float) -> None:
    params = to_params(0.0, reach, TARGETS[target])
    assert np.isfinite(params.scale)
    assert params.scale > 0
    assert params.zero_point == zero_point


@settings(deadline=None)
@given(st.floats(-1e30, 1e30), st.floats(-1e30, 1e30), st.sampled_from(sorted(TARGETS)))
def test_zero_is_exact_and_the_range_is_covered_to_half_a_step(first: float, second: float, name: str) -> None:
    target, low, high = TARGETS[name], min(first, second), max(first, second)
    params = to_params(low, high, target)
    scale, (lowest, highest) = float(params.scale), target.limits
    assert lowest <= params.zero_point <= highest  # so that the integer `zero_point` stands for 0.0
    assert (lowest - params.zero_point) * scale <= min(low, 0.0) + 0.51 * scale
    assert (highest - params.zero_point) * scale >= max(high, 0.0) - 0.51 * scale


def test_limits_are_those_of_the_type_and_symmetric_without_minus_128() -> None:
    assert (X86.limits, ARM.limits, TENSORRT.limits) == ((0, 255), (-128, 127), (-127, 127))


def test_an_unknown_target_names_those_there_are() -> None:
    assert find_target("cpu-arm") is ARM
    with pytest.raises(UsageError, match="'npu' is not supported; supported: cpu-x86, cpu-arm, tensorrt"):
        find_target("npu")


def _histogram(values: Values) -> Histogram:
    histogram = Histogram()
    histogram.add(values, float(values.min()), float(values.max()))
    return histogram


def _weighted_error(values: Values, low: float, high: float, lowest: int, highest: int, *, symmetric: bool) -> float:
    """Every value quantized and back, written out; what is clipped weighs ten times."""
    if symmetric:
        scale, zero = max(-low, high) / highest, 0.0
    else:
        scale = (high - low) / (highest - lowest)
        zero = np.round(lowest - low / scale)
    exact = values.astype(np.float64)
    integers = np.clip(np.round(exact / scale) + zero, lowest, highest)
    error = np.square((integers - zero) * scale - exact)
    outside = (exact < (lowest - zero) * scale) | (exact > (highest - zero) * scale)
    return float(np.where(outside, 10.0 * error, error).mean())


def _sample(kind: str, count: int = 200_000) -> Values:
    random = np.random.default_rng(3)
    drawn = {
        "uniform": random.uniform(-1.0, 2.0, count),
        "normal": random.normal(size=count),
        "relu": np.maximum(random.normal(size=count), 0.0),
        "heavy": random.standard_t(3, count),
        "outlier": np.append(random.normal(size=count), [80.0, -75.0]),
    }
    return drawn[kind].astype(np.float32)


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_uniform_values_keep_their_extremes(name: str) -> None:
    choice = choose_range(_histogram(_sample("uniform")), TARGETS[name])
    np.testing.assert_allclose([choice.low, choice.high], [-1.0, 2.0], rtol=0, atol=2 * 4 / 2048)  # two bins


@pytest.mark.parametrize("kind", ["heavy", "outlier"])
@pytest.mark.parametrize("name", sorted(TARGETS))
def test_far_outliers_are_clipped(kind: str, name: str) -> None:
    values = _sample(kind)
    choice = choose_range(_histogram(values), TARGETS[name])
    assert choice.method != "min-max"
    assert float(values.min()) < choice.low < choice.high < float(values.max())


@pytest.mark.parametrize("kind", ["uniform", "normal", "relu", "heavy", "outlier"])
@pytest.mark.parametrize("name", sorted(TARGETS))
def test_the_reported_error_is_that_of_quantizing_the_values(kind: str, name: str) -> None:
    values, target = _sample(kind), TARGETS[name]
    choice = choose_range(_histogram(values), target)
    low, high = min(choice.low, 0.0), max(choice.high, 0.0)
    error = _weighted_error(values, low, high, *target.limits, symmetric=target.symmetric)
    np.testing.assert_allclose(choice.mse, error, rtol=0.1, atol=0)
    power = float(np.square(values, dtype=np.float64).mean())
    np.testing.assert_allclose(choice.sqnr_db, 10 * math.log10(power / error), rtol=0, atol=0.5)


@pytest.mark.parametrize("kind", ["uniform", "normal", "relu", "heavy", "outlier"])
@pytest.mark.parametrize("name", sorted(TARGETS))
def test_no_choice_is_worse_than_the_extremes(kind: str, name: str) -> None:
    values, target = _sample(kind), TARGETS[name]
    choice = choose_range(_histogram(values), target)
    ends = min(float(values.min()), 0.0), max(float(values.max()), 0.0)
    extremes = _weighted_error(values, *ends, *target.limits, symmetric=target.symmetric)
    assert choice.mse <= 1.1 * extremes


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_zeros_alone_have_no_error(name: str) -> None:
    choice = choose_range(_histogram(np.zeros(9, np.float32)), TARGETS[name])
    assert choice == RangeChoice(0.0, 0.0, "min-max", 0.0, math.inf)


@pytest.mark.parametrize("name", sorted(TARGETS))
@pytest.mark.parametrize("value", [3.0e38, -3.0e38, 1e-40, 7.0])
def test_one_value_alone_is_represented(name: str, value: float) -> None:
    target = TARGETS[name]
    choice = choose_range(_histogram(np.full(5, value, np.float32)), target)
    params = to_params(choice.low, choice.high, target)
    lowest, highest = target.limits
    scale = float(params.scale)
    assert (lowest - params.zero_point) * scale - scale <= value <= (highest - params.zero_point) * scale + scale

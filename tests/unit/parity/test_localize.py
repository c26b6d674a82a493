"""Who is to blame, from curves whose levels are given."""

from __future__ import annotations

import math

import numpy as np
import pytest

from edgetune.parity.localize import Curve, Point, bisect, find_culprit, ranking


def _curve(name: str, injected: float | None, cumulative: float | None = None, expected: float | None = None) -> Curve:
    """Levels in dB; a signal of power 1 with the noise that gives them."""
    curve = Curve(Point(name, f"module.{name}", name, name, expected))
    for moments, level in (
        (curve.injected, injected),
        (curve.cumulative, injected if cumulative is None else cumulative),
    ):
        moments.signal = 1.0
        moments.noise = 0.0 if level is None else 10.0 ** (-level / 10.0)
    return curve


def test_fp32_blames_the_first_block_below_its_gate() -> None:
    curves = [_curve("a", None), _curve("b", 130.0), _curve("c", 12.0), _curve("d", 140.0, 11.0), _curve("e", 9.0)]
    found = find_culprit(curves, "fp32")
    assert found.index == 2
    assert "12.0 dB" in found.reason
    assert "100 dB" in found.reason


def test_a_network_that_is_noisy_everywhere_has_no_culprit() -> None:
    """The median is 95 dB, so the gate is at 75 dB instead of 100 dB."""
    curves = [_curve(name, level) for name, level in (("a", 95.0), ("b", 90.0), ("c", 99.0))]
    found = find_culprit(curves, "fp32")
    assert found.index is None
    assert "errors add up" in found.reason


def test_errors_that_only_grow_have_no_culprit_but_a_ranking() -> None:
    curves = [_curve("a", 60.0), _curve("b", 55.0, 40.0), _curve("c", 70.0, 30.0)]
    found = find_culprit(curves, "fp16")
    assert found.index is None
    assert "b (55.0 dB), a (60.0 dB), c (70.0 dB)" in found.reason
    assert [curve.point.block for curve in ranking(curves)] == ["b", "a", "c"]


def test_the_first_nan_is_to_blame_whatever_else_is() -> None:
    curves = [_curve("a", 10.0), _curve("b", 130.0), _curve("c", 130.0)]
    curves[1].injected.candidate_finite = False
    assert find_culprit(curves, "fp32").index == 1


def test_nan_in_the_reference_is_no_fault_of_the_candidate() -> None:
    curves = [_curve("a", 130.0), _curve("b", 130.0), _curve("c", 130.0)]
    curves[1].injected.candidate_finite = curves[1].injected.reference_finite = False
    found = find_culprit([curves[0], curves[2]], "fp32")
    assert found.index is None


@pytest.mark.parametrize(("injected", "cumulative", "blamed"), [
    (5.0, 5.0, True),  # 25 dB expected
    (18.0, 18.0, True),
    (20.0, 18.0, False),  # within 6 dB of what calibration saw
    (18.0, 24.0, False),  # the network as a whole makes up for it
    (40.0, 10.0, False),  # what comes in is wrong, not this block
])  # fmt: skip
def test_int8_is_held_to_what_calibration_saw(injected: float, cumulative: float, blamed: bool) -> None:
    curves = [_curve("a", 40.0, 40.0, 40.0), _curve("b", injected, cumulative, 25.0), _curve("c", 41.0, 30.0, 30.0)]
    assert find_culprit(curves, "int8").index == (1 if blamed else None)


@pytest.mark.parametrize(("injected", "blamed"), [(27.0, True), (29.0, False)])
def test_int8_without_a_record_is_held_to_the_median(injected: float, blamed: bool) -> None:
    """The median is 40 dB, 12 dB under it is the limit."""
    curves = [_curve("a", 40.0), _curve("b", injected), _curve("c", 41.0)]
    assert find_culprit(curves, "int8").index == (1 if blamed else None)


def test_what_an_activation_lets_through_of_the_recorded_noise() -> None:
    """A product of power 8 in 4 values, 20 dB: noise 0.08. Two of four values pass, of power 6: noise 0.04 of 6, and
    the range's 30 dB add a thousandth: 0.04 / 6 + 0.001 = 0.0076667, which is 21.15 dB.
    """
    curve = Curve(Point("c", "", "r", "c", 20.0, 30.0))
    product = np.array([1.0, -1.0, math.sqrt(5.0), -1.0])
    passed = np.maximum(product, 0.0)
    curve.injected.signal = float(np.square(passed).sum())
    curve.see_product(product, passed)
    assert curve.expected_db == pytest.approx(21.154, abs=1e-3)


@pytest.mark.parametrize("first", range(13))
def test_bisection_finds_the_first_and_builds_few(first: int) -> None:
    tried = []

    def is_wrong(index: int) -> bool:
        tried.append(index)
        return index >= first

    assert bisect(13, is_wrong) == first
    assert len(tried) <= 1 + math.ceil(math.log2(13))


def test_bisection_of_what_is_right() -> None:
    assert bisect(13, lambda _: False) is None
    assert bisect(0, lambda _: True) is None


def test_a_record_keeps_minus_infinity_as_a_number() -> None:
    curve = _curve("a", 30.0)
    curve.cumulative.candidate_finite = False
    record = curve.record()
    assert record.cumulative_db == -1000.0
    assert record.injected_db == pytest.approx(30.0)
    assert record.max_abs_diff is None

from __future__ import annotations

import math

import numpy as np
import pytest

from edgetune.core.bundle import FAIL, PASS
from edgetune.core.errors import TensorError
from edgetune.parity.distance import RunningDistance, without_labels
from edgetune.parity.gate_set import DEFAULT_GATES
from edgetune.parity.gates import judge


def test_sums_over_batches_are_those_of_the_whole() -> None:
    """Signal 1 + 4 + 9 + 16 = 30, noise 0.01 + 0.04 = 0.05: 10 log10 of 600 is 27.78 dB."""
    distance = RunningDistance()
    distance.add(np.array([[1.0], [2.0]]), np.array([[1.1], [2.0]]))
    distance.add(np.array([[3.0], [-4.0]]), np.array([[3.0], [-3.8]]))
    found = distance.comparison()
    assert (found.images, found.finite, found.reference_max_abs) == (4, True, 4.0)
    assert found.max_abs_diff == pytest.approx(0.2, rel=1e-12)
    assert found.sqnr_db == pytest.approx(10 * math.log10(600), rel=1e-9)


def test_integers_do_not_wrap() -> None:
    distance = RunningDistance()
    distance.add(np.array([200], np.uint8), np.array([210], np.uint8))
    assert distance.comparison().max_abs_diff == 10.0


@pytest.mark.parametrize(
    ("reference", "candidate", "whose"),
    [(np.nan, 1.0, "reference"), (1.0, np.inf, "candidate"), (np.inf, np.inf, "reference and candidate")],
)
def test_what_is_not_finite_fails_and_tells_whose(reference: float, candidate: float, whose: str) -> None:
    distance = RunningDistance()
    distance.add(np.array([reference]), np.array([candidate]))
    distance.add(np.array([1.0]), np.array([1.0]))
    assert distance.not_finite == whose
    assert judge(distance.comparison(), without_labels(DEFAULT_GATES.fp32)).verdict == FAIL


def test_other_shapes_are_an_error() -> None:
    with pytest.raises(TensorError, match=r"the reference's output is \(2, 3\), the candidate's \(2, 1\)"):
        RunningDistance().add(np.zeros((2, 3)), np.zeros((2, 1)))


@pytest.mark.parametrize(("noise", "verdict"), [(0.17, PASS), (0.18, FAIL)])
def test_an_int8_output_without_labels_is_not_passed_unjudged(noise: float, verdict: str) -> None:
    """15 dB are noise of 10^-0.75 = 0.178 of the signal."""
    distance = RunningDistance()
    distance.add(np.array([[1.0, -1.0]]), np.array([[1.0 + noise, -1.0 + noise]]))
    assert judge(distance.comparison(), without_labels(DEFAULT_GATES.int8)).verdict == verdict


def test_a_gate_that_judges_distances_keeps_its_own_floor() -> None:
    gate = without_labels(DEFAULT_GATES.fp16)
    assert (gate.min_sqnr_db, gate.min_agreement, gate.max_drop, gate.max_kl, gate.max_class_drop) == (
        35.0, None, None, None, None,
    )  # fmt: skip

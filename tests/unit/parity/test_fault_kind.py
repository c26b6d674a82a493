"""Classes of fault that files alone rarely show."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from edgetune.parity.fault_kind import (
    BATCH_NORM,
    CLIPPING,
    FUSION,
    SCALE,
    SIGN,
    UNKNOWN,
    WEIGHTS,
    ZERO_POINT,
    Evidence,
    Saturation,
    classify,
)
from edgetune.parity.moments import ChannelFit, Moments


def _evidence(precision: str = "int8", sqnr_db: float = 5.0) -> Evidence:
    moments = Moments()
    moments.signal, moments.noise = 1.0, 10.0 ** (-sqnr_db / 10.0)
    return Evidence(precision, "y", moments)


def _fit(factor: list[float], offset: list[float], left_db: float | None = None) -> ChannelFit:
    return ChannelFit(np.array(factor), np.array(offset), left_db, np.ones(len(factor)))


@pytest.mark.parametrize(("fit", "precision", "kind"), [
    (_fit([-1.0, -1.0], [2.0, 0.0]), "fp32", SIGN),
    (_fit([4.0, 4.0], [0.0, 1.0]), "int8", SCALE),
    (_fit([4.0, 4.0], [0.0, 1.0]), "fp32", WEIGHTS),
    (_fit([1.0, 1.0], [0.7, 0.7]), "int8", ZERO_POINT),
    (_fit([1.0, 1.0], [0.7, -0.7]), "int8", BATCH_NORM),
    (_fit([1.0, 1.7], [0.0, 0.0]), "fp32", BATCH_NORM),
    (_fit([4.0, 4.0], [0.0, 0.0], left_db=8.0), "int8", UNKNOWN),  # the line explains too little
])  # fmt: skip
def test_kinds_from_the_line_through_the_values(fit: ChannelFit, precision: str, kind: str) -> None:
    assert classify(dataclasses.replace(_evidence(precision), fit=fit)).kind == kind


@pytest.mark.parametrize(("seen", "kind"), [
    (Saturation("x", 0.02, 0.0, 1.5), CLIPPING),
    (Saturation("x", 0.001, 0.0, 2.5), CLIPPING),
    (Saturation("x", 0.001, 0.0, 1.2), UNKNOWN),
    (Saturation("x", 0.0, 0.0, 0.25), SCALE),
    (Saturation("x", 0.0, 0.0, 0.5), UNKNOWN),
])  # fmt: skip
def test_kinds_from_how_a_range_is_used(seen: Saturation, kind: str) -> None:
    assert classify(dataclasses.replace(_evidence(), saturation=(seen,))).kind == kind


def test_a_graph_that_is_right_without_optimizations_was_fused_wrongly() -> None:
    evidence = dataclasses.replace(_evidence("fp32"), unfused_db=140.0, wants_db=90.0)
    assert classify(evidence).kind == FUSION
    assert classify(dataclasses.replace(evidence, unfused_db=6.0)).kind == UNKNOWN


def test_the_record_goes_before_the_pattern_and_weights_are_told_as_well() -> None:
    fit = _fit([4.0, 4.0], [0.0, 0.0])
    found = classify(
        dataclasses.replace(
            _evidence(), fit=fit, record=((ZERO_POINT, "the zero point is 7"),), weights=(("values", "'w' differs"),)
        )
    )
    assert (found.kind, found.sentence) == (ZERO_POINT, "the zero point is 7; 'w' differs")

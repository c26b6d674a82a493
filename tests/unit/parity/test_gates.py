from __future__ import annotations

import dataclasses
import math
import re
from typing import Any

import numpy as np
import pytest

from edgetune.core.bundle import FAIL, PASS
from edgetune.parity.gates import Gate, Judgement, gate_for, judge
from edgetune.parity.metrics import Comparison, compare_logits

SAME = Comparison(
    images=1000,
    finite=True,
    max_abs_diff=0.0,
    reference_max_abs=10.0,
    sqnr_db=None,
    top1_agreement=1.0,
    flip_margins=(),
    reference_accuracy=None,
    candidate_accuracy=None,
    drop=None,
    drop_upper_bound=None,
)


def _judge(gate: Gate, **changes: Any) -> Judgement:
    return judge(dataclasses.replace(SAME, **changes), gate)


def test_the_fp32_gate_is_tight() -> None:
    assert gate_for("fp32", 0.01) == Gate(100.0, 1e-4, 1.0, 0.01)


def test_the_fp16_gate_has_a_floor_for_the_distance() -> None:
    assert gate_for("fp16", 0.02) == Gate(35.0, None, 0.98, 0.02)


def test_int8_is_held_to_labels_alone() -> None:
    assert gate_for("int8", 0.02) == Gate(None, None, 0.97, 0.02)


@pytest.mark.parametrize(
    ("lost_bits", "verdict"), [(13, PASS), (19, FAIL)], ids=["float16's 11 bits are left", "5 bits are left"]
)
def test_logits_rounded_as_float16_rounds_pass_and_coarser_ones_fail(lost_bits: int, verdict: str) -> None:
    """Cutting bits off float32's 24 leaves a relative error of up to 2 ** (lost_bits - 23): 2 ** -10 or 2 ** -4."""
    reference = np.random.default_rng(0).normal(size=(200, 10)).astype(np.float32) * 5
    candidate = (reference.view(np.uint32) >> lost_bits << lost_bits).view(np.float32)
    judgement = judge(compare_logits(reference, candidate, None), gate_for("fp16", 0.01))
    assert judgement.verdict == verdict, judgement.reasons


def test_no_difference_passes_every_rule() -> None:
    assert _judge(gate_for("fp32", 0.01)) == Judgement(PASS, (), None)


def test_a_gate_without_rules_passes() -> None:
    assert _judge(Gate(), flip_margins=(1.0,) * 900, sqnr_db=-20.0, max_abs_diff=99.0) == Judgement(PASS, (), None)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf], ids=["NaN", "infinity", "minus infinity"])
@pytest.mark.parametrize("gate", [Gate(), gate_for("fp32", 1.0), gate_for("int8", 1.0)], ids=["none", "fp32", "int8"])
def test_a_logit_that_is_no_number_fails_every_gate(gate: Gate, value: float) -> None:
    reference = np.array([[1.0, 0.0], [0.0, 1.0]], np.float32)
    candidate = reference.copy()
    candidate[1, 0] = value
    for left, right in ((reference, candidate), (candidate, reference)):
        judgement = judge(compare_logits(left, right, np.array([0, 1])), gate)
        assert judgement == Judgement(FAIL, ("the logits hold NaN or infinity",), None)


@pytest.mark.parametrize(
    ("sqnr_db", "verdict"),
    [(None, PASS), (130.0, PASS), (100.0, PASS), (99.9, FAIL), (-math.inf, FAIL), (math.nan, FAIL)],
)
def test_sqnr_must_reach_its_limit(sqnr_db: float | None, verdict: str) -> None:
    assert _judge(Gate(min_sqnr_db=100.0), sqnr_db=sqnr_db).verdict == verdict


def test_a_low_sqnr_is_told_with_both_numbers() -> None:
    assert _judge(Gate(min_sqnr_db=100.0), sqnr_db=57.26).reasons == ("SQNR is 57.3 dB, expected at least 100 dB",)


@pytest.mark.parametrize(
    ("max_abs_diff", "reference_max_abs", "verdict"),
    [(0.002, 20.0, PASS), (0.0021, 20.0, FAIL), (1e-4, 0.01, PASS), (1.1e-4, 0.01, FAIL), (math.nan, 20.0, FAIL)],
    ids=["at the limit", "over", "small logits count as 1", "over with small logits", "NaN"],
)
def test_the_difference_is_relative_to_the_largest_logit(
    max_abs_diff: float, reference_max_abs: float, verdict: str
) -> None:
    gate = Gate(max_relative_diff=1e-4)
    assert _judge(gate, max_abs_diff=max_abs_diff, reference_max_abs=reference_max_abs).verdict == verdict


def test_a_large_difference_is_told_with_both_numbers() -> None:
    reasons = _judge(Gate(max_relative_diff=1e-4), max_abs_diff=0.125, reference_max_abs=20.0).reasons
    assert reasons == ("the largest logit difference is 0.125, expected at most 0.002",)


@pytest.mark.parametrize(
    ("min_agreement", "images", "flips", "verdict"),
    [
        (0.97, 100, 3, PASS),
        (0.97, 100, 4, FAIL),
        (0.97, 153, 4, PASS),
        (0.97, 153, 5, FAIL),
        (0.97, 10, 1, PASS),
        (0.97, 10, 2, FAIL),
        (0.97, 1, 1, FAIL),
        (0.97, 9, 1, FAIL),
        (0.97, 10, 1, PASS),
        (0.9, 20, 2, PASS),
        (0.9, 20, 3, FAIL),
        (0.8, 10, 2, PASS),
    ],
)
def test_agreement_lets_its_share_differ_and_one_image_of_ten(
    min_agreement: float, images: int, flips: int, verdict: str
) -> None:
    assert _judge(Gate(min_agreement=min_agreement), images=images, flip_margins=(1.0,) * flips).verdict == verdict


def test_too_many_flips_are_told_with_both_numbers() -> None:
    reasons = _judge(Gate(min_agreement=0.97), images=100, flip_margins=(1.0,) * 7).reasons
    assert reasons == ("7 of 100 labels differ from the reference, expected at most 3",)


@pytest.mark.parametrize(
    ("margins", "verdict"),
    [((0.0019, 0.002), PASS), ((0.0021,), FAIL), ((0.001, 5.0), FAIL)],
    ids=["ties", "just no tie", "a tie and a flip"],
)
def test_full_agreement_forgives_ties_only(margins: tuple[float, ...], verdict: str) -> None:
    """Logits up to 10 may move by 1e-4 of that, 0.001, so labels within 0.002 may change places."""
    gate = Gate(min_agreement=1.0, max_relative_diff=1e-4)
    assert _judge(gate, flip_margins=margins, max_abs_diff=0.0, reference_max_abs=10.0).verdict == verdict


def test_a_model_that_swaps_two_labels_fails() -> None:
    reference, candidate = np.array([[5.0, 0.0]], np.float32), np.array([[0.0, 5.0]], np.float32)
    found = compare_logits(reference, candidate, np.array([0]))
    assert judge(found, Gate(min_agreement=1.0)).verdict == FAIL


def test_full_agreement_forgives_a_close_call() -> None:
    reference = np.array([[1.00001, 1.0], [9.0, 0.0]], np.float32)
    candidate = np.array([[1.0, 1.00001], [9.0, 0.0]], np.float32)
    gate = Gate(min_agreement=1.0, max_relative_diff=1e-4)
    assert judge(compare_logits(reference, candidate, None), gate).verdict == PASS


def test_full_agreement_does_not_forgive_a_clear_label_that_turned() -> None:
    reference = np.array([[5.0, 0.0], [9.0, 0.0]], np.float32)
    candidate = np.array([[0.0, 5.0], [9.0, 0.0]], np.float32)
    judgement = judge(compare_logits(reference, candidate, None), Gate(min_agreement=1.0))
    assert judgement.verdict == FAIL
    assert "1 of 2 labels differ from the reference, expected at most 0" in judgement.reasons


@pytest.mark.parametrize(
    ("max_drop", "images", "lost", "verdict"),
    [
        (0.01, 10, 1, PASS),
        (0.01, 10, 2, FAIL),
        (0.0, 1000, 1, FAIL),
        (0.01, 9, 1, FAIL),
        (0.0, 1000, 2, FAIL),
        (0.01, 1000, 10, PASS),
        (0.01, 1000, 11, FAIL),
        (0.29, 100, 29, PASS),
        (0.29, 100, 30, FAIL),
        (0.01, 100, -50, PASS),
    ],
)
def test_the_drop_lets_its_budget_go_and_one_image_of_ten(
    max_drop: float, images: int, lost: int, verdict: str
) -> None:
    judgement = _judge(Gate(max_drop=max_drop), images=images, drop=lost / images, drop_upper_bound=1.0)
    assert judgement.verdict == verdict


def test_a_drop_is_told_in_percent_and_images() -> None:
    judgement = _judge(Gate(max_drop=0.01), images=200, drop=0.03, drop_upper_bound=0.0)
    assert judgement.reasons == ("accuracy drops by 3.00% (6 of 200 images), expected at most 1.00%",)


def test_every_broken_rule_gives_a_reason() -> None:
    changes = {"sqnr_db": 10.0, "max_abs_diff": 5.0, "flip_margins": (1.0,) * 9, "drop": 0.5, "drop_upper_bound": 0.6}
    judgement = _judge(Gate(100.0, 1e-4, 1.0, 0.01), **changes)
    words = ("SQNR", "largest logit difference", "labels differ", "accuracy drops", "cannot prove")
    assert judgement.verdict == FAIL
    for word, reason in zip(words, judgement.reasons, strict=True):
        assert word in reason


def test_without_labels_nothing_is_certified_or_refuted() -> None:
    assert _judge(gate_for("int8", 0.01)).certified is None


def test_without_a_budget_nothing_is_certified_or_refuted() -> None:
    assert _judge(Gate(), drop=0.0, drop_upper_bound=0.5).certified is None


def test_a_large_set_without_flips_certifies() -> None:
    """1000 images, none different: the bound is 1.644854 / 1002 = 0.16 %."""
    logits = np.tile(np.array([[1.0, 0.0]], np.float32), (1000, 1))
    judgement = judge(compare_logits(logits, logits, np.zeros(1000, np.int64)), gate_for("int8", 0.01))
    assert judgement == Judgement(PASS, (), True)


def test_a_small_set_passes_but_is_not_certified_and_says_how_many_images_would_do() -> None:
    """50 images, none different: the bound is 1.644854 / 52 = 3.16 %.

    Taking one flip in 50 as the share of discordant images, n images bring the bound
    1.644854 * sqrt(0.02 n + 1) / (n + 2) to 1 %.
    """
    logits = np.tile(np.array([[1.0, 0.0]], np.float32), (50, 1))
    judgement = judge(compare_logits(logits, logits, np.zeros(50, np.int64)), gate_for("int8", 0.01))
    needed = next(n for n in range(1, 10_000) if 1.6448536 * math.sqrt(0.02 * n + 1) / (n + 2) <= 0.01)
    assert (judgement.verdict, judgement.certified) == (PASS, False)
    (note,) = judgement.reasons
    assert note == (
        f"50 images cannot prove a drop of at most 1.00% (95 % bound: 3.16%); about {needed:,} images would"
    )


def test_no_number_of_images_is_promised_where_none_would_do() -> None:
    (note,) = _judge(Gate(max_drop=0.0), drop=0.0, drop_upper_bound=0.002).reasons
    assert re.search(r"cannot prove a drop of at most 0\.00%", note)
    assert "would" not in note


def test_an_artifact_may_fail_though_the_set_is_large_enough() -> None:
    judgement = _judge(Gate(min_sqnr_db=100.0, max_drop=0.01), sqnr_db=20.0, drop=0.0, drop_upper_bound=0.001)
    assert (judgement.verdict, judgement.certified) == (FAIL, True)

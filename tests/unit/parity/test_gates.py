from __future__ import annotations

import dataclasses
import math
import re
from typing import Any

import numpy as np
import pytest

from edgetune.core.bundle import FAIL, PASS
from edgetune.parity.gate_set import gate_for
from edgetune.parity.gates import Gate, Judgement, judge
from edgetune.parity.metrics import ClassCount, Comparison, compare_logits

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
    gate = gate_for("fp16", 0.02)
    assert (gate.min_sqnr_db, gate.max_relative_diff, gate.min_agreement, gate.max_drop) == (35.0, None, 0.98, 0.02)


def test_int8_is_held_to_labels_and_probabilities() -> None:
    gate = gate_for("int8", 0.02)
    assert (gate.min_sqnr_db, gate.max_relative_diff, gate.min_agreement, gate.max_drop) == (None, None, 0.97, 0.02)
    assert gate.max_kl == 0.05


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
    judgement = _judge(gate_for("fp32", 0.01))
    assert (judgement.verdict, judgement.reasons, judgement.remarks, judgement.certified) == (PASS, (), (), None)


def test_a_gate_without_rules_passes() -> None:
    judgement = _judge(Gate(), flip_margins=(1.0,) * 900, sqnr_db=-20.0, max_abs_diff=99.0, kl_mean=9.0)
    assert (judgement.verdict, judgement.reasons, judgement.certified) == (PASS, (), None)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf], ids=["NaN", "infinity", "minus infinity"])
@pytest.mark.parametrize("gate", [Gate(), gate_for("fp32", 1.0), gate_for("int8", 1.0)], ids=["none", "fp32", "int8"])
def test_a_logit_that_is_no_number_fails_every_gate(gate: Gate, value: float) -> None:
    reference = np.array([[1.0, 0.0], [0.0, 1.0]], np.float32)
    candidate = reference.copy()
    candidate[1, 0] = value
    for left, right in ((reference, candidate), (candidate, reference)):
        judgement = judge(compare_logits(left, right, np.array([0, 1])), gate)
        assert judgement == Judgement(FAIL, ("the logits hold NaN or infinity",), None, gate=gate)


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
    words = ("SQNR", "largest logit difference", "labels differ", "accuracy drops")
    assert judgement.verdict == FAIL
    for word, reason in zip(words, judgement.reasons, strict=True):
        assert word in reason
    (remark,) = judgement.remarks
    assert "cannot prove" in remark


def test_without_labels_nothing_is_certified_or_refuted() -> None:
    assert _judge(gate_for("int8", 0.01)).certified is None


def test_without_a_budget_nothing_is_certified_or_refuted() -> None:
    assert _judge(Gate(), drop=0.0, drop_upper_bound=0.5).certified is None


def test_a_large_set_without_flips_certifies() -> None:
    """1000 images, none different: the bound is 1.644854 / 1002 = 0.16 %."""
    logits = np.tile(np.array([[1.0, 0.0]], np.float32), (1000, 1))
    judgement = judge(compare_logits(logits, logits, np.zeros(1000, np.int64)), gate_for("int8", 0.01))
    assert (judgement.verdict, judgement.reasons, judgement.remarks, judgement.certified) == (PASS, (), (), True)


def test_a_small_set_passes_but_is_not_certified_and_says_how_many_images_would_do() -> None:
    """50 images, none different: the bound is 1.644854 / 52 = 3.16 %.

    Taking one flip in 50 as the share of discordant images, n images bring the bound
    1.644854 * sqrt(0.02 n + 1) / (n + 2) to 1 %. A drop of 15 % shows: sqrt(0.15 * 50) = 2.739, and
    1.960 + 0.8416 * sqrt(0.85) = 2.736.
    """
    logits = np.tile(np.array([[1.0, 0.0]], np.float32), (50, 1))
    judgement = judge(compare_logits(logits, logits, np.zeros(50, np.int64)), gate_for("int8", 0.01))
    needed = next(n for n in range(1, 10_000) if 1.6448536 * math.sqrt(0.02 * n + 1) / (n + 2) <= 0.01)
    assert (judgement.verdict, judgement.certified) == (PASS, False)
    assert judgement.images_to_certify == needed
    (note,) = judgement.remarks
    assert note == (
        f"50 images cannot prove a drop of at most 1.00% (95 % bound: 3.16%); about {needed:,} images would; "
        "they show a drop of 15.0% or more"
    )


def test_no_number_of_images_is_promised_where_none_would_do() -> None:
    (note,) = _judge(Gate(max_drop=0.0), drop=0.0, drop_upper_bound=0.002).remarks
    assert re.search(r"cannot prove a drop of at most 0\.00%", note)
    assert "would" not in note


def test_an_artifact_may_fail_though_the_set_is_large_enough() -> None:
    judgement = _judge(Gate(min_sqnr_db=100.0, max_drop=0.01), sqnr_db=20.0, drop=0.0, drop_upper_bound=0.001)
    assert (judgement.verdict, judgement.certified) == (FAIL, True)


# With logits of rms 3 and noise of rms 0.06, a near tie is a margin of at most 2 * sqrt(2) * 0.06 = 0.1697; the
# noise counts up to tie_noise * 3.
NOISY = {"reference_rms": 3.0, "noise_rms": 0.06}


@pytest.mark.parametrize(
    ("tie_noise", "noise_rms", "margin", "is_tie"),
    [
        (0.05, 0.06, 0.169, True),
        (0.05, 0.06, 0.170, False),
        (0.05, 0.30, 0.424, True),
        (0.05, 0.30, 0.425, False),
        (0.0, 0.06, 1e-9, False),
    ],
    ids=["within its noise", "just beyond", "noise is capped at 0.15", "beyond the cap", "no entitlement"],
)
def test_a_near_tie_is_what_noise_of_the_allowed_size_can_turn(
    tie_noise: float, noise_rms: float, margin: float, is_tie: bool
) -> None:
    changes = {"reference_rms": 3.0, "noise_rms": noise_rms, "flip_margins": (margin,)}
    judgement = _judge(Gate(tie_noise=tie_noise), **changes)
    assert judgement.ties == int(is_tie)
    assert any("near ties" in remark for remark in judgement.remarks) == is_tie


@pytest.mark.parametrize(
    ("lost", "won", "verdict"),
    [
        ((0.01, 0.13), (), PASS),
        ((0.01, 1.0), (), PASS),
        ((1.0, 1.0), (), FAIL),
        ((1.0, 1.0, 0.1), (1.0,), PASS),
        ((1.0, 1.0, 0.1), (0.1,), FAIL),
        ((1.0, 1.0), (0.1,), PASS),
    ],
    ids=["two ties", "a tie and one image", "two clear losses", "one is won back", "a tie lost, a tie won", "one lost"],
)
def test_a_near_tie_that_turned_is_no_lost_image(lost: tuple[float, ...], won: tuple[float, ...], verdict: str) -> None:
    """153 images and a budget of 1 % allow one clear loss."""
    drop = (len(lost) - len(won)) / 153
    changes = {"lost_margins": lost, "won_margins": won, "drop": drop, "drop_upper_bound": 0.05, "images": 153}
    assert _judge(Gate(max_drop=0.01, tie_noise=0.05), **NOISY, **changes).verdict == verdict


@pytest.mark.parametrize(
    ("margins", "verdict"),
    [
        ((1.0,) * 4, PASS),
        ((1.0,) * 5, FAIL),
        ((0.01,) * 8, PASS),
        ((0.01,) * 9, FAIL),
        ((1.0,) * 3 + (0.01,) * 2, PASS),
    ],
)
def test_near_ties_count_half_against_the_agreement(margins: tuple[float, ...], verdict: str) -> None:
    """3 % of 153 images are 4."""
    gate = Gate(min_agreement=0.97, tie_noise=0.05)
    judgement = _judge(gate, **NOISY, flip_margins=margins, images=153)
    assert judgement.verdict == verdict


def test_a_reason_tells_how_many_were_near_ties() -> None:
    margins = (1.0,) * 5 + (0.01,)
    (reason,) = _judge(Gate(min_agreement=0.97, tie_noise=0.05), **NOISY, flip_margins=margins, images=153).reasons
    assert reason == "6 of 153 labels differ from the reference, 1 of them near ties, expected at most 4"


@pytest.mark.parametrize(("ties", "verdict"), [(5, PASS), (6, FAIL)])
def test_near_ties_all_lost_are_no_chance(ties: int, verdict: str) -> None:
    """One loss of 153 is within the budget; 5 more in a row have a chance of 1/32, below 5 %, 4 more of 1/16."""
    changes = {"lost_margins": (0.01,) * ties, "drop": ties / 153, "drop_upper_bound": 0.1, "images": 153}
    assert _judge(Gate(max_drop=0.01, tie_noise=0.05), **NOISY, **changes).verdict == verdict


@pytest.mark.parametrize(("kl_mean", "verdict"), [(0.05, PASS), (0.0501, FAIL), (math.nan, FAIL)])
def test_the_divergence_has_a_limit(kl_mean: float, verdict: str) -> None:
    assert _judge(Gate(max_kl=0.05), kl_mean=kl_mean).verdict == verdict


@pytest.mark.parametrize(
    ("worse", "classes", "verdict"),
    [(6, 1, PASS), (7, 1, FAIL), (8, 2, FAIL), (8, 10, PASS), (10, 10, FAIL)],
    ids=["4 beyond", "5 beyond: 1/32", "6 beyond: 1/64", "1/64 among ten classes", "8 beyond: 1/256"],
)
def test_a_class_fails_where_its_loss_is_proven(worse: int, classes: int, verdict: str) -> None:
    """A class of 20 images may lose 10 %, 2 of them; chance is shared among all classes that were looked at."""
    counts = tuple(
        ClassCount(index, 20, 20, 20 - (worse if index == 0 else 0), worse if index == 0 else 0, 0)
        for index in range(classes)
    )
    judgement = _judge(Gate(max_class_drop=0.1), per_class=counts)
    assert judgement.verdict == verdict
    if verdict == FAIL:
        assert judgement.reasons == (
            f"class 0 drops by {worse / 20:.1%} ({worse} of 20 images), expected at most 10.0%",
        )


def test_a_set_says_which_drop_it_would_show() -> None:
    """Connor's n for a drop of 5 points with 5 % discordant: (1.96 * sqrt(.05) + .8416 * sqrt(.05 - .0025))^2 / .0025
    = (0.43826 + 0.18343)^2 / 0.0025 = 154.6.
    """
    detectable = _judge(Gate(), images=155, flip_margins=(1.0,) * 3, drop=0.0, drop_upper_bound=1.0).detectable_drop
    assert detectable == pytest.approx(0.05, abs=2e-4)

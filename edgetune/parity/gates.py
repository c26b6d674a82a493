"""What an artifact must keep to, by precision, and the verdict."""

from __future__ import annotations

import math
from dataclasses import dataclass

from edgetune.core.bundle import FAIL, PASS
from edgetune.core.stats import images_to_certify
from edgetune.parity.metrics import Comparison

DEFAULT_MAX_DROP = 0.01
_FEW_IMAGES = 10


@dataclass(frozen=True)
class Gate:
    """A rule left None does not apply. `max_relative_diff` is of the reference's largest absolute logit.

    With 10 images or more, `min_agreement` and `max_drop` let one image differ, the smallest step a set can show,
    unless they are 1 and 0. A `min_agreement` of 1 forgives ties: images whose two labels the reference holds
    closer together than two logits may move under `max_relative_diff`.
    """

    min_sqnr_db: float | None = None
    max_relative_diff: float | None = None
    min_agreement: float | None = None
    max_drop: float | None = None


@dataclass(frozen=True)
class Judgement:
    """`certified` says whether the set is large enough to prove the accuracy budget; None where there is none."""

    verdict: str
    reasons: tuple[str, ...]
    certified: bool | None


def gate_for(precision: str, max_drop: float) -> Gate:
    """Defaults: FP32 differs from PyTorch by rounding only (measured on ONNX Runtime: 110 dB and above, a
    broken graph is below 60 dB). FP16 is 42 to 54 dB away by rounding alone (measured with every tensor rounded, and
    with PyTorch's own half precision); below 35 dB, where INT8 is, something else went wrong.
    INT8 is held to its accuracy and agreement, since its logits may move.
    """
    if precision == "fp32":
        return Gate(min_sqnr_db=100.0, max_relative_diff=1e-4, min_agreement=1.0, max_drop=max_drop)
    if precision == "fp16":
        return Gate(min_sqnr_db=35.0, min_agreement=0.98, max_drop=max_drop)
    return Gate(min_agreement=0.97, max_drop=max_drop)


def judge(comparison: Comparison, gate: Gate) -> Judgement:
    """Every rule that is broken gives a reason with its numbers; NaN and infinity always fail."""
    if not comparison.finite:
        return Judgement(FAIL, ("the logits hold NaN or infinity",), None)
    reasons = [*_judge_distance(comparison, gate), *_judge_labels(comparison, gate)]
    verdict = FAIL if reasons else PASS
    notes, certified = _certify(comparison, gate)
    return Judgement(verdict, (*reasons, *notes), certified)


def _judge_distance(comparison: Comparison, gate: Gate) -> list[str]:
    reasons = []
    sqnr_db = math.inf if comparison.sqnr_db is None else comparison.sqnr_db
    if gate.min_sqnr_db is not None and not sqnr_db >= gate.min_sqnr_db:
        reasons.append(f"SQNR is {sqnr_db:.1f} dB, expected at least {gate.min_sqnr_db:g} dB")
    limit = _allowed_diff(comparison, gate)
    if limit is not None and not comparison.max_abs_diff <= limit:
        reasons.append(f"the largest logit difference is {comparison.max_abs_diff:.3g}, expected at most {limit:.3g}")
    return reasons


def _allowed_diff(comparison: Comparison, gate: Gate) -> float | None:
    if gate.max_relative_diff is None:
        return None
    return gate.max_relative_diff * max(1.0, comparison.reference_max_abs)


def _allowed_images(share: float, images: int) -> int:
    smallest_step = 1 if share > 0.0 and images >= _FEW_IMAGES else 0
    return max(smallest_step, math.floor(share * images + 1e-9))


def _judge_labels(comparison: Comparison, gate: Gate) -> list[str]:
    reasons = []
    if gate.min_agreement is not None:
        flips = len(comparison.flip_margins)
        allowed = _allowed_images(1.0 - gate.min_agreement, comparison.images)
        if gate.min_agreement == 1.0:
            tie = 2.0 * (_allowed_diff(comparison, gate) or 0.0)
            flips, allowed = sum(margin > tie for margin in comparison.flip_margins), 0
        if flips > allowed:
            reasons.append(
                f"{flips} of {comparison.images} labels differ from the reference, expected at most {allowed}"
            )
    if gate.max_drop is not None and comparison.drop is not None:
        lost = round(comparison.drop * comparison.images)
        allowed = _allowed_images(gate.max_drop, comparison.images)
        if lost > allowed:
            reasons.append(
                f"accuracy drops by {comparison.drop:.2%} ({lost} of {comparison.images} images), "
                f"expected at most {gate.max_drop:.2%}"
            )
    return reasons


def _certify(comparison: Comparison, gate: Gate) -> tuple[list[str], bool | None]:
    if gate.max_drop is None or comparison.drop_upper_bound is None:
        return [], None
    if comparison.drop_upper_bound <= gate.max_drop:
        return [], True
    discordant = max(len(comparison.flip_margins), 1) / comparison.images
    needed = images_to_certify(gate.max_drop, discordant) if gate.max_drop > 0 else 0
    advice = f"; about {needed:,} images would" if needed > comparison.images else ""
    return [
        f"{comparison.images} images cannot prove a drop of at most {gate.max_drop:.2%} "
        f"(95 % bound: {comparison.drop_upper_bound:.2%}){advice}"
    ], False

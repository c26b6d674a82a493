"""What an artifact must keep to, by precision, and the verdict."""

from __future__ import annotations

import math
from dataclasses import dataclass

from edgetune.core.bundle import FAIL, PASS
from edgetune.core.stats import detectable_drop, drop_is_over, images_to_certify
from edgetune.parity.metrics import ClassCount, Comparison

DEFAULT_MAX_DROP = 0.01
_FEW_IMAGES = 10
# Two logits move apart by twice the noise of one, times the root of two, in one image of twenty.
_TIE_NOISES = 2.0 * math.sqrt(2.0)


@dataclass(frozen=True)
class Gate:
    """A rule left None does not apply. `max_relative_diff` is of the reference's largest absolute logit; `max_kl` is
    in nats, the mean over the images; `max_drop` and `max_class_drop` are shares of images.

    With 10 images or more, `min_agreement` and `max_drop` let one image differ, the smallest step a set can show,
    unless they are 1 and 0. `tie_noise` is the noise that the precision is entitled to, as a share of the logits' rms:
    labels that the reference holds closer together than noise of that size can turn are near ties. A near tie that
    turned counts half against `min_agreement`, and not at all where that is 1. `max_drop` fails where the drop is over
    it with near ties and without, or is proven. `max_class_drop` fails where a class has lost
    more than chance explains. `max_lsb` bounds the steps by which a layer's integers differ, fed the same integers.
    """

    min_sqnr_db: float | None = None
    max_relative_diff: float | None = None
    min_agreement: float | None = None
    max_drop: float | None = None
    max_kl: float | None = None
    max_class_drop: float | None = None
    tie_noise: float = 0.0
    max_lsb: float | None = None


@dataclass(frozen=True)
class Judgement:
    """`reasons` are why it fails. `certified` says whether the set is large enough to prove the accuracy budget; None
    where there is none. `ties` of the labels that differ were near ties.
    """

    verdict: str
    reasons: tuple[str, ...]
    certified: bool | None
    remarks: tuple[str, ...] = ()
    ties: int = 0
    detectable_drop: float | None = None
    images_to_certify: int | None = None
    gate: Gate | None = None


def judge(comparison: Comparison, gate: Gate) -> Judgement:
    """Every rule that is broken gives a reason with its numbers; NaN and infinity always fail."""
    if not comparison.finite:
        return Judgement(FAIL, ("the logits hold NaN or infinity",), None, gate=gate)
    reasons = (
        *_judge_distance(comparison, gate),
        *_judge_labels(comparison, gate),
        *_judge_drop(comparison, gate),
        *_judge_classes(comparison, gate),
    )
    certified, detectable, needed = _what_it_proves(comparison, gate)
    ties = _ties(comparison.flip_margins, comparison, gate)
    return Judgement(
        verdict=FAIL if reasons else PASS,
        reasons=reasons,
        certified=certified,
        remarks=(*_tie_remarks(ties, comparison), *_proof_remarks(comparison, gate, certified, detectable, needed)),
        ties=ties,
        detectable_drop=detectable,
        images_to_certify=needed,
        gate=gate,
    )


def tie_margin(comparison: Comparison, gate: Gate) -> float:
    """How far apart two logits of the reference may be and still change places by noise that is allowed."""
    noise = min(comparison.noise_rms, gate.tie_noise * comparison.reference_rms)
    return max(2.0 * (_allowed_diff(comparison, gate) or 0.0), _TIE_NOISES * noise)


def class_is_proven_worse(count: ClassCount, comparison: Comparison, gate: Gate) -> bool:
    """Whether a class lost more than the gate allows, by more than chance explains with so many classes looked at."""
    if gate.max_class_drop is None:
        return False
    lost = (count.worse, count.better, count.images)
    return drop_is_over(gate.max_class_drop, *lost, tests=len(comparison.per_class))


def _judge_distance(comparison: Comparison, gate: Gate) -> list[str]:
    reasons = []
    sqnr_db = math.inf if comparison.sqnr_db is None else comparison.sqnr_db
    if gate.min_sqnr_db is not None and not sqnr_db >= gate.min_sqnr_db:
        reasons.append(f"SQNR is {sqnr_db:.1f} dB, expected at least {gate.min_sqnr_db:g} dB")
    limit = _allowed_diff(comparison, gate)
    if limit is not None and not comparison.max_abs_diff <= limit:
        reasons.append(f"the largest logit difference is {comparison.max_abs_diff:.3g}, expected at most {limit:.3g}")
    if gate.max_kl is not None and comparison.kl_mean is not None and not comparison.kl_mean <= gate.max_kl:
        reasons.append(
            f"the probabilities diverge by {comparison.kl_mean:.3g} nats an image, expected at most {gate.max_kl:g}"
        )
    return reasons


def _allowed_diff(comparison: Comparison, gate: Gate) -> float | None:
    if gate.max_relative_diff is None:
        return None
    return gate.max_relative_diff * max(1.0, comparison.reference_max_abs)


def _allowed_images(share: float, images: int) -> int:
    smallest_step = 1 if share > 0.0 and images >= _FEW_IMAGES else 0
    return max(smallest_step, math.floor(share * images + 1e-9))


def _ties(margins: tuple[float, ...], comparison: Comparison, gate: Gate) -> int:
    tie = tie_margin(comparison, gate)
    return sum(margin <= tie for margin in margins)


def _judge_labels(comparison: Comparison, gate: Gate) -> list[str]:
    if gate.min_agreement is None:
        return []
    flips, ties = len(comparison.flip_margins), _ties(comparison.flip_margins, comparison, gate)
    exact = gate.min_agreement == 1.0
    allowed = 0 if exact else _allowed_images(1.0 - gate.min_agreement, comparison.images)
    counted = flips - ties if exact else flips - ties / 2
    if counted <= allowed:
        return []
    apart = f", {ties} of them near ties" if ties else ""
    return [f"{flips} of {comparison.images} labels differ from the reference{apart}, expected at most {allowed}"]


def _judge_drop(comparison: Comparison, gate: Gate) -> list[str]:
    if gate.max_drop is None or comparison.drop is None:
        return []
    lost = round(comparison.drop * comparison.images)
    tied = [_ties(margins, comparison, gate) for margins in (comparison.lost_margins, comparison.won_margins)]
    clear = lost - (tied[0] - tied[1])
    worse, better = len(comparison.lost_margins), len(comparison.won_margins)
    proven = drop_is_over(gate.max_drop, worse, better, comparison.images)
    if min(lost, clear) <= _allowed_images(gate.max_drop, comparison.images) and not proven:
        return []
    return [
        f"accuracy drops by {comparison.drop:.2%} ({lost} of {comparison.images} images), "
        f"expected at most {gate.max_drop:.2%}"
    ]


def _judge_classes(comparison: Comparison, gate: Gate) -> list[str]:
    proven = [count for count in comparison.per_class if class_is_proven_worse(count, comparison, gate)]
    if not proven or gate.max_class_drop is None:
        return []
    worst = max(proven, key=lambda count: (count.worse - count.better) / count.images)
    return [
        f"class {worst.index} drops by {(worst.worse - worst.better) / worst.images:.1%} "
        f"({worst.worse - worst.better} of {worst.images} images), expected at most {gate.max_class_drop:.1%}"
        + (f"; so do {len(proven) - 1} other classes" if len(proven) > 1 else "")
    ]


def _what_it_proves(comparison: Comparison, gate: Gate) -> tuple[bool | None, float | None, int | None]:
    """Whether the budget is proven, which drop the set would show, and how many images would prove the budget."""
    if comparison.drop_upper_bound is None:
        return None, None, None
    discordant = max(len(comparison.flip_margins), 1) / comparison.images
    found = detectable_drop(discordant, comparison.images)
    detectable = found if found < 1.0 else None
    if gate.max_drop is None:
        return None, detectable, None
    needed = images_to_certify(gate.max_drop, discordant) if gate.max_drop > 0 else None
    return comparison.drop_upper_bound <= gate.max_drop, detectable, needed


def _tie_remarks(ties: int, comparison: Comparison) -> list[str]:
    flips = len(comparison.flip_margins)
    return [f"{ties} of the {flips} labels that differ are near ties"] if ties else []


def _proof_remarks(
    comparison: Comparison, gate: Gate, certified: bool | None, detectable: float | None, needed: int | None
) -> list[str]:
    if certified is not False or gate.max_drop is None or comparison.drop_upper_bound is None:
        return []
    shown = "" if detectable is None else f"; they show a drop of {detectable:.1%} or more"
    advice = f"; about {needed:,} images would" if needed is not None and needed > comparison.images else ""
    return [
        f"{comparison.images} images cannot prove a drop of at most {gate.max_drop:.2%} "
        f"(95 % bound: {comparison.drop_upper_bound:.2%}){advice}{shown}"
    ]

"""The stages between file bytes and label, so that a failure is named by the first of them that differs."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgetune.core.bundle import FAIL, NOT_RUN, PASS
from edgetune.core.preprocess import PreprocessSpec
from edgetune.core.tensors import softmax
from edgetune.parity.gate_set import DEFAULT_GATES, GateSet
from edgetune.parity.gates import Gate, tie_margin
from edgetune.parity.metrics import compare_logits, sqnr_db
from edgetune.parity.records import StageCheck

STAGES = ("pixels", "normalised", "features", "logits", "probabilities", "labels")
PIXELS, NORMALISED, FEATURES, LOGITS, PROBABILITIES, LABELS = STAGES

Floats = npt.NDArray[np.float32]
_Exact = npt.NDArray[np.float64]

# INT8 has no tight limit inside: good graphs have 24 to 44 dB at the features and 22 to 34 at the logits, whose head is
# fitted again to the quantized features. Below these it is another model, whatever its arithmetic.
# What features may have less than logits, in dB and as a factor; half of it below the distances of float32.
_LESS_DB, _TIMES, _EXACT_DB = 20.0, 10.0, 60.0
_FAR_DB = {FEATURES: 10.0, LOGITS: 6.0}
# (x - 255 mean) / (255 std) rounds 4 times at most, each time by 2^-24 of numbers up to 255.
_NORMALISED_ROUNDING = 4 * 2.0**-24
# The largest of many normal errors, in standard deviations.
_PEAK = 6.0
# So unlikely must the labels that differ be, at the share that the gate allows, to be held against an artifact.
_CHANCE = 1e-3
# A logit that is this much nearer to another class's reference than to its own, in power, belongs to that class.
_SWAPPED = 0.25


@dataclass(frozen=True)
class StageTensors:
    """What one model makes of the same images: `normalised` `(N, 3, H, W)`, which the first convolution reads,
    `features` `(N, D)` and `logits` `(N, classes)`. `why` tells why some of them could not be had.
    """

    normalised: Floats | None
    features: Floats | None
    logits: Floats | None
    why: str = ""


def first_failed(checks: Sequence[StageCheck]) -> str:
    """The earliest stage that failed; empty where none did."""
    failed = {check.stage for check in checks if check.verdict == FAIL}
    return next((stage for stage in STAGES if stage in failed), "")


def normalise(pixels: npt.NDArray[np.uint8], spec: PreprocessSpec) -> Floats:
    """What the first convolution must get for pixels `(N, H, W, 3)`, worked out in float64: `(N, 3, H, W)`."""
    exact: _Exact = (pixels.astype(np.float64) / 255.0 - spec.mean) / spec.std
    normalised: Floats = exact.transpose(0, 3, 1, 2).astype(np.float32)
    return normalised


def judge_stages(
    reference: StageTensors, candidate: StageTensors, spec: PreprocessSpec, precision: str,
    gates: GateSet = DEFAULT_GATES,
) -> tuple[StageCheck, ...]:  # fmt: skip
    """One check a stage from `normalised` on; `spec` is the normalisation that the first convolution should see.

    Raises:
        ConfigError: there are no limits for `precision`.
    """
    gate = gates.named(precision)
    normalised = _check_normalised(reference, candidate, spec, precision)
    features = _check_distance(FEATURES, (reference.features, candidate.features), _why(reference, candidate), gate)
    if features.verdict == FAIL and normalised.verdict == PASS:
        features = _add(features, "the normalised image is right, so the backbone is not")
    pair = (reference.logits, candidate.logits)
    logits = _check_distance(LOGITS, pair, _why(reference, candidate), gate)
    if pair[0] is not None and pair[1] is not None and logits.max_abs_diff is not None:
        logits = _name_swapped(logits, permuted_classes(pair[0], pair[1]))
    if logits.verdict == FAIL and features.verdict == PASS:
        logits = _add(logits, "the features are right, so the head is not")
    if pair[0] is None or pair[1] is None or logits.max_abs_diff is None:
        reason = logits.reason if logits.verdict == NOT_RUN else "there are no logits to make them of"
        return normalised, features, logits, _not_run(PROBABILITIES, reason), _not_run(LABELS, reason)
    return (
        normalised,
        features,
        logits,
        _check_probabilities(pair[0], pair[1], gate),
        _check_labels(pair[0], pair[1], gate),
    )


def permuted_classes(reference: Floats, candidate: Floats) -> tuple[tuple[int, int], ...]:
    """Pairs (class, whose logit it has) where logits `(N, classes)` have changed places; empty where none have."""
    exact, other = reference.astype(np.float64), candidate.astype(np.float64)
    own = np.square(other - exact).sum(axis=0)
    moved = {}
    for index in np.flatnonzero(own > 0.0):
        distances = np.square(exact - other[:, [index]]).sum(axis=0)
        nearest = int(distances.argmin())
        if distances[nearest] < _SWAPPED * own[index]:
            moved[int(index)] = nearest
    return tuple(moved.items()) if sorted(moved) == sorted(moved.values()) else ()


def _why(reference: StageTensors, candidate: StageTensors) -> str:
    return reference.why or candidate.why or "it could not be had"


def _not_run(stage: str, reason: str) -> StageCheck:
    return StageCheck(stage, NOT_RUN, None, None, reason)


def _add(check: StageCheck, reason: str) -> StageCheck:
    return dataclasses.replace(check, reason=f"{check.reason}; {reason}")


def _check_normalised(
    reference: StageTensors, candidate: StageTensors, spec: PreprocessSpec, precision: str
) -> StageCheck:  # fmt: skip
    expected, got = reference.normalised, candidate.normalised
    if expected is None or got is None:
        return _not_run(NORMALISED, candidate.why or reference.why)
    if expected.shape != got.shape:
        return _not_run(NORMALISED, f"the first layer reads {got.shape}, which is not the image's {expected.shape}")
    if not np.isfinite(got).all():
        return StageCheck(NORMALISED, FAIL, None, None, "the normalised image holds NaN or infinity")
    shift = _int8_shift(spec) if precision == "int8" else 0.0
    limit = (_NORMALISED_ROUNDING + shift) / min(spec.std)
    difference = float(np.abs(got.astype(np.float64) - expected).max())
    if difference <= limit:
        reason = "INT8 moves the middle of the pixels from 127.5 to 128, knowingly" if shift else ""
        return StageCheck(NORMALISED, PASS, difference, limit, reason)
    return StageCheck(NORMALISED, FAIL, difference, limit, _explain_normalised(expected, got, spec))


def _int8_shift(spec: PreprocessSpec) -> float:
    """An INT8 graph may take 128 for the middle of the pixels, whose integers are then exact; its first bias pays."""
    offset = 128.0 - 255.0 * spec.mean[0]
    is_alike = len(set(spec.mean)) == len(set(spec.std)) == 1
    return offset / 255.0 if is_alike and 0.0 <= offset <= 0.5 else 0.0


def _explain_normalised(expected: Floats, got: Floats, spec: PreprocessSpec) -> str:
    """Finds channel order, mean and std that would give what came, if any do."""
    order, mean, std = [], [], []
    for channel in range(3):
        fits = [_fit(expected[:, source], got[:, channel]) for source in range(3)]
        source = min(range(3), key=lambda index: fits[index][2])
        slope, offset, residual = fits[source]
        if slope == 0.0 or not residual < 1e-3:
            return "it is no scaling of the pixels: their layout, or the steps that normalise, differ"
        order.append(source)
        std.append(spec.std[source] / slope)
        mean.append(spec.mean[source] - offset * spec.std[source] / slope)
    reasons = []
    if order != [0, 1, 2]:
        reasons.append(f"the graph reads the channels as {''.join('RGB'[source] for source in order)}, expected RGB")
    wanted = [(spec.mean[source], spec.std[source]) for source in order]
    if not np.allclose(np.array(wanted), np.array([mean, std]).T, rtol=1e-3, atol=1e-4):
        reasons.append(
            f"the graph normalises with mean {_triple(mean)} and std {_triple(std)}, "
            f"expected mean {_triple(spec.mean)} and std {_triple(spec.std)}"
        )
    return "; ".join(reasons) or "the normalised image differs by more than rounding"


def _fit(expected: Floats, got: Floats) -> tuple[float, float, float]:
    """Slope, offset and relative residual of `got` as a line over `expected`."""
    x, y = expected.astype(np.float64).ravel(), got.astype(np.float64).ravel()
    spread = float(x.var())
    slope = float(np.mean((x - x.mean()) * (y - y.mean()))) / spread if spread > 0.0 else 0.0
    offset = float(y.mean() - slope * x.mean())
    return slope, offset, float(np.std(y - slope * x)) / max(float(y.std()), 1e-12)


def _triple(values: Sequence[float]) -> str:
    return f"({', '.join(f'{value:.3g}' for value in values)})"


def _check_distance(stage: str, pair: tuple[Floats | None, Floats | None], why: str, gate: Gate) -> StageCheck:
    """Features or logits: `limit` is on the largest difference, the SQNR is judged too and stated in the reason."""
    reference, candidate = pair
    if reference is None or candidate is None:
        return _not_run(stage, why)
    if reference.shape != candidate.shape:
        reason = f"the {stage} are {candidate.shape}, expected {reference.shape}"
        return StageCheck(stage, FAIL, None, None, reason)
    if not np.isfinite(candidate).all():
        return StageCheck(stage, FAIL, None, None, f"the {stage} hold NaN or infinity")
    exact = reference.astype(np.float64)
    difference = candidate - exact
    ratio = sqnr_db(float(np.square(exact).sum()), float(np.square(difference).sum()))
    least = _least_db(stage, gate)
    largest, limit = float(np.abs(difference).max()), _largest_diff(stage, exact, gate)
    told = "no difference" if ratio is None else f"SQNR is {ratio:.1f} dB, expected at least {least:g} dB"
    is_far = ratio is not None and ratio < least
    verdict = FAIL if is_far or (limit is not None and largest > limit) else PASS
    return StageCheck(stage, verdict, largest, limit, told)


def _least_db(stage: str, gate: Gate) -> float:
    """Features may be further off than the logits that a head makes of them: 12 dB measured on EfficientNet-B0."""
    if gate.min_sqnr_db is None:
        return _FAR_DB[stage]
    if stage == LOGITS:
        return gate.min_sqnr_db
    return gate.min_sqnr_db - (_LESS_DB if gate.min_sqnr_db >= _EXACT_DB else _LESS_DB / 2)


def _largest_diff(stage: str, exact: _Exact, gate: Gate) -> float | None:
    """Small logits may differ by as much as logits of 1, as the gate has it; features come in any size."""
    if gate.max_relative_diff is None:
        return None
    if stage == LOGITS:
        return gate.max_relative_diff * max(1.0, float(np.abs(exact).max()))
    return gate.max_relative_diff * _TIMES * float(np.abs(exact).max())


def _name_swapped(check: StageCheck, moved: tuple[tuple[int, int], ...]) -> StageCheck:
    if not moved:
        return check
    told = ", ".join(f"class {index} has the logit of class {source}" for index, source in moved[:4])
    more = f" and {len(moved) - 4} more" if len(moved) > 4 else ""
    return dataclasses.replace(check, verdict=FAIL, reason=f"{check.reason}; logits have changed places: {told}{more}")


def _check_probabilities(reference: Floats, candidate: Floats, gate: Gate) -> StageCheck:
    """A probability moves by at most half of the largest move of a logit: its slope is p (1 - p), a quarter at most."""
    exact = reference.astype(np.float64)
    allowed = _largest_diff(LOGITS, exact, gate)
    if allowed is None:
        noise = float(np.sqrt(np.mean(exact**2))) * 10.0 ** (-_least_db(LOGITS, gate) / 20.0)
        allowed = _PEAK * noise
    limit = allowed / 2.0 if allowed < 2.0 and gate.min_sqnr_db is not None else None
    largest = float(np.abs(softmax(candidate) - softmax(reference)).max())
    verdict = FAIL if limit is not None and largest > limit else PASS
    return StageCheck(PROBABILITIES, verdict, largest, limit, "" if limit is not None else "stated, not judged")


def _check_labels(reference: Floats, candidate: Floats, gate: Gate) -> StageCheck:
    """`max_abs_diff` counts labels that differ and are no near ties. A few of so few images prove nothing where the
    gate lets labels differ: they are held against it when chance hardly explains so many.
    """
    comparison = compare_logits(reference, candidate, None)
    tie = tie_margin(comparison, gate)
    clear = sum(margin > tie for margin in comparison.flip_margins)
    share = 1.0 - (gate.min_agreement if gate.min_agreement is not None else 1.0)
    chances = [_at_least(count, comparison.images, share) for count in range(comparison.images + 1)]
    most = max(count for count, chance in enumerate(chances) if chance >= _CHANCE)
    told = f"{len(comparison.flip_margins)} of {comparison.images} labels differ, {clear} of them clearly"
    return StageCheck(LABELS, FAIL if clear > most else PASS, float(clear), float(most), told)


def _at_least(count: int, of: int, share: float) -> float:
    """The chance of `count` hits or more among `of`, each with probability `share`."""
    return sum(math.comb(of, hits) * share**hits * (1.0 - share) ** (of - hits) for hits in range(count, of + 1))

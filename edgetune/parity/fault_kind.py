"""What is wrong with a block: its class of fault, from how its output differs from what it should be."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from edgetune.parity.moments import ChannelFit, Moments

NON_FINITE_WEIGHTS = "non-finite weights"
OVERFLOW = "overflow"
NORMALISATION = "normalisation"
CHANNEL_ORDER = "channel order"
LAYOUT = "layout"
SIGN = "sign"
BATCH_NORM = "batch norm"
WEIGHTS = "weights"
SCALE = "scale"
ZERO_POINT = "zero point"
CLIPPING = "clipping"
FUSION = "fusion"
NONDETERMINISTIC = "nondeterministic"
UNKNOWN = "unknown"

HALF_MAX = 65504.0
_EXPLAINED_DB = 12.0  # what a fit must win over the plain difference
_LEAST_LEFT_DB = {"fp32": 60.0, "fp16": 40.0, "int8": 22.0}
_SATURATED_TIMES, _SATURATED_LEAST = 5.0, 0.005
_WIDE_TIMES = 3.0  # a range so much wider than its values wastes bits that calibration would not


@dataclass(frozen=True)
class Saturation:
    """Of a quantized tensor: the share of values at the ends of its range, and beyond it in the reference; `reach` is
    the reference's largest magnitude over the range's.
    """

    tensor: str
    share: float
    expected: float
    reach: float


@dataclass(frozen=True)
class Evidence:
    """What was found out about a block at `tensor`, the first of it that is wrong when given right inputs.

    `weights` are pairs of kind and sentence, `record` likewise, from the files alone. `pixels` are the fits of the
    reference and of the candidate against the image, where the block is the input arithmetic. `unfused_db` is the SQNR
    without graph optimizations, None where that was not tried. Decibels are 400 where there is no error.
    """

    precision: str
    tensor: str
    moments: Moments
    fit: ChannelFit | None = None
    permutation: tuple[int, ...] | None = None
    transposed_db: float | None = None
    pixels: tuple[ChannelFit, ChannelFit] | None = None
    weights: tuple[tuple[str, str], ...] = ()
    record: tuple[tuple[str, str], ...] = ()
    repeats: bool = True
    saturation: tuple[Saturation, ...] = ()
    unfused_db: float | None = None
    wants_db: float = 0.0


@dataclass(frozen=True)
class Fault:
    """A class of fault and the sentence that gives the evidence."""

    kind: str
    sentence: str


def classify(evidence: Evidence) -> Fault:
    """The first class that the evidence shows, from the surest on; what the weights say is added to the sentence."""
    for rule in _RULES:
        fault = rule(evidence)
        if fault is not None:
            return Fault(fault.kind, _with_weights(fault, evidence))
    fault = Fault(UNKNOWN, f"no pattern explains how {evidence.tensor!r} differs")
    return Fault(UNKNOWN, _with_weights(fault, evidence))


def _with_weights(fault: Fault, evidence: Evidence) -> str:
    told = [sentence for _, sentence in (*evidence.weights, *evidence.record) if sentence not in fault.sentence]
    return "; ".join([fault.sentence, *told[:3]])


def _non_finite(evidence: Evidence) -> Fault | None:
    for kind, sentence in evidence.weights:
        if kind == "non-finite":
            return Fault(NON_FINITE_WEIGHTS, sentence)
    return None


def _overflow(evidence: Evidence) -> Fault | None:
    moments = evidence.moments
    if moments.candidate_finite or not moments.reference_finite:
        return None
    told = f"{evidence.tensor!r} becomes NaN or infinite where the reference reaches {moments.largest:.6g}"
    if evidence.precision == "fp16":
        told += f"; float16 ends at {HALF_MAX:g}"
    return Fault(OVERFLOW, told)


def _nondeterministic(evidence: Evidence) -> Fault | None:
    if evidence.repeats:
        return None
    told = "the same input gives other outputs when it runs again, as dropout does that was left on"
    return Fault(NONDETERMINISTIC, told)


def _channel_order(evidence: Evidence) -> Fault | None:
    order = evidence.permutation
    if order is None:
        return None
    shown = ", ".join(str(index) for index in order[:8]) + (", ..." if len(order) > 8 else "")
    named = " (RGB and BGR)" if order == (2, 1, 0) else ""
    return Fault(CHANNEL_ORDER, f"the channels of {evidence.tensor!r} are the reference's channels {shown}{named}")


def _layout(evidence: Evidence) -> Fault | None:
    db = evidence.transposed_db
    if db is None or db < _LEAST_LEFT_DB[evidence.precision] or db < _plain(evidence) + _EXPLAINED_DB:
        return None
    return Fault(LAYOUT, f"{evidence.tensor!r} is the reference's with height and width exchanged")


def _normalisation(evidence: Evidence) -> Fault | None:
    if evidence.pixels is None:
        return None
    expected, found = evidence.pixels
    if not _is_left(found, _LEAST_LEFT_DB["int8"]):
        constants = [sentence for _, sentence in evidence.weights]
        return Fault(NORMALISATION, f"the image is normalised otherwise: {constants[0]}") if constants else None
    if np.allclose(found.factor, expected.factor, rtol=1e-3) and np.allclose(found.offset, expected.offset, rtol=1e-3):
        return None
    return Fault(
        NORMALISATION,
        f"the image is normalised with mean {_means(found)} and std {_deviations(found)}, "
        f"the reference with mean {_means(expected)} and std {_deviations(expected)} (of pixels in 0..1)",
    )


def _recorded(evidence: Evidence) -> Fault | None:
    for kind, sentence in evidence.record:
        return Fault(kind, sentence)
    return None


def _affine(evidence: Evidence) -> Fault | None:
    fit = evidence.fit
    if fit is None or not evidence.moments.finite:
        return None
    if not _is_left(fit, max(_LEAST_LEFT_DB[evidence.precision], _plain(evidence) + _EXPLAINED_DB)):
        return None
    weight = fit.spread * fit.spread
    total = float(weight.sum())
    if total <= 0.0:
        return None
    factor = float((fit.factor * weight).sum() / total)
    uneven = math.sqrt(float(((fit.factor - factor) ** 2 * weight).sum() / total)) / max(abs(factor), 1e-12)
    if float(weight[fit.factor < 0].sum()) > 0.5 * total:
        return Fault(SIGN, f"{evidence.tensor!r} is {factor:.3g} times the reference's, but for a constant a channel")
    if uneven < 0.02 and abs(factor - 1.0) > 0.02:
        return _constant_multiple(evidence, factor)
    return _shift(evidence, fit, uneven)


def _constant_multiple(evidence: Evidence, factor: float) -> Fault:
    kind = SCALE if evidence.precision == "int8" else WEIGHTS
    told = f"{evidence.tensor!r} is {factor:.4g} times the reference's in every channel, but for a constant"
    return Fault(kind, told)


def _shift(evidence: Evidence, fit: ChannelFit, uneven: float) -> Fault:
    offset = fit.offset
    middle = float(np.median(offset))
    is_uniform = float(np.abs(offset - middle).max()) <= 0.05 * abs(middle)
    if evidence.precision == "int8" and is_uniform and uneven < 0.02:
        return Fault(ZERO_POINT, f"{evidence.tensor!r} is shifted by {middle:.4g} in every channel")
    moved = (np.abs(fit.factor - 1) > 0.02) | (np.abs(offset) > 0.02 * np.maximum(fit.spread, 1e-12))
    channels = int(np.count_nonzero(moved))
    return Fault(
        BATCH_NORM,
        f"a scale and a shift a channel explain {evidence.tensor!r}: {channels} of {len(offset)} channels have "
        f"others than the reference (factors {fit.factor.min():.3g} to {fit.factor.max():.3g}, "
        f"shifts {offset.min():.3g} to {offset.max():.3g})",
    )


def _weights(evidence: Evidence) -> Fault | None:
    return Fault(WEIGHTS, evidence.weights[0][1]) if evidence.weights else None


def _clipping(evidence: Evidence) -> Fault | None:
    for seen in evidence.saturation:
        if seen.share > max(_SATURATED_TIMES * seen.expected, _SATURATED_LEAST) or seen.reach > 2.0:
            return Fault(
                CLIPPING,
                f"{seen.share:.1%} of the values of {seen.tensor!r} are at the ends of its range, which the reference "
                f"exceeds {seen.reach:.2g} times",
            )
    return None


def _wide_range(evidence: Evidence) -> Fault | None:
    for seen in evidence.saturation:
        if 0.0 < seen.reach < 1.0 / _WIDE_TIMES:
            return Fault(
                SCALE,
                f"the range of {seen.tensor!r} is {1.0 / seen.reach:.1f} times as wide as its values reach, so "
                "its step is that much too coarse",
            )
    return None


def _fusion(evidence: Evidence) -> Fault | None:
    db = evidence.unfused_db
    if db is None or db < evidence.wants_db or db < _plain(evidence) + _EXPLAINED_DB:
        return None
    told = f"without graph optimizations {evidence.tensor!r} is right ({db:.0f} dB): a fused kernel is wrong"
    return Fault(FUSION, told)


_RULES: tuple[Callable[[Evidence], Fault | None], ...] = (
    _non_finite, _nondeterministic, _overflow, _channel_order, _layout, _normalisation, _recorded, _fusion, _affine,
    _weights, _clipping, _wide_range,
)  # fmt: skip


def _plain(evidence: Evidence) -> float:
    db = evidence.moments.sqnr_db
    return math.inf if db is None else db


def _is_left(fit: ChannelFit, least_db: float) -> bool:
    return fit.left_db is None or fit.left_db >= least_db


def _means(fit: ChannelFit) -> str:
    """Normalised = factor * pixel + offset, so the mean is where it is 0; of pixels in 0..1."""
    return _numbers(-fit.offset / fit.factor / 255.0)


def _deviations(fit: ChannelFit) -> str:
    return _numbers(1.0 / fit.factor / 255.0)


def _numbers(values: np.typing.NDArray[np.float64]) -> str:
    return "(" + ", ".join(f"{value:.3f}" for value in values) + ")"

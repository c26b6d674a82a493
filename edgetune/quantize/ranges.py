"""From what a tensor was seen to hold to its scale and zero point."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgetune.quantize.histogram import Histogram
from edgetune.quantize.qdq import QuantParams, represented_range
from edgetune.quantize.targets import Target

_PERCENTILES = (99.9, 99.99, 99.999)
_SHRINKS = tuple(float(share) for share in np.linspace(0.98, 0.3, 35))
_SMALLEST_SCALE = 1e-30  # untrained networks shrink their activations to almost nothing
# Rounding errors of neighbours average out in the sums of the next layer; clipping errors of neighbours all have one
# sign and add up. Measured on EfficientNet-Lite0: without this factor KL is a quarter higher where weights are rounded
# to nearest, and the same where they are compensated.
_CLIPPING_WEIGHT = 10.0


@dataclass(frozen=True)
class RangeChoice:
    """A tensor's range, the candidate it came from, and the mean squared error of quantizing with it; `sqnr_db` is
    the power of the values over that error.
    """

    low: float
    high: float
    method: str
    mse: float
    sqnr_db: float


def choose_range(seen: Histogram, target: Target) -> RangeChoice:
    """The candidate with the smallest expected squared error over the histogram: the extremes, percentiles, and
    shrunk extremes (the search of OMSE, Choukroun et al. 2019).
    """
    candidates = [("min-max", seen.low, seen.high)]
    candidates += [(f"percentile {share:g}", *_percentile(seen, share)) for share in _PERCENTILES]
    candidates += [(f"MSE {share:.2f}", seen.low * share, seen.high * share) for share in _SHRINKS]
    values, counts = seen.centres(), seen.counts.astype(np.float64)
    step = 2.0 * seen.reach / len(counts)
    total = max(counts.sum(), 1.0)
    errors = [_squared_error(values, counts, step, to_params(low, high, target), target) for _, low, high in candidates]
    best = int(np.argmin(errors))
    mse = errors[best] / total
    power = float((counts * values**2).sum()) / total
    sqnr_db = 10.0 * float(np.log10(power / mse)) if mse > 0.0 and power > 0.0 else float("inf")
    name, low, high = candidates[best]
    return RangeChoice(low, high, name, mse, sqnr_db)


def to_params(low: float, high: float, target: Target) -> QuantParams:
    """Scale and zero point that span `[low, high]`, widened to hold 0: padding and Relu must stay exact."""
    low, high = min(low, 0.0), max(high, 0.0)
    lowest, highest = target.limits
    if target.symmetric:
        return QuantParams(_scale(max(-low, high), highest), 0)
    scale = _scale(high - low, highest - lowest)
    zero_point = int(np.clip(np.round(lowest - low / float(scale)), lowest, highest))
    return QuantParams(scale, zero_point)


def _scale(width: float, steps: int) -> np.float32:
    scale: np.float32 = np.float32(max(width / steps, _SMALLEST_SCALE))
    return scale


def _percentile(seen: Histogram, share: float) -> tuple[float, float]:
    """The bin edges between which `share` percent of the values lie, half of the rest on each side."""
    cumulated = np.cumsum(seen.counts)
    outside = cumulated[-1] * (1.0 - share / 100.0) / 2.0
    edges = (np.arange(len(seen.counts) + 1) - len(seen.counts) // 2) * (2.0 * seen.reach / len(seen.counts))
    first = int(np.searchsorted(cumulated, outside, side="right"))
    last = int(np.searchsorted(cumulated, cumulated[-1] - outside, side="left"))
    return max(float(edges[first]), seen.low), min(float(edges[last + 1]), seen.high)


def _squared_error(
    values: npt.NDArray[np.float64], counts: npt.NDArray[np.float64], bin_width: float, params: QuantParams,
    target: Target,
) -> float:  # fmt: skip
    """Rounding inside the range (a twelfth of a squared step, unless the step is finer than the histogram can see),
    and the squared distance to the range outside of it, which weighs more.
    """
    low, high = represented_range(params, target)
    step = float(params.scale)
    outside = np.maximum(low - values, 0.0) + np.maximum(values - high, 0.0)
    clipped = outside > 0.0
    inside = counts[~clipped & (np.abs(values) > bin_width / 4)].sum()  # 0 is exact on every grid
    rounding = float(inside) * step * step / 12.0
    return rounding + _CLIPPING_WEIGHT * float((counts[clipped] * outside[clipped] ** 2).sum())

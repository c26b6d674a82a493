"""Histograms that grow with what they see and yet depend on neither its order nor how it was batched."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

BINS = 2048
_LEAST_REACH = 2.0**-100  # bins per unit must stay a float32


class Histogram:
    """Counts values in `BINS` equal bins over [-reach, reach), with `reach` a power of two.

    A value outside doubles the reach, which adds neighbouring bins in pairs: the bins of the wider range are unions
    of the narrower one's, so the counts are those of a histogram that had been wide from the start.
    """

    def __init__(self) -> None:
        self.counts = np.zeros(BINS, np.int64)
        self.reach = 0.0
        self.low, self.high = math.inf, -math.inf

    def add(self, values: npt.NDArray[np.float32], low: float, high: float) -> None:
        """Counts `values`; `low` and `high` are the extremes of all values, also of those that were not sampled."""
        self.low, self.high = min(self.low, low), max(self.high, high)
        needed = max(abs(low), abs(high))
        if needed > 0.0 and (self.reach == 0.0 or needed >= self.reach):
            self._grow(max(2.0 ** (math.floor(math.log2(needed)) + 1), _LEAST_REACH))
        if self.reach == 0.0:
            self.counts[BINS // 2] += values.size  # nothing but zeros so far
            return
        scale = np.float32(BINS / (2.0 * self.reach))  # a power of two: the product is exact
        # Rounded down before the middle is added: the sum of the two would be rounded itself, across a bin's edge.
        bins = np.floor(values.reshape(-1) * scale).astype(np.int32) + BINS // 2
        self.counts += np.bincount(bins, minlength=BINS)

    def centres(self) -> npt.NDArray[np.float64]:
        """The middle of each bin; the bin that starts at 0 stands for 0 itself, which Relu makes in great numbers."""
        width = 2.0 * self.reach / BINS
        middles = np.linspace(-self.reach, self.reach, BINS, endpoint=False, dtype=np.float64) + width / 2
        middles[BINS // 2] = 0.0
        return middles

    def _grow(self, reach: float) -> None:
        if self.reach == 0.0:
            self.reach = reach
            return
        while self.reach < reach:
            pairs = self.counts.reshape(-1, 2).sum(axis=1)
            self.counts = np.zeros(BINS, np.int64)
            self.counts[BINS // 4 : BINS // 4 + BINS // 2] = pairs
            self.reach *= 2.0

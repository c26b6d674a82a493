"""Intervals for accuracies: what a number of images can and cannot tell."""

from __future__ import annotations

import math

_Z_95_TWO_SIDED = 1.959963984540054
_Z_95_ONE_SIDED = 1.6448536269514722


def wilson_interval(hits: int, count: int) -> tuple[float, float]:
    """The 95 % score interval of a proportion (Wilson 1927)."""
    if count == 0:
        return 0.0, 1.0
    z, share = _Z_95_TWO_SIDED, hits / count
    centre = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count)) / (1 + z * z / count)
    return max(0.0, centre - half), min(1.0, centre + half)


def paired_drop_upper_bound(worse: int, better: int, count: int) -> float:
    """The one-sided 95 % upper bound of an accuracy drop between two models on the same images.

    `worse` images only the reference got right, `better` only the candidate. Adjusted Wald interval for
    matched pairs (Agresti and Min 2005): half an observation is added to each cell of the 2x2 table.
    """
    total = count + 2
    drop = (worse - better) / total
    variance = ((worse + better + 1) - (worse - better) ** 2 / total) / total**2
    return drop + _Z_95_ONE_SIDED * math.sqrt(variance)


def images_to_certify(budget: float, discordant_share: float) -> int:
    """How many images bring `paired_drop_upper_bound` to `budget` when the models are equally accurate.

    `discordant_share` is the expected share of images on which exactly one of them is right.
    """
    low, high = 1, 100_000_000
    while low < high:
        count = (low + high) // 2
        each = discordant_share * count / 2
        variance = (2 * each + 1) / (count + 2) ** 2
        if _Z_95_ONE_SIDED * math.sqrt(variance) <= budget:
            high = count
        else:
            low = count + 1
    return low

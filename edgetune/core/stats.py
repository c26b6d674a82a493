"""Intervals for accuracies: what a number of images can and cannot tell."""

from __future__ import annotations

import math
from statistics import NormalDist

_Z_95_TWO_SIDED = 1.959963984540054
_Z_95_ONE_SIDED = 1.6448536269514722
_Z_80 = 0.8416212335729143


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
    drop, deviation = _adjusted_drop(worse, better, count)
    return drop + _Z_95_ONE_SIDED * deviation


def _adjusted_drop(worse: int, better: int, count: int) -> tuple[float, float]:
    """The drop with half an observation more in each cell, and its standard deviation."""
    total = count + 2
    drop = (worse - better) / total
    variance = ((worse + better + 1) - (worse - better) ** 2 / total) / total**2
    return drop, math.sqrt(variance)


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


def paired_drop_interval(worse: int, better: int, count: int) -> tuple[float, float]:
    """The two-sided 95 % interval of the same drop, by the same method as `paired_drop_upper_bound`."""
    drop, deviation = _adjusted_drop(worse, better, count)
    return drop - _Z_95_TWO_SIDED * deviation, drop + _Z_95_TWO_SIDED * deviation


def drop_is_over(budget: float, worse: int, better: int, count: int, *, tests: int = 1) -> bool:
    """Whether chance alone hardly explains that of `count` images `worse` were lost and `better` won, if the drop were
    at most `budget`, a share of images.

    Both must hold at 5 %, shared among `tests` questions (Bonferroni): the lower bound of the drop by the method of
    `paired_drop_upper_bound` is over the budget; and the sign test (McNemar's, exact), which small numbers need, says
    that something was lost at all.
    """
    level = 0.05 / tests
    drop, deviation = _adjusted_drop(worse, better, count)
    if worse <= better or drop - NormalDist().inv_cdf(1.0 - level) * deviation <= budget:
        return False
    discordant = worse + better
    tail = sum(math.comb(discordant, wins) for wins in range(better + 1)) / 2**discordant
    return bool(tail <= level)


def detectable_drop(discordant_share: float, count: int) -> float:
    """The smallest drop that `count` images show with 80 % power in a two-sided 5 % test of paired accuracies.

    Connor 1987, equation for McNemar's test solved for the difference; `discordant_share` is the share of images on
    which exactly one of the models is right, which no drop can exceed.
    """
    low, high = 0.0, 1.0
    for _ in range(50):
        drop = (low + high) / 2
        share = max(discordant_share, drop)
        power_z = drop * math.sqrt(count) - _Z_95_TWO_SIDED * math.sqrt(share)
        if power_z >= _Z_80 * math.sqrt(max(share - drop * drop, 0.0)):
            high = drop
        else:
            low = drop
    return high

"""The accuracy budget: as few layers in float as it takes, found in as few trials as possible, before a deadline."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar


class Attempt(Protocol):
    """One quantized model; `drop` is the share of images it loses against FP32."""

    @property
    def drop(self) -> float: ...


A = TypeVar("A", bound=Attempt)


@dataclass(frozen=True)
class Trial:
    """`kept_float` layers were float, and this was the drop."""

    kept_float: int
    drop: float


def meet_budget(
    first: A, ranked: Sequence[str], attempt: Callable[[tuple[str, ...]], A], max_drop: float, deadline: float
) -> tuple[A, tuple[Trial, ...]]:
    """`first` if it keeps to the budget; else the attempt with the fewest layers of `ranked` in float that does: their
    number is doubled until the budget is met, then narrowed down by halves. After `deadline` (of time.monotonic), or
    when all are tried in vain, the best attempt so far.
    """
    trials = [Trial(0, first.drop)]
    best, failed, passed = first, 0, 0

    def run(count: int) -> bool:
        nonlocal best
        found = attempt(tuple(ranked[:count]))
        trials.append(Trial(count, found.drop))
        good = found.drop <= max_drop
        if good or found.drop < best.drop:
            best = found
        return good

    count = 1
    while first.drop > max_drop and not passed and failed < len(ranked) and time.monotonic() < deadline:
        count = min(count, len(ranked))
        if run(count):
            passed = count
        else:
            failed, count = count, count * 2
    while passed - failed > 1 and time.monotonic() < deadline:
        middle = (passed + failed) // 2
        if run(middle):
            passed = middle
        else:
            failed = middle
    return best, tuple(trials)

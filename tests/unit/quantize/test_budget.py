"""The search for layers to keep in float, on networks whose drop is a table."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from edgetune.quantize.budget import meet_budget

LAYERS = tuple(f"layer{index}" for index in range(20))


@dataclass(frozen=True)
class Attempt:
    kept: int
    drop: float


def _table(needed: int) -> Callable[[tuple[str, ...]], Attempt]:
    """With `needed` layers or more in float nothing is lost; each one fewer costs a hundredth."""
    return lambda kept: Attempt(len(kept), max(0.0, (needed - len(kept)) / 100))


@pytest.mark.parametrize("needed", [1, 2, 3, 5, 8, 13, 16, 17, 20])
def test_the_fewest_layers_that_meet_the_budget_are_kept(needed: int) -> None:
    attempt = _table(needed)
    best, trials = meet_budget(attempt(()), LAYERS, attempt, 0.0, math.inf)
    assert best == Attempt(needed, 0.0)
    assert len(trials) <= 2 + 2 * math.ceil(math.log2(20))
    assert {(trial.kept_float, trial.drop) for trial in trials} >= {(0, needed / 100), (needed, 0.0)}


def test_what_meets_the_budget_is_taken_as_it_is() -> None:
    best, trials = meet_budget(Attempt(0, 0.01), LAYERS, _fail, 0.01, math.inf)
    assert best.kept == 0
    assert len(trials) == 1


def test_the_most_sensitive_layers_are_kept_first() -> None:
    asked: list[tuple[str, ...]] = []

    def attempt(kept: tuple[str, ...]) -> Attempt:
        asked.append(kept)
        return _table(3)(kept)

    meet_budget(Attempt(0, 0.03), LAYERS, attempt, 0.0, math.inf)
    assert asked == [LAYERS[:1], LAYERS[:2], LAYERS[:4], LAYERS[:3]]


def test_in_vain_the_best_attempt_is_kept() -> None:
    drops = {0: 0.5, 1: 0.4, 2: 0.3, 4: 0.45, 5: 0.35}
    best, trials = meet_budget(
        Attempt(0, 0.5), LAYERS[:5], lambda kept: Attempt(len(kept), drops[len(kept)]), 0.1, math.inf
    )
    assert best == Attempt(2, 0.3)
    assert [trial.kept_float for trial in trials] == [0, 1, 2, 4, 5]


def test_after_the_deadline_nothing_more_is_tried() -> None:
    best, trials = meet_budget(Attempt(0, 0.5), LAYERS, _fail, 0.1, time.monotonic() - 1)
    assert best.kept == 0
    assert len(trials) == 1


def test_without_layers_to_keep_the_first_attempt_stays() -> None:
    assert meet_budget(Attempt(0, 0.5), (), _fail, 0.1, math.inf)[0].kept == 0


def _fail(_: tuple[str, ...]) -> Attempt:
    raise AssertionError("nothing is to be tried")

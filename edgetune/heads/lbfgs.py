"""Several smooth convex problems minimised side by side, so that one pass over the data serves them all.

Limited-memory BFGS (Liu and Nocedal 1989) in its two-loop form. Each problem has its own steps and its own end; only
the evaluations are shared, which turns thin matrix products into broad ones.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
# Points (A, n) of the problems whose numbers (A,) come second, to losses (A,) and gradients (A, n).
Evaluate = Callable[[Floats, npt.NDArray[np.int64]], tuple[Floats, Floats]]

_MEMORY = 20
_MEMORY_BYTES = 1 << 28  # of the steps remembered, over all problems
_SUFFICIENT = 1e-4  # Armijo's share of the decrease that the slope promises
# Losses are sums of float32 terms: below this share of the loss a rise is rounding.
_NOISE = 1e-7
_SHORTEST_STEP = 1e-10


def minimise(
    evaluate: Evaluate, start: Floats, guess: Floats | None = None, *, tolerance: float, max_rounds: int = 2000
) -> Floats:
    """The minima `(B, n)` of B problems, from `start` `(B, n)`. A problem is done when no entry of its gradient is
    above `tolerance`, when no shorter step lowers its loss any more, or after `max_rounds` evaluations. One that is not
    done at `start` sets out from `guess` `(B, n)`, where there is one.
    """
    numbers = np.arange(len(start))
    losses, slopes = evaluate(start, numbers)
    moved = np.flatnonzero(np.abs(slopes).max(axis=1) > tolerance)
    if guess is not None and len(moved):
        start = start.copy()
        start[moved] = guess[moved]
        losses[moved], slopes[moved] = evaluate(start[moved], moved)
    remembered = max(5, min(_MEMORY, _MEMORY_BYTES // (16 * start.size)))
    searches = [_Search(*each, remembered) for each in zip(start, losses, slopes, strict=True)]
    for _ in range(max_rounds):
        running = [number for number in numbers if not searches[number].is_done(tolerance)]
        if not running:
            break
        trials = np.stack([searches[number].trial for number in running])
        losses, slopes = evaluate(trials, np.array(running))
        for number, loss, slope in zip(running, losses, slopes, strict=True):
            searches[number].judge(float(loss), slope)
    return np.stack([search.point for search in searches])


class _Search:
    """One problem: where it is, what it remembers, and the point it wants to try next."""

    trial: Floats
    _direction: Floats
    _descent: float
    _length: float

    def __init__(self, point: Floats, loss: float, slope: Floats, remembered: int) -> None:
        self.point = point
        self._loss = float(loss)
        self._slope = slope
        self._remembered = remembered
        self._steps: list[tuple[Floats, Floats, float]] = []
        self._is_stuck = False
        self._aim()

    def is_done(self, tolerance: float) -> bool:
        return self._is_stuck or float(np.abs(self._slope).max()) <= tolerance

    def judge(self, loss: float, slope: Floats) -> None:
        """Takes the trial if its loss is low enough, else tries a shorter step."""
        allowed = self._loss + _SUFFICIENT * self._length * self._descent + _NOISE * abs(self._loss)
        if loss <= allowed:
            self._remember(self.trial - self.point, slope - self._slope)
            self.point, self._loss, self._slope = self.trial, loss, slope
            self._aim()
            return
        curve = loss - self._loss - self._length * self._descent
        fitted = -0.5 * self._descent * self._length**2 / curve if np.isfinite(curve) and curve > 0.0 else 0.0
        self._length = min(0.5 * self._length, max(0.1 * self._length, fitted))
        self.trial = self.point + self._length * self._direction
        self._is_stuck = self._length < _SHORTEST_STEP

    def _remember(self, step: Floats, change: Floats) -> None:
        curvature = float(step @ change)
        if curvature > 1e-10 * float(change @ change):
            self._steps = [*self._steps[1 - self._remembered :], (step, change, 1.0 / curvature)]

    def _aim(self) -> None:
        self._direction = -self._smoothed()
        self._descent = float(self._direction @ self._slope)
        if self._descent >= 0.0:  # rounding has spoilt what is remembered
            self._steps = []
            self._direction, self._descent = -self._slope, -float(self._slope @ self._slope)
        # Without any step remembered nothing is known of the scale.
        self._length = 1.0 if self._steps else 1.0 / max(1.0, float(np.linalg.norm(self._slope)))
        self.trial = self.point + self._length * self._direction

    def _smoothed(self) -> Floats:
        """The slope times the inverse Hessian that the remembered steps tell of."""
        rest: Floats = self._slope.copy()
        shares = []
        for step, change, inverse in reversed(self._steps):
            share = inverse * float(step @ rest)
            shares.append(share)
            rest -= share * change
        if self._steps:
            _, change, inverse = self._steps[-1]
            rest /= inverse * float(change @ change)
        for (step, change, inverse), share in zip(self._steps, reversed(shares), strict=True):
            rest += (share - inverse * float(change @ rest)) * step
        return rest

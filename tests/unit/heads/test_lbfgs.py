"""The minimiser, on problems whose minima are known."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from edgetune.heads.lbfgs import minimise

Floats = npt.NDArray[np.float64]
Numbers = npt.NDArray[np.int64]


def _quadratics(matrices: Floats, centres: Floats, seen: list[list[int]] | None = None):  # type: ignore[no-untyped-def]
    def evaluate(points: Floats, numbers: Numbers) -> tuple[Floats, Floats]:
        if seen is not None:
            seen.append(numbers.tolist())
        moved = points - centres[numbers]
        slopes = np.einsum("aij,aj->ai", matrices[numbers], moved)
        return 0.5 * np.einsum("ai,ai->a", moved, slopes), slopes

    return evaluate


def test_each_problem_gets_to_its_own_minimum() -> None:
    random = np.random.default_rng(0)
    roots = random.normal(size=(3, 6, 6))
    matrices = roots @ roots.transpose(0, 2, 1) + 0.1 * np.eye(6)
    centres = random.normal(size=(3, 6))
    found = minimise(_quadratics(matrices, centres), np.zeros((3, 6)), tolerance=1e-10)
    np.testing.assert_allclose(found, centres, rtol=0, atol=1e-7)


def test_problems_side_by_side_are_problems_alone() -> None:
    matrices = np.stack([np.diag([1.0, 50.0]), np.diag([3.0, 0.2])])
    centres = np.array([[1.0, -2.0], [0.5, 4.0]])
    both = minimise(_quadratics(matrices, centres), np.ones((2, 2)), tolerance=1e-9)
    for number in range(2):
        alone = minimise(
            _quadratics(matrices[number : number + 1], centres[number : number + 1]), np.ones((1, 2)), tolerance=1e-9
        )
        np.testing.assert_array_equal(alone[0], both[number])


def test_a_problem_that_is_done_is_not_evaluated_again() -> None:
    seen: list[list[int]] = []
    matrices = np.stack([np.eye(2), np.diag([1.0, 1000.0])])
    start = np.array([[3.0, 3.0], [5.0, 5.0]])
    minimise(_quadratics(matrices, np.array([[3.0, 3.0], [1.0, 1.0]]), seen), start, tolerance=1e-9)
    assert seen[0] == [0, 1]
    assert len(seen) > 2
    assert all(numbers == [1] for numbers in seen[1:])


def test_a_problem_that_is_not_done_sets_out_from_its_guess() -> None:
    seen: list[list[int]] = []
    centres = np.array([[3.0, 3.0], [1.0, 1.0]])
    evaluate = _quadratics(np.stack([np.eye(2)] * 2), centres, seen)
    start, guess = np.array([[3.0, 3.0], [5.0, 5.0]]), np.array([[9.0, 9.0], [1.0, 1.0]])
    found = minimise(evaluate, start, guess, tolerance=1e-9)
    np.testing.assert_array_equal(found, centres)
    assert seen == [[0, 1], [1]]
    np.testing.assert_array_equal(start[1], [5.0, 5.0])


def test_steps_that_go_too_far_are_shortened() -> None:
    """log cosh is flat far out, where a step by the curvature seen so far leaps over the minimum."""

    def evaluate(points: Floats, numbers: Numbers) -> tuple[Floats, Floats]:
        return np.logaddexp(points, -points).sum(axis=1), np.tanh(points)

    found = minimise(evaluate, np.array([[30.0, -4.0]]), tolerance=1e-9)
    np.testing.assert_allclose(found, 0.0, rtol=0, atol=1e-8)


def test_a_curved_valley_is_followed_to_its_end() -> None:
    """Rosenbrock's function, with its minimum at (1, 1)."""

    def evaluate(points: Floats, numbers: Numbers) -> tuple[Floats, Floats]:
        x, y = points[:, 0], points[:, 1]
        bend = y - x**2
        slopes = np.stack([-2.0 * (1.0 - x) - 400.0 * x * bend, 200.0 * bend], axis=1)
        return (1.0 - x) ** 2 + 100.0 * bend**2, slopes

    found = minimise(evaluate, np.array([[-1.2, 1.0]]), tolerance=1e-8)
    np.testing.assert_allclose(found, 1.0, rtol=0, atol=1e-6)


def test_a_loss_that_is_infinite_on_the_way_is_backed_out_of() -> None:
    """x - log x from 5: the first step goes to 4.2, where the curvature seen says -12, out of the function's domain."""
    visited: list[float] = []

    def evaluate(points: Floats, numbers: Numbers) -> tuple[Floats, Floats]:
        x = points[:, 0]
        visited.append(float(x[0]))
        with np.errstate(divide="ignore", invalid="ignore"):
            losses = np.where(x > 0.0, x - np.log(np.maximum(x, 1e-300)), np.inf)
            return losses, np.where(x > 0.0, 1.0 - 1.0 / x, np.nan)[:, np.newaxis]

    found = minimise(evaluate, np.array([[5.0]]), tolerance=1e-9)
    np.testing.assert_allclose(found, 1.0, rtol=0, atol=1e-7)
    assert min(visited) < 0.0


@pytest.mark.parametrize("rounds", [0, 1, 3])
def test_the_rounds_are_bounded(rounds: int) -> None:
    seen: list[list[int]] = []
    matrices = np.diag([1.0, 1e6])[np.newaxis]
    minimise(_quadratics(matrices, np.zeros((1, 2)), seen), np.ones((1, 2)), tolerance=0.0, max_rounds=rounds)
    assert len(seen) == rounds + 1

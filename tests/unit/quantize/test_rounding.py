"""Rounding against NumPy's least squares, brute force, and each group done alone."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgetune.quantize.rounding import (
    LIMIT,
    Moments,
    channel_scale,
    compensated,
    fitted_weights,
    moments_of,
    nearest,
    widen_for_bias,
)

Floats = npt.NDArray[np.float64]
_RIDGE = 3.0  # times the mean variance of the inputs


def _inputs(groups: int, samples: int, size: int, seed: int = 0) -> npt.NDArray[np.float32]:
    """Correlated inputs with a mean, as convolutions read them."""
    random = np.random.default_rng(seed)
    mixing = random.normal(size=(groups, size, size)) + 2.0
    mixed: npt.NDArray[np.float32] = (random.normal(size=(groups, samples, size)) @ mixing + 1.5).astype(np.float32)
    return mixed


def _problem(groups: int, outputs: int, size: int, seed: int = 0) -> tuple[Floats, Moments]:
    """Weights, and the moments of inputs with outputs that slightly different weights give."""
    random = np.random.default_rng(seed + 100)
    weights = random.normal(size=(groups, outputs, size))
    inputs = _inputs(groups, 200, size, seed)
    made = inputs @ (weights * random.uniform(0.9, 1.1, weights.shape)).transpose(0, 2, 1)
    return weights, moments_of(inputs, made.astype(np.float32))


def _quadratic(moments: Moments) -> Floats:
    """What the error is measured with: the inputs' covariance with the ridge on its diagonal."""
    size = moments.inputs.shape[-1]
    variance = np.trace(moments.inputs, axis1=1, axis2=2) / size
    quadratic: Floats = moments.inputs + (_RIDGE * variance)[:, None, None] * np.eye(size)
    return quadratic


def _error(integers: Floats, weights: Floats, scale: npt.NDArray[np.float32], moments: Moments) -> Floats:
    """One error `(G, O)` per output."""
    away = integers * scale[..., None].astype(np.float64) - weights
    error: Floats = np.einsum("gok,gkl,gol->go", away, _quadratic(moments), away)
    return error


def test_moments_are_numpys_covariances() -> None:
    inputs, outputs = _inputs(2, 500, 4), _inputs(2, 500, 3, seed=1)
    moments = moments_of(inputs, outputs)
    for group in range(2):
        both = np.cov(inputs[group].T.astype(np.float64), outputs[group].T.astype(np.float64), bias=True)
        np.testing.assert_allclose(moments.inputs[group], both[:4, :4], rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(moments.crossed[group], both[4:, :4], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("groups", "outputs", "size"), [(1, 5, 7), (3, 2, 4), (6, 1, 9)])
def test_fitted_weights_are_least_squares_with_ridge_rows(groups: int, outputs: int, size: int) -> None:
    weights, samples = np.random.default_rng(2).normal(size=(groups, outputs, size)), 300
    inputs, wanted = _inputs(groups, samples, size), _inputs(groups, samples, outputs, seed=3)
    fitted = fitted_weights(weights, moments_of(inputs, wanted))
    for group in range(groups):
        x = inputs[group].astype(np.float64) - inputs[group].mean(axis=0, dtype=np.float64)
        y = wanted[group].astype(np.float64) - wanted[group].mean(axis=0, dtype=np.float64)
        weight_of_row = np.sqrt(samples * _RIDGE * x.var(axis=0).mean())
        rows = np.vstack([x, weight_of_row * np.eye(size)])
        right = np.vstack([y, weight_of_row * weights[group].T])
        expected = np.linalg.lstsq(rows, right, rcond=None)[0].T
        np.testing.assert_allclose(fitted[group], expected, rtol=1e-3, atol=1e-4)


def test_weights_that_already_fit_stay() -> None:
    weights, inputs = np.random.default_rng(4).normal(size=(1, 3, 6)), _inputs(1, 400, 6)
    exact = (inputs @ weights.transpose(0, 2, 1)).astype(np.float32)
    np.testing.assert_allclose(fitted_weights(weights, moments_of(inputs, exact)), weights, rtol=1e-4, atol=1e-4)


def test_inputs_that_never_change_leave_the_weights_alone() -> None:
    weights, inputs = np.random.default_rng(5).normal(size=(1, 3, 4)), np.full((1, 50, 4), 2.5, np.float32)
    moments = moments_of(inputs, np.ones((1, 50, 3), np.float32))
    np.testing.assert_allclose(fitted_weights(weights, moments), weights, rtol=1e-6, atol=0)
    scale = channel_scale(weights)
    np.testing.assert_array_equal(compensated(weights, scale, moments), nearest(weights, scale))


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10_000), st.integers(1, 3), st.integers(1, 4), st.integers(1, 12), st.integers(2, 127))
def test_compensated_rounding_is_never_worse_than_nearest(
    seed: int, groups: int, outputs: int, size: int, steps: int
) -> None:
    weights, moments = _problem(groups, outputs, size, seed)
    scale = channel_scale(weights) * np.float32(LIMIT / steps)
    plain, better = nearest(weights, scale), compensated(weights, scale, moments)
    slack = 1e-4 * _error(plain, weights, scale, moments) + 1e-12
    assert (_error(better, weights, scale, moments) <= _error(plain, weights, scale, moments) + slack).all()
    np.testing.assert_array_equal(better, np.round(better))
    assert np.abs(better).max() <= LIMIT


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("size", [2, 3, 4])
def test_no_step_of_one_integer_lowers_the_error(size: int, seed: int) -> None:
    weights, moments = _problem(2, 3, size, seed)
    scale = channel_scale(weights) * np.float32(LIMIT / 6)  # steps so coarse that the choice matters
    best = compensated(weights, scale, moments)
    found = _error(best, weights, scale, moments)
    for column in range(size):
        for step in (-1, 1):
            neighbour = best.copy()
            neighbour[..., column] += step
            assert (_error(neighbour, weights, scale, moments) >= found * (1 - 1e-4)).all()


def test_compensated_rounding_gains_where_inputs_go_together() -> None:
    """Two equal inputs and weights of 0.4 steps each: nearest gives 0 + 0, the sum of 0.8 is nearly 1 + 0."""
    shared = np.random.default_rng(6).normal(size=(1, 500, 1)).astype(np.float32)
    inputs = np.concatenate([shared, shared, np.zeros((1, 500, 8), np.float32)], axis=2)
    weights = np.zeros((1, 1, 10))
    weights[..., :2] = 0.4
    moments = moments_of(inputs, (inputs @ weights.transpose(0, 2, 1)).astype(np.float32))
    scale = np.ones((1, 1), np.float32)
    # Ridge 3 * 0.2 = 0.6 of the variance: nearest costs 0.64 + 0.6 * 0.32 = 0.83, one step 0.04 + 0.6 * 0.52 = 0.35.
    assert nearest(weights, scale)[0, 0, :2].tolist() == [0, 0]
    assert sorted(compensated(weights, scale, moments)[0, 0, :2].tolist()) == [0, 1]


@pytest.mark.parametrize("size", [127, 128, 129, 300])
def test_blocks_of_columns_do_not_change_the_result_beyond_rounding(size: int) -> None:
    """The sweep written out one weight at a time, with the gradient computed anew in float64."""
    weights, moments = _problem(1, 2, size)
    scale = channel_scale(weights) * np.float32(8)
    quadratic, step = _quadratic(moments)[0], scale[0].astype(np.float64)
    integers = np.clip(np.round(weights[0] / step[:, None]), -LIMIT, LIMIT)
    for _ in range(4):
        for column in range(size):
            gradient = (integers * step[:, None] - weights[0]) @ quadratic[:, column]
            aim = integers[:, column] - gradient / (quadratic[column, column] * step)
            integers[:, column] = np.clip(np.round(aim), -LIMIT, LIMIT)
    got = compensated(weights, scale, moments)
    np.testing.assert_allclose(
        _error(got, weights, scale, moments), _error(integers[None], weights, scale, moments), rtol=0.02, atol=0
    )


@pytest.mark.parametrize(("groups", "outputs", "size"), [(4, 2, 9), (8, 1, 9)], ids=["grouped", "depthwise"])
def test_groups_together_give_what_each_gives_alone(groups: int, outputs: int, size: int) -> None:
    weights, moments = _problem(groups, outputs, size)
    scale = channel_scale(weights)
    fitted, rounded = fitted_weights(weights, moments), compensated(weights, scale, moments)
    for group in range(groups):
        own = slice(group, group + 1)
        alone = Moments(moments.inputs[own], moments.crossed[own])
        np.testing.assert_allclose(fitted[own], fitted_weights(weights[own], alone), rtol=1e-9, atol=1e-12)
        np.testing.assert_array_equal(rounded[own], compensated(weights[own], scale[own], alone))


def test_scales_are_a_channels_reach_over_127_and_dead_channels_take_the_widest() -> None:
    weights = np.array([[[0.5, -1.27], [0.0, 0.0], [2.54, 0.1], [1e-9, -1e-9]]])
    np.testing.assert_allclose(channel_scale(weights), [[0.01, 0.02, 0.02, 0.02]], rtol=1e-6, atol=0)


def test_weights_of_zeros_alone_have_a_finite_positive_scale() -> None:
    scale = channel_scale(np.zeros((1, 3, 4)))
    assert np.isfinite(scale).all()
    assert (scale > 0).all()


def test_nearest_rounds_half_to_even_and_keeps_to_127() -> None:
    weights = np.array([[[0.5, 1.5, -2.5, 0.4, 300.0, -300.0]]])
    assert nearest(weights, np.ones((1, 1), np.float32))[0, 0].tolist() == [0, 2, -2, 0, 127, -127]


@settings(deadline=None)
@given(st.floats(-1e6, 1e6), st.floats(1e-12, 1e3), st.floats(1e-12, 1e3))
def test_a_bias_never_overflows_int32(bias: float, scale: float, input_scale: float) -> None:
    given_scale = np.array([[scale]], np.float32)
    widened = widen_for_bias(given_scale, np.array([[bias]]), input_scale)
    assert abs(bias) / (float(widened[0, 0]) * input_scale) < 2**31 - 1
    assert widened[0, 0] >= given_scale[0, 0]


def test_scales_are_widened_only_where_the_bias_needs_it() -> None:
    scale, bias = np.full((1, 3), 1e-6, np.float32), np.array([[1.0, 1e4, -1e4]])
    widened = widen_for_bias(scale, bias, 1e-3)  # int32 holds 2.1 at 1e-9 a step
    np.testing.assert_allclose(
        widened, [[1e-6, 1e4 / (1e-3 * 2147483647 * 0.9), 1e4 / (1e-3 * 2147483647 * 0.9)]], rtol=1e-6
    )

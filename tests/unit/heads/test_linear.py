"""Softmax regression and the linear SVM: their minima, and how the L2 strength is chosen."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest

from edgetune.core.head_recipe import LINEAR, SVM, HeadRecipe
from edgetune.core.progress import no_progress
from edgetune.heads.examples import Examples
from edgetune.heads.fit import refit_head
from edgetune.heads.head import Head
from edgetune.heads.linear import L2_GRID, MIN_VALUES, LinearFit, fit_linear, refit_linear
from tests.unit.heads.head_cases import (
    Features,
    Labels,
    Wide,
    centred_rows,
    clusters,
    examples,
    standardised,
)

pytest.importorskip("threadpoolctl")


def _refit(features: Features, labels: Labels, classes: int, l2: float, kind: str = LINEAR) -> Head:
    return refit_head(features, labels, classes, HeadRecipe(kind, l2))


def _fit(given: Examples, kind: str = LINEAR) -> LinearFit:
    return fit_linear(given, kind, no_progress)


def _objective(scaled: Wide, labels: Labels, classes: int, l2: float) -> Callable[[Wide], tuple[float, Wide]]:
    """Mean log loss + l2 / (2 N) * |W|^2 with its gradient, over W and b in one vector."""
    images, width = scaled.shape
    targets = np.eye(classes)[labels]

    def value_and_gradient(parameters: Wide) -> tuple[float, Wide]:
        weight, bias = parameters[: classes * width].reshape(classes, width), parameters[classes * width :]
        logits = scaled @ weight.T + bias
        largest = logits.max(axis=1, keepdims=True)
        log_sums = largest + np.log(np.exp(logits - largest).sum(axis=1, keepdims=True))
        loss = float((log_sums[:, 0] - (targets * logits).sum(axis=1)).mean() + l2 / (2 * images) * (weight**2).sum())
        errors = (np.exp(logits - log_sums) - targets) / images
        slope = errors.T @ scaled + l2 / images * weight
        return loss, np.concatenate([slope.ravel(), errors.sum(axis=0)])

    return value_and_gradient


def _solve(scaled: Wide, labels: Labels, classes: int, l2: float) -> tuple[Wide, Wide]:
    optimize = pytest.importorskip("scipy.optimize")
    start = np.zeros(classes * scaled.shape[1] + classes)
    objective = _objective(scaled, labels, classes, l2)
    solution = optimize.minimize(objective, start, jac=True, method="BFGS", options={"gtol": 1e-9, "maxiter": 5000})
    np.testing.assert_allclose(objective(solution.x)[1], 0.0, rtol=0, atol=1e-7)
    size = classes * scaled.shape[1]
    return solution.x[:size].reshape(classes, -1), solution.x[size:]


@pytest.mark.parametrize("l2", [0.01, 1.0, 100.0])
@pytest.mark.parametrize("classes", [2, 3, 5])
def test_the_head_minimises_the_documented_objective(classes: int, l2: float) -> None:
    features, labels = clusters(classes)
    scaled = standardised(features)
    weight, bias = _solve(scaled, labels, classes, l2)
    head = _refit(features, labels, classes, l2)
    assert head.weight.shape == (classes, 5)
    assert head.bias.shape == (classes,)
    assert {head.weight.dtype.name, head.bias.dtype.name} == {"float32"}
    expected = centred_rows(scaled @ weight.T + bias)
    np.testing.assert_allclose(centred_rows(head.logits(features)), expected, rtol=1e-3, atol=2e-3)


def test_more_dimensions_than_images_have_the_same_minimum() -> None:
    random = np.random.default_rng(0)
    labels = np.arange(24) % 3
    features = (random.normal(size=(24, 60)) * 2.0 + 1.0 + np.eye(3, 60)[labels]).astype(np.float32)
    scaled = standardised(features)
    weight, bias = _solve(scaled, labels, 3, 5.0)
    found = centred_rows(_refit(features, labels, 3, 5.0).logits(features))
    np.testing.assert_allclose(found, centred_rows(scaled @ weight.T + bias), rtol=1e-3, atol=2e-3)


@pytest.mark.parametrize("class_weights", ["none", "balanced"])
@pytest.mark.parametrize("l2", [0.1, 10.0])
def test_softmax_regression_is_scikit_learns(l2: float, class_weights: str) -> None:
    linear_model = pytest.importorskip("sklearn.linear_model")
    features, labels = clusters(3, 90)
    features, labels = features[:70], np.sort(labels)[:70]  # 30, 30 and 10 images
    solver = linear_model.LogisticRegression(
        C=1.0 / l2, tol=1e-8, max_iter=10_000, class_weight="balanced" if class_weights == "balanced" else None
    )
    solver.fit(standardised(features), labels)
    head = refit_head(features, labels, 3, HeadRecipe(LINEAR, l2, class_weights))
    expected = centred_rows(solver.decision_function(standardised(features)))
    np.testing.assert_allclose(centred_rows(head.logits(features)), expected, rtol=1e-3, atol=2e-3)


@pytest.mark.parametrize("class_weights", ["none", "balanced"])
@pytest.mark.parametrize("l2", [0.1, 10.0, 300.0])
@pytest.mark.parametrize("classes", [2, 4])
def test_the_svm_is_scikit_learns(classes: int, l2: float, class_weights: str) -> None:
    """LinearSVC penalises its intercept too; a large scale of it makes that penalty vanish. Its balanced weights are of
    the two sides of each class against the rest, ours of all classes: it is given ours by the row.
    """
    svm = pytest.importorskip("sklearn.svm")
    features, labels = clusters(classes, 80)
    features, labels = features[:65], np.sort(labels)[:65]
    weights = 65 / (classes * np.bincount(labels)[labels]) if class_weights == "balanced" else np.ones(65)
    head = refit_head(features, labels, classes, HeadRecipe(SVM, l2, class_weights))
    for label in range(classes):
        solver = svm.LinearSVC(
            C=1.0 / l2, loss="squared_hinge", dual=False, tol=1e-10, max_iter=100_000, intercept_scaling=1e3
        )  # fmt: skip
        # Half the squared weights stand against C times the squared hinge in LinearSVC, and in ours half of l2.
        solver.fit(standardised(features), (labels == label).astype(int), sample_weight=weights)
        expected = solver.decision_function(standardised(features))
        np.testing.assert_allclose(head.logits(features)[:, label], expected, rtol=1e-3, atol=2e-3)


@pytest.mark.parametrize("kind", [LINEAR, SVM])
def test_the_chosen_strength_has_the_lowest_loss_on_held_out_images(kind: str) -> None:
    fit = _fit(examples(*clusters(3), 3), kind)
    assert len(fit.path) >= MIN_VALUES == 20
    assert tuple(point.l2 for point in fit.path) == L2_GRID[: len(fit.path)]
    (chosen,) = [point for point in fit.path if point.l2 == fit.l2]
    assert chosen.loss <= 1.002 * min(point.loss for point in fit.path)
    assert all(chosen.loss < point.loss for point in fit.path if point.l2 > fit.l2)
    features, labels = clusters(3)
    expected = centred_rows(_refit(features, labels, 3, fit.l2, kind).logits(features))
    np.testing.assert_allclose(centred_rows(fit.head.logits(features)), expected, rtol=1e-3, atol=2e-3)


def test_the_grid_of_strengths() -> None:
    assert len(L2_GRID) > 50
    assert [L2_GRID[0], L2_GRID[8], L2_GRID[-1]] == pytest.approx([1e4, 1e3, 1e-3])


def test_cross_validation_is_that_of_an_independent_solver() -> None:
    features, labels = clusters(3)
    given = examples(features, labels, 3, seed=4)
    fit = _fit(given)
    scaled = standardised(features)
    loss, hits = 0.0, 0
    for part in range(5):
        fitted, held_out = given.fold != part, given.fold == part
        weight, bias = _solve(scaled[fitted], labels[fitted], 3, fit.l2)
        logits = scaled[held_out] @ weight.T + bias
        found = centred_rows(fit.logits[held_out])
        np.testing.assert_allclose(found, centred_rows(logits), rtol=5e-3, atol=5e-3)
        probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        loss -= np.log(probabilities[np.arange(len(logits)), labels[held_out]]).sum()
        hits += int((logits.argmax(axis=1) == labels[held_out]).sum())
    (point,) = [point for point in fit.path if point.l2 == fit.l2]
    np.testing.assert_allclose([point.log_loss, point.loss], loss / len(labels), rtol=1e-3, atol=0)
    np.testing.assert_allclose(point.accuracy, hits / len(labels), rtol=0, atol=1.5 / len(labels))


def test_an_svms_path_tells_the_hinge_and_the_log_loss_with_the_best_temperature() -> None:
    features, labels = clusters(3, spread=1.5)
    given = examples(features, labels, 3)
    fit = _fit(given, SVM)
    (point,) = [point for point in fit.path if point.l2 == fit.l2]
    signs = np.where(np.eye(3)[labels] == 1.0, 1.0, -1.0)
    hinge = np.maximum(1.0 - signs * fit.logits, 0.0) ** 2
    np.testing.assert_allclose(point.loss, hinge.sum(axis=1).mean(), rtol=1e-5, atol=0)
    optimize, special = pytest.importorskip("scipy.optimize"), pytest.importorskip("scipy.special")

    def log_loss(log_temperature: float) -> float:
        scaled = fit.logits.astype(np.float64) / np.exp(log_temperature)
        return float(-special.log_softmax(scaled, axis=1)[np.arange(len(labels)), labels].mean())

    best = optimize.minimize_scalar(log_loss, bounds=(-3.0, 3.0), method="bounded")
    np.testing.assert_allclose(point.log_loss, best.fun, rtol=1e-5, atol=0)


def test_the_strongest_penalty_leaves_the_shares_of_the_classes() -> None:
    """Equal classes give every image a log loss of about ln 3 = 1.0986."""
    strongest = _fit(examples(*clusters(3), 3)).path[0]
    np.testing.assert_allclose(strongest.log_loss, 1.0986, rtol=0, atol=0.02)


@pytest.mark.parametrize("kind", [LINEAR, SVM])
def test_the_same_examples_give_the_same_bits_with_any_number_of_cpus(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    random = np.random.default_rng(0)
    labels = np.arange(600) % 3
    features = (random.normal(size=(600, 40)) + np.eye(3, 40)[labels]).astype(np.float32)
    monkeypatch.setattr("edgetune.heads.eigenbasis._BLOCK_ROWS", 64)
    fits = []
    for cpus in (1, 4, 4):
        monkeypatch.setattr("edgetune.heads.eigenbasis.usable_cpus", lambda count=cpus: count)
        fits.append(_fit(examples(features, labels, 3), kind))
    for other in fits[1:]:
        assert other.head.weight.tobytes() == fits[0].head.weight.tobytes()
        assert other.head.bias.tobytes() == fits[0].head.bias.tobytes()
        assert other.logits.tobytes() == fits[0].logits.tobytes()
        assert other.path == fits[0].path


@pytest.mark.parametrize("kind", [LINEAR, SVM])
def test_blocks_of_rows_change_nothing(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    features, labels = clusters(3, 90)
    whole = _refit(features, labels, 3, 1.0, kind).logits(features)
    monkeypatch.setattr("edgetune.heads.eigenbasis._BLOCK_ROWS", 7)
    parts = _refit(features, labels, 3, 1.0, kind).logits(features)
    np.testing.assert_allclose(parts, whole, rtol=1e-3, atol=2e-3)


@pytest.mark.parametrize("factor", [1e-3, 1e3])
def test_the_size_of_the_features_does_not_matter(factor: float) -> None:
    features, labels = clusters(3)
    scaled = features * np.float32(factor)
    expected = centred_rows(_refit(features, labels, 3, 1.0).logits(features))
    found = centred_rows(_refit(scaled, labels, 3, 1.0).logits(scaled))
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kind", [LINEAR, SVM])
def test_separable_classes_give_a_finite_head_that_names_them_all(kind: str) -> None:
    features, labels = clusters(3, spread=0.01)
    head = _fit(examples(features, labels, 3), kind).head
    assert np.isfinite(head.weight).all()
    np.testing.assert_array_equal(head.logits(features).argmax(axis=1), labels)


@pytest.mark.parametrize("kind", [LINEAR, SVM])
@pytest.mark.parametrize("width", [4, 12], ids=["narrow", "wide"])
def test_features_without_any_difference_give_a_head_without_opinion(kind: str, width: int) -> None:
    features = np.full((6, width), 2.7, np.float32)
    head = _refit(features, np.arange(6, dtype=np.int64) % 2, 2, 1.0, kind)
    np.testing.assert_allclose(centred_rows(head.logits(features)), 0.0, rtol=0, atol=1e-5)


def test_a_row_counts_by_its_weight() -> None:
    linear_model = pytest.importorskip("sklearn.linear_model")
    features, labels = clusters(3)
    given = examples(features, labels, 3)
    given.weights[:] = np.random.default_rng(0).uniform(0.1, 3.0, 60)
    solver = linear_model.LogisticRegression(C=0.5, tol=1e-8, max_iter=10_000)
    solver.fit(standardised(features), labels, sample_weight=given.weights.astype(np.float64))
    found = centred_rows(refit_linear(given, LINEAR, 2.0).logits(features))
    expected = centred_rows(solver.decision_function(standardised(features)))
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=2e-3)


@pytest.mark.parametrize("spread", [3.0, 0.01], ids=["path ends early", "whole path"])
def test_a_path_that_ends_early_has_seen_its_lowest_loss_pass(spread: float) -> None:
    losses = [point.loss for point in _fit(examples(*clusters(3, spread=spread), 3)).path]
    has_risen = all(before < after for before, after in zip(losses[-5:], losses[-4:], strict=False))
    assert len(losses) == len(L2_GRID) or has_risen or min(losses[:-8]) <= 1.002 * min(losses)


@pytest.mark.parametrize("spread", [3.0, 0.01], ids=["path ends early", "whole path"])
def test_progress_rises_to_its_total_and_gets_there_once(spread: float) -> None:
    seen: list[tuple[str, int, int]] = []
    fit_linear(examples(*clusters(3, spread=spread), 3), LINEAR, lambda *call: seen.append(call))
    assert {(stage, total) for stage, _, total in seen} == {("cross-validation", len(L2_GRID))}
    assert sorted(seen) == seen
    assert [done == total for _, done, total in seen] == [False] * (len(seen) - 1) + [True]


def test_a_head_has_not_seen_the_fold_that_it_is_judged_on() -> None:
    """Labels without any sense: heads that had seen a row would often name it right, as the final one does."""
    random = np.random.default_rng(1)
    features = random.normal(size=(60, 80)).astype(np.float32)
    labels: npt.NDArray[np.int64] = random.integers(0, 2, 60)
    fit = _fit(examples(features, labels, 2))
    weak = _refit(features, labels, 2, fit.path[-1].l2)
    assert (weak.logits(features).argmax(axis=1) == labels).mean() > 0.9
    assert 0.3 < fit.path[-1].accuracy < 0.7

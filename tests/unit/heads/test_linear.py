from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from edgetune.core.errors import DataError, RunError
from edgetune.heads.linear import L2_GRID, LinearHead, fit_linear, load_head, refit_linear, save_head

pytest.importorskip("sklearn")
pytest.importorskip("safetensors")

Features = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]
Wide = npt.NDArray[np.float64]


def _clusters(classes: int, images: int = 60, spread: float = 3.0) -> tuple[Features, Labels]:
    """Overlapping clusters in five dimensions, far from the origin and not of unit size."""
    random = np.random.default_rng(classes)
    labels = np.arange(images) % classes
    features = random.normal(size=(images, 5)) * spread + 4.0 + 3.0 * np.eye(classes, 5)[labels]
    return features.astype(np.float32), labels.astype(np.int64)


def _scale(features: Features) -> Wide:
    centred = features.astype(np.float64) - features.astype(np.float64).mean(axis=0)
    scaled: Wide = centred / np.sqrt((centred**2).mean())
    return scaled


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


def _centred_rows(logits: npt.NDArray[Any]) -> Wide:
    """Logits mean the same when a constant is added to a row."""
    wide: Wide = logits.astype(np.float64) - logits.astype(np.float64).mean(axis=1, keepdims=True)
    return wide


@pytest.mark.parametrize("l2", [0.01, 1.0, 100.0])
@pytest.mark.parametrize("classes", [2, 3, 5])
def test_the_head_minimises_the_documented_objective(classes: int, l2: float) -> None:
    features, labels = _clusters(classes)
    scaled = _scale(features)
    weight, bias = _solve(scaled, labels, classes, l2)
    head = refit_linear(features, labels, classes, l2)
    assert head.weight.shape == (classes, 5)
    assert head.bias.shape == (classes,)
    assert {head.weight.dtype.name, head.bias.dtype.name} == {"float32"}
    expected = _centred_rows(scaled @ weight.T + bias)
    np.testing.assert_allclose(_centred_rows(head.logits(features)), expected, rtol=1e-3, atol=2e-3)


def test_more_dimensions_than_images_have_the_same_minimum() -> None:
    random = np.random.default_rng(0)
    labels = np.arange(24) % 3
    features = (random.normal(size=(24, 60)) * 2.0 + 1.0 + np.eye(3, 60)[labels]).astype(np.float32)
    scaled = _scale(features)
    weight, bias = _solve(scaled, labels, 3, 5.0)
    found = _centred_rows(refit_linear(features, labels, 3, 5.0).logits(features))
    np.testing.assert_allclose(found, _centred_rows(scaled @ weight.T + bias), rtol=1e-3, atol=2e-3)


def test_the_chosen_strength_has_the_lowest_cross_validated_log_loss() -> None:
    fit = fit_linear(*_clusters(3), 3)
    assert tuple(point.l2 for point in fit.path) == L2_GRID[: len(fit.path)]
    best = min(fit.path, key=lambda point: point.log_loss)
    assert fit.l2 == best.l2
    np.testing.assert_array_equal(fit.head.weight, refit_linear(*_clusters(3), 3, best.l2).weight)


def test_cross_validation_is_that_of_an_independent_solver() -> None:
    features, labels = _clusters(3)
    fit = fit_linear(features, labels, 3, seed=4)
    scaled = _scale(features)
    splitter = pytest.importorskip("sklearn.model_selection").StratifiedKFold(5, shuffle=True, random_state=4)
    loss, hits = 0.0, 0
    for fitted, held_out in splitter.split(scaled, labels):
        weight, bias = _solve(scaled[fitted], labels[fitted], 3, fit.l2)
        logits = scaled[held_out] @ weight.T + bias
        probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        loss -= np.log(probabilities[np.arange(len(held_out)), labels[held_out]]).sum()
        hits += int((logits.argmax(axis=1) == labels[held_out]).sum())
    (point,) = [point for point in fit.path if point.l2 == fit.l2]
    np.testing.assert_allclose(point.log_loss, loss / len(labels), rtol=1e-3, atol=0)
    np.testing.assert_allclose(point.accuracy, hits / len(labels), rtol=0, atol=1.5 / len(labels))


def test_the_strongest_penalty_leaves_the_shares_of_the_classes() -> None:
    """Equal classes give every image a log loss of about ln 3 = 1.0986."""
    strongest = fit_linear(*_clusters(3), 3).path[0]
    assert strongest.l2 == 1000.0
    np.testing.assert_allclose(strongest.log_loss, 1.0986, rtol=0, atol=0.02)


@pytest.mark.parametrize(("images", "folds"), [(60, 5), (12, 4), (6, 2)], ids=["20 each", "4 each", "2 each"])
def test_the_smallest_class_bounds_the_folds(images: int, folds: int) -> None:
    assert fit_linear(*_clusters(3, images), 3).folds == folds


def test_the_same_seed_gives_the_same_bits() -> None:
    features, labels = _clusters(3)
    first, second = fit_linear(features, labels, 3, seed=1), fit_linear(features, labels, 3, seed=1)
    assert first.head.weight.tobytes() == second.head.weight.tobytes()
    assert first.head.bias.tobytes() == second.head.bias.tobytes()
    assert first.path == second.path


def test_another_seed_splits_otherwise() -> None:
    features, labels = _clusters(3)
    assert fit_linear(features, labels, 3, seed=1).path != fit_linear(features, labels, 3, seed=2).path


@pytest.mark.parametrize("factor", [1e-3, 1e3])
def test_the_size_of_the_features_does_not_matter(factor: float) -> None:
    features, labels = _clusters(3)
    scaled = features * np.float32(factor)
    expected = _centred_rows(refit_linear(features, labels, 3, 1.0).logits(features))
    found = _centred_rows(refit_linear(scaled, labels, 3, 1.0).logits(scaled))
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)


def test_separable_classes_give_a_finite_head_that_names_them_all() -> None:
    features, labels = _clusters(3, spread=0.01)
    head = fit_linear(features, labels, 3).head
    assert np.isfinite(head.weight).all()
    np.testing.assert_array_equal(head.logits(features).argmax(axis=1), labels)


def test_features_without_any_difference_give_a_head_without_opinion() -> None:
    head = refit_linear(np.full((6, 4), 2.5, np.float32), np.arange(6, dtype=np.int64) % 2, 2, 1.0)
    np.testing.assert_allclose(_centred_rows(head.logits(np.full((1, 4), 2.5, np.float32))), 0.0, rtol=0, atol=1e-5)


def test_a_path_that_ends_early_has_seen_its_lowest_log_loss_pass() -> None:
    losses = [point.log_loss for point in fit_linear(*_clusters(3), 3).path]
    assert len(losses) == len(L2_GRID) or min(losses) < losses[-2] < losses[-1]


@pytest.mark.parametrize("spread", [3.0, 0.01], ids=["path ends early", "whole path"])
def test_progress_rises_to_its_total_and_gets_there_once(spread: float) -> None:
    seen: list[tuple[str, int, int]] = []
    fit_linear(*_clusters(3, spread=spread), 3, progress=lambda *call: seen.append(call))
    assert {(stage, total) for stage, _, total in seen} == {("cross-validation", seen[0][2])}
    assert sorted(seen) == seen
    assert [done == total for _, done, total in seen] == [False] * (len(seen) - 1) + [True]


@pytest.mark.parametrize(
    ("labels", "classes", "words"),
    [
        ([0, 0, 0, 1], 2, "class with index 1 has 1 readable training images, expected at least 2"),
        ([0, 0, 1, 1], 3, "class with index 2 has 0 readable training images"),
    ],
    ids=["one image", "none"],
)
def test_a_class_with_too_few_images_is_refused(labels: list[int], classes: int, words: str) -> None:
    with pytest.raises(DataError, match=words):
        fit_linear(np.ones((4, 3), np.float32), np.array(labels), classes)


def test_logits_are_features_times_weight_plus_bias() -> None:
    head = LinearHead(np.array([[1, 2], [3, 4], [0, -1]], np.float32), np.array([10, 20, 30], np.float32))
    logits = head.logits(np.array([[1, 1], [2, 0]], np.float32))
    np.testing.assert_array_equal(logits, np.array([[13, 27, 29], [12, 26, 30]], np.float32))
    assert logits.dtype == np.float32


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "head.safetensors"
    save_head(path, LinearHead(np.arange(6, dtype=np.float32).reshape(2, 3), np.array([0.5, -0.5], np.float32)))
    return path


def test_a_head_comes_back_as_it_was_saved(saved: Path) -> None:
    head = load_head(saved)
    np.testing.assert_array_equal(head.weight, np.array([[0, 1, 2], [3, 4, 5]], np.float32))
    np.testing.assert_array_equal(head.bias, np.array([0.5, -0.5], np.float32))
    assert {head.weight.dtype.name, head.bias.dtype.name} == {"float32"}


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf], ids=["NaN", "infinity", "minus infinity"])
@pytest.mark.parametrize("part", ["weight", "bias"])
def test_a_head_with_what_is_no_number_is_refused(tmp_path: Path, part: str, value: float) -> None:
    arrays = {"weight": np.ones((2, 3), np.float32), "bias": np.ones(2, np.float32)}
    arrays[part].flat[1] = value
    save_head(tmp_path / "head", LinearHead(arrays["weight"], arrays["bias"]))
    with pytest.raises(RunError, match="head holds NaN or infinity") as caught:
        load_head(tmp_path / "head")
    assert "fit again" in caught.value.hint


@pytest.mark.parametrize(
    "length", [0, 4, 8, 60, -1], ids=["empty", "half a size", "size only", "half", "one byte short"]
)
def test_a_truncated_head_is_refused(saved: Path, length: int) -> None:
    saved.write_bytes(saved.read_bytes()[:length])
    with pytest.raises(RunError, match="cannot be read"):
        load_head(saved)


@pytest.mark.parametrize(
    ("before", "after"), [(b'"bias"', b'"bios"'), (b'"F32"', b'"Q32"'), (b"{", b"["), (b"[2,3]", b"[2,9]")]
)
def test_a_damaged_header_is_refused(saved: Path, before: bytes, after: bytes) -> None:
    data = saved.read_bytes()
    assert before in data
    saved.write_bytes(data.replace(before, after, 1))
    with pytest.raises(RunError, match="cannot be read") as caught:
        load_head(saved)
    assert "fit again" in caught.value.hint


def test_a_missing_head_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="gone cannot be read"):
        load_head(tmp_path / "gone")

"""Fitting a head of any kind: choices inside the training set, calibration, views, groups, and the refit."""

from __future__ import annotations

import dataclasses
import itertools
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from edgetune.core.config import from_dict, to_dict
from edgetune.core.errors import DataError, UsageError
from edgetune.core.head_recipe import HEAD_KINDS, HeadRecipe
from edgetune.core.progress import no_progress
from edgetune.heads.calibration import answers, fit_calibration, fit_reject
from edgetune.heads.examples import row_weights
from edgetune.heads.fit import HeadFit, HeadOptions, TrainingSet, fit_head, refit_head
from edgetune.heads.linear import fit_linear
from tests.unit.heads.head_cases import Features, clusters, examples

pytest.importorskip("threadpoolctl")

_TRAINED = ("mlp", "sgd", "adamw")


def _options(kind: str, **changes: Any) -> HeadOptions:
    """A few epochs of a small head, where there are epochs."""
    if kind in _TRAINED:
        pytest.importorskip("torch")
        changes = {"epochs": 12, "batch_size": 16, "learning_rate": 0.02, **changes}
    if kind == "mlp":
        changes = {"hidden": 16, "dropout": 0.1, **changes}
    return HeadOptions(kind=kind, **changes)


def _fit(kind: str, training: TrainingSet | None = None, **changes: Any) -> HeadFit:
    return fit_head(training or TrainingSet(*clusters(3, spread=1.5), 3), _options(kind, **changes))


@pytest.mark.parametrize("kind", HEAD_KINDS)
def test_every_kind_learns_and_says_how(kind: str) -> None:
    features, labels = clusters(3, spread=1.5)
    fit = _fit(kind, reject_share=0.1)
    assert (fit.head.logits(features).argmax(axis=1) == labels).mean() > 0.85
    assert (fit.recipe.kind, fit.recipe.seed, fit.recipe.class_weights) == (kind, 0, "none")
    assert fit.folds == 5
    assert bool(fit.path) == (kind not in _TRAINED)
    assert bool(fit.epochs) == (kind in _TRAINED)
    assert (fit.head.hidden is not None) == (kind == "mlp")
    assert fit.calibration.images == 60
    assert fit.recipe.temperature == fit.calibration.temperature
    assert fit.calibration.log_loss_after <= fit.calibration.log_loss_before
    assert fit.reject is not None
    assert fit.reject.rejected == pytest.approx(0.1)


@pytest.mark.parametrize("kind", HEAD_KINDS)
def test_the_recipe_alone_gives_the_head_again(kind: str) -> None:
    """Also from its JSON, as a run stores it."""
    features, labels = clusters(3, spread=1.5)
    fit = _fit(kind, class_weights="balanced")
    recipe = from_dict(HeadRecipe, to_dict(fit.recipe), "recipe")
    again = refit_head(features, labels, 3, recipe)
    np.testing.assert_allclose(again.logits(features), fit.head.logits(features), rtol=2e-3, atol=5e-3)


@pytest.mark.parametrize("kind", HEAD_KINDS)
def test_a_refit_on_turned_features_gives_the_same_answers(kind: str) -> None:
    """Features in another orthogonal basis and of another size hold the same information."""
    features, labels = clusters(3, spread=1.5)
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(5, 5)))[0]
    turned = (features @ turn * 3.0).astype(np.float32)
    fit = _fit(kind)
    answered = refit_head(turned, labels, 3, fit.recipe).logits(turned).argmax(axis=1)
    assert (answered == fit.head.logits(features).argmax(axis=1)).mean() > 0.9


@pytest.mark.parametrize("kind", ["linear", "svm", "sgd"])
def test_the_temperature_is_folded_into_the_head(kind: str) -> None:
    features, labels = clusters(3, spread=1.5)
    fit = _fit(kind)
    raw = refit_head(features, labels, 3, dataclasses.replace(fit.recipe, temperature=1.0))
    expected = raw.logits(features) / fit.recipe.temperature
    np.testing.assert_allclose(fit.head.logits(features), expected, rtol=2e-3, atol=5e-3)


@pytest.mark.parametrize("kind", HEAD_KINDS)
def test_the_same_input_gives_the_same_bits(kind: str) -> None:
    first, again = _fit(kind, seed=3, reject_share=0.2), _fit(kind, seed=3, reject_share=0.2)
    assert first.head.weight.tobytes() == again.head.weight.tobytes()
    assert first.head.bias.tobytes() == again.head.bias.tobytes()
    assert dataclasses.replace(first, head=again.head) == again


@pytest.mark.parametrize("kind", HEAD_KINDS)
def test_another_seed_splits_otherwise(kind: str) -> None:
    first, other = _fit(kind, seed=1), _fit(kind, seed=2)
    assert (first.path, first.epochs) != (other.path, other.epochs)


def _with_views(spoilt: bool) -> TrainingSet:
    """Two views of each image behind the images; spoilt ones show nothing."""
    features, labels = clusters(3, spread=1.0)
    random = np.random.default_rng(5)
    views = [features + random.normal(size=features.shape) * 0.1 for _ in range(2)]
    if spoilt:
        views = [np.zeros_like(features) for _ in range(2)]
    return TrainingSet(
        np.concatenate([features, *views]).astype(np.float32),
        np.tile(labels, 3),
        3,
        np.tile(np.arange(60), 3),
        np.arange(180) >= 60,
    )


@pytest.mark.parametrize("kind", HEAD_KINDS)
def test_views_are_fitted_on_but_not_judged(kind: str) -> None:
    fit = _fit(kind, _with_views(spoilt=True))
    assert fit.calibration.images == 60
    judged = fit.path[-1].accuracy if fit.path else fit.epochs[-1].held_out_accuracy
    assert judged is not None
    assert judged > 0.7


def test_views_of_a_held_out_image_are_held_out_with_it() -> None:
    """Noise cannot be learnt, but copies of the judged row would give it away."""
    random = np.random.default_rng(0)
    features = random.normal(size=(60, 80)).astype(np.float32)
    labels = random.integers(0, 2, 60)
    doubled, twice, is_view = np.tile(features, (2, 1)), np.tile(labels, 2), np.arange(120) >= 60
    honest = fit_head(TrainingSet(doubled, twice, 2, np.tile(np.arange(60), 2), is_view), HeadOptions())
    leaking = fit_head(TrainingSet(doubled, twice, 2, None, is_view), HeadOptions())
    assert leaking.path[-1].accuracy > honest.path[-1].accuracy + 0.2


def test_exact_views_change_nothing_about_the_penalty() -> None:
    """An image with two copies of itself counts as one image: the same head at the same L2 strength."""
    features, labels = clusters(3)
    plain = fit_head(TrainingSet(features, labels, 3), HeadOptions())
    tripled = TrainingSet(
        np.tile(features, (3, 1)), np.tile(labels, 3), 3, np.tile(np.arange(60), 3), np.arange(180) >= 60
    )
    viewed = fit_head(tripled, HeadOptions())
    assert viewed.recipe.l2 == plain.recipe.l2
    np.testing.assert_allclose(viewed.head.logits(features), plain.head.logits(features), rtol=5e-3, atol=5e-3)


@pytest.mark.parametrize("kind", ["linear", "sgd"])
def test_groups_are_never_on_both_sides(kind: str) -> None:
    """20 groups of four equal rows with random labels: only who has seen the group can name its rows."""
    random = np.random.default_rng(3)
    groups = np.repeat(np.arange(20), 4)
    features = random.normal(size=(20, 30))[groups].astype(np.float32)
    labels = random.permutation(np.arange(20) % 2)[groups]
    grouped = _fit(kind, TrainingSet(features, labels, 2, groups))
    torn = _fit(kind, TrainingSet(features, labels, 2))
    for fit, (low, high) in ((grouped, (0.0, 0.75)), (torn, (0.9, 1.0))):
        accuracy = fit.path[-1].accuracy if fit.path else fit.epochs[-1].held_out_accuracy
        assert accuracy is not None
        assert low <= accuracy <= high


@pytest.mark.parametrize("kind", HEAD_KINDS)
def test_balanced_weights_find_more_of_the_rare_class(kind: str) -> None:
    random = np.random.default_rng(0)
    labels = (np.arange(220) < 20).astype(np.int64)
    features = (random.normal(size=(220, 4)) + 1.2 * labels[:, np.newaxis]).astype(np.float32)
    training = TrainingSet(features, labels, 2)
    found = {}
    for weights in ("none", "balanced"):
        answered = _fit(kind, training, class_weights=weights).head.logits(features).argmax(axis=1)
        found[weights] = (answered[labels == 1] == 1).mean()
    assert found["balanced"] > found["none"] + 0.1


def test_balanced_weights_are_scikit_learns() -> None:
    utilities = pytest.importorskip("sklearn.utils.class_weight")
    labels = np.repeat([0, 1, 2], [30, 12, 5])
    expected = utilities.compute_sample_weight("balanced", labels)
    np.testing.assert_allclose(row_weights(labels, 3, "balanced", 47), expected, rtol=1e-6, atol=0)
    np.testing.assert_allclose(row_weights(labels, 3, "none", 47), 1.0, rtol=0, atol=0)
    np.testing.assert_allclose(row_weights(np.tile(labels, 2), 3, "balanced", 47).sum(), 47.0, rtol=1e-5, atol=0)


def test_calibration_and_threshold_are_of_logits_out_of_fold() -> None:
    features, labels = clusters(3)
    fit = fit_head(TrainingSet(features, labels, 3), HeadOptions(reject_share=0.3))
    logits = fit_linear(examples(features, labels, 3), "linear", no_progress).logits
    assert fit.calibration == fit_calibration(logits, labels, np.ones(60))
    assert fit.reject == fit_reject(logits, labels, fit.recipe.temperature, 0.3)
    (point,) = [point for point in fit.path if point.l2 == fit.recipe.l2]
    assert answers(logits, labels).is_right.mean() == pytest.approx(point.accuracy)


@pytest.mark.parametrize("images", [(60, 5), (12, 5), (6, 5), (4, 4)], ids=str)
def test_a_rare_class_does_not_make_the_folds_few(images: tuple[int, int]) -> None:
    count, folds = images
    labels = np.arange(count) % 2
    features = np.random.default_rng(0).normal(size=(count, 3)).astype(np.float32)
    assert fit_head(TrainingSet(features, labels, 2), HeadOptions()).folds == folds


def test_three_groups_are_three_folds() -> None:
    features, labels = clusters(3)
    assert fit_head(TrainingSet(features, labels, 3, np.arange(60) // 20), HeadOptions()).folds == 3


def _ones(count: int) -> Features:
    return np.ones((count, 3), np.float32)


@pytest.mark.parametrize(
    ("training", "words"),
    [
        (TrainingSet(_ones(4), np.array([0, 0, 0, 1]), 2), "class with index 1 has 1 readable training images"),
        (TrainingSet(_ones(4), np.array([0, 0, 1, 1]), 3), "class with index 2 has 0 readable training images"),
        (
            TrainingSet(_ones(5), np.array([0, 0, 1, 1, 1]), 2, None, np.array([False] * 3 + [True] * 2)),
            "class with index 1 has 1 readable",
        ),
        (
            TrainingSet(_ones(5), np.array([0, 0, 1, 1, 1]), 2, np.array([0, 1, 2, 2, 2])),
            "all 3 training images of the class with index 1 belong together, as one group or as copies",
        ),
    ],
    ids=["one image", "none", "one image and its views", "one group"],
)
def test_a_class_with_too_few_images_is_refused(training: TrainingSet, words: str) -> None:
    with pytest.raises(DataError, match=words):
        fit_head(training, HeadOptions())


def test_groups_that_five_folds_cannot_part_are_refused() -> None:
    """Six groups, and for each pair of them a class that only the two have: whichever two share a fold, their class is
    missing outside it.
    """
    pairs = np.array(list(itertools.combinations(range(6), 2)))
    labels, groups = np.repeat(np.arange(15), 2), pairs.ravel()
    with pytest.raises(DataError, match="cannot be split so that every class is on both sides") as caught:
        fit_head(TrainingSet(_ones(30), labels, 15, groups), HeadOptions())
    assert "group the images more finely" in caught.value.hint


def test_options_are_checked_first() -> None:
    with pytest.raises(UsageError, match="epochs is not used by the head linear"):
        fit_head(TrainingSet(_ones(1), np.array([0]), 1), HeadOptions(epochs=3))


@pytest.mark.parametrize("kind", ["linear", "svm"])
def test_heads_solved_to_convergence_wait_for_no_large_library(kind: str) -> None:
    code = f"""
import sys
import numpy as np
from edgetune.heads.fit import HeadOptions, TrainingSet, fit_head, refit_head
labels = np.arange(20) % 2
features = (np.random.default_rng(0).normal(size=(20, 4)) + labels[:, None]).astype(np.float32)
fit = fit_head(TrainingSet(features, labels, 2), HeadOptions(kind={kind!r}, reject_share=0.1))
refit_head(features, labels, 2, fit.recipe)
print(sorted({{"torch", "sklearn", "scipy", "matplotlib", "timm"}} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.strip() == "[]"

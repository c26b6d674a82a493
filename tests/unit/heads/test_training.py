"""Heads trained in epochs: the arithmetic of a step, early stopping, and the same bits every time."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from edgetune.core.head_recipe import TrainingRecipe
from edgetune.core.progress import no_progress
from edgetune.heads.head import Head
from tests.unit.heads.head_cases import Features, Labels, Wide, clusters, examples, standardised

torch = pytest.importorskip("torch")

from edgetune.heads import training  # noqa: E402 - it imports torch
from edgetune.heads.training import Place, TrainedFit, fit_trained, retrain  # noqa: E402

CPU = Place("cpu", 0)
SGD = TrainingRecipe("sgd", 4, 16, 0.05, 0.1)
ADAMW = TrainingRecipe("adamw", 6, 16, 0.01, 0.1)
MLP = TrainingRecipe("adamw", 12, 16, 0.01, 0.01, hidden=8, dropout=0.3)


def _train(features: Features, labels: Labels, classes: int, recipe: TrainingRecipe, place: Place = CPU) -> Head:
    return retrain(examples(features, labels, classes), recipe, place, no_progress)


def _fit(recipe: TrainingRecipe, *, stops_early: bool = False, images: int = 60) -> TrainedFit:
    given = examples(*clusters(3, images, spread=1.5), 3)
    return fit_trained(given, recipe, CPU, stops_early=stops_early, progress=no_progress)


def _softmax(logits: Wide) -> Wide:
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    result: Wide = exponentials / exponentials.sum(axis=1, keepdims=True)
    return result


def _textbook(optimizer: str, scaled: Wide, targets: Wide, rates: list[float]) -> Wide:
    """Logits behind steps on all rows at once, worked in float64: weights decay by 0.1, biases do not."""
    values = {"weight": np.zeros((targets.shape[1], scaled.shape[1])), "bias": np.zeros(targets.shape[1])}
    mean, square = ({name: np.zeros_like(each) for name, each in values.items()} for _ in range(2))
    for step, rate in enumerate(rates, start=1):
        errors = (_softmax(scaled @ values["weight"].T + values["bias"]) - targets) / len(scaled)
        slopes = {"weight": errors.T @ scaled, "bias": errors.sum(axis=0)}
        for name, slope in slopes.items():
            decay = 0.1 if name == "weight" else 0.0
            if optimizer == "sgd":
                mean[name] = 0.9 * mean[name] + slope + decay * values[name]
                values[name] = values[name] - rate * mean[name]
                continue
            mean[name] = 0.9 * mean[name] + 0.1 * slope
            square[name] = 0.999 * square[name] + 0.001 * slope**2
            direction = mean[name] / (1 - 0.9**step) / (np.sqrt(square[name] / (1 - 0.999**step)) + 1e-8)
            values[name] = values[name] * (1 - rate * decay) - rate * direction
    logits: Wide = scaled @ values["weight"].T + values["bias"]
    return logits


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_full_batches_are_the_textbook_worked_in_numpy(optimizer: str) -> None:
    """With all rows in one batch their order does not matter."""
    features, labels = clusters(3)
    features, labels = features[:50], np.sort(labels)[:50]
    rates = [0.05, 0.05 * 0.75, 0.05 * 0.25]  # half of 1 + cos(0), cos(pi / 3) and cos(2 pi / 3)
    expected = _textbook(optimizer, standardised(features), np.eye(3)[labels], rates)
    head = _train(features, labels, 3, TrainingRecipe(optimizer, 3, 50, 0.05, 0.1))
    np.testing.assert_allclose(head.logits(features), expected, rtol=1e-4, atol=1e-4)


def test_a_batch_larger_than_the_set_is_the_set() -> None:
    features, labels = clusters(3)
    whole, larger = (_train(features, labels, 3, dataclasses.replace(SGD, batch_size=size)) for size in (60, 1000))
    np.testing.assert_array_equal(whole.weight, larger.weight)


def test_rows_count_by_their_weight() -> None:
    """Weights that are all the same are none; a class of weight 0 is not learnt."""
    features, labels = clusters(3, spread=0.5)
    given = examples(features, labels, 3)
    plain = retrain(given, SGD, CPU, no_progress)
    halved = retrain(dataclasses.replace(given, weights=(given.weights / 2).astype(np.float32)), SGD, CPU, no_progress)
    np.testing.assert_allclose(halved.weight, plain.weight, rtol=1e-5, atol=1e-6)
    weights = (labels != 2).astype(np.float32)
    longer = dataclasses.replace(SGD, epochs=40)
    answers = retrain(dataclasses.replace(given, weights=weights), longer, CPU, no_progress).logits(features).argmax(1)
    assert (answers != 2).all()
    assert (plain.logits(features).argmax(axis=1) == labels).mean() > 0.9


@pytest.mark.parametrize("recipe", [SGD, ADAMW, MLP], ids=["sgd", "adamw", "mlp"])
def test_the_same_seed_gives_the_same_bits(recipe: TrainingRecipe) -> None:
    """Whatever the thread count and the state of PyTorch's own generator are, and both are left alone."""
    first = _fit(recipe, stops_early=recipe.hidden > 0)
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    torch.manual_seed(99)
    torch.set_num_threads(3)
    try:
        before = torch.get_rng_state()
        again = _fit(recipe, stops_early=recipe.hidden > 0)
        assert torch.equal(torch.get_rng_state(), before)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(threads)
        torch.set_rng_state(state)
    assert again.head.weight.tobytes() == first.head.weight.tobytes()
    assert again.head.bias.tobytes() == first.head.bias.tobytes()
    assert (again.logits.tobytes(), again.epochs, again.recipe) == (first.logits.tobytes(), first.epochs, first.recipe)


@pytest.mark.parametrize("recipe", [SGD, MLP], ids=["sgd", "mlp"])
def test_another_seed_gives_another_head(recipe: TrainingRecipe) -> None:
    features, labels = clusters(3)
    first, other = (_train(features, labels, 3, recipe, Place("cpu", seed)) for seed in (0, 1))
    assert (first.weight != other.weight).any()


@pytest.mark.parametrize("recipe", [SGD, MLP], ids=["sgd", "mlp"])
@pytest.mark.parametrize(("factor", "shift"), [(1e-3, 0.0), (100.0, 50.0)])
def test_the_size_and_place_of_the_features_do_not_matter(recipe: TrainingRecipe, factor: float, shift: float) -> None:
    features, labels = clusters(3)
    moved = (features * np.float32(factor) + np.float32(shift)).astype(np.float32)
    expected = _train(features, labels, 3, recipe).logits(features)
    np.testing.assert_allclose(_train(moved, labels, 3, recipe).logits(moved), expected, rtol=2e-3, atol=2e-3)


def test_a_head_folds_its_standardisation_in() -> None:
    """What the trainer computes of standardised features, the head computes of features as they came."""
    features, labels = clusters(3)
    given = examples(features, labels, 3)
    trainer = training._Trainer(given, np.arange(60), dataclasses.replace(MLP, dropout=0.0), CPU)
    trainer.run_epoch(1)
    inner = torch.from_numpy(standardised(features).astype(np.float32))
    with torch.no_grad():
        expected = trainer._logits(inner).numpy()
    head = trainer.head()
    assert head.hidden is not None
    assert head.hidden[0].shape == (8, 5)
    np.testing.assert_allclose(head.logits(features), expected, rtol=1e-4, atol=1e-4)


def test_dropout_drops_its_share_and_keeps_the_mean() -> None:
    given = examples(*clusters(3), 3)
    trainer = training._Trainer(given, np.arange(60), MLP, CPU)
    dropped = trainer._drop(torch.ones(100_000))
    assert float((dropped == 0.0).float().mean()) == pytest.approx(0.3, abs=0.01)
    assert sorted(set(dropped.tolist())) == pytest.approx([0.0, 1.0 / 0.7])


def test_an_epoch_sees_every_row_once(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    step = training._Trainer._step

    def watch(self: training._Trainer, rows: np.ndarray) -> float:
        seen.extend(rows.tolist())
        return step(self, rows)

    monkeypatch.setattr(training._Trainer, "_step", watch)
    trainer = training._Trainer(examples(*clusters(3), 3), np.arange(5, 50), SGD, CPU)
    trainer.run_epoch(1)
    first = list(seen)
    assert sorted(first) == list(range(5, 50))
    seen.clear()
    trainer.run_epoch(2)
    assert sorted(seen) == list(range(5, 50))
    assert seen != first


def test_the_log_tells_every_epoch() -> None:
    fit = _fit(SGD)
    assert [point.epoch for point in fit.epochs] == [1, 2, 3, 4]
    rates = [0.05 * 0.5 * (1.0 + math.cos(math.pi * done / 4.0)) for done in range(4)]
    assert [point.learning_rate for point in fit.epochs] == pytest.approx(rates)
    assert fit.epochs[0].train_loss > fit.epochs[-1].train_loss > 0.0
    assert fit.folds == 5
    assert sorted(fit.judged.tolist()) == list(range(60))
    last = fit.epochs[-1]
    labels = clusters(3, spread=1.5)[1][fit.judged]
    probabilities = _softmax(fit.logits.astype(np.float64))[np.arange(60), labels]
    assert last.held_out_loss == pytest.approx(float(-np.log(probabilities).mean()), rel=1e-5)
    assert last.held_out_accuracy == pytest.approx(float((fit.logits.argmax(axis=1) == labels).mean()))


def test_logits_out_of_fold_are_those_of_the_same_recipe_on_the_other_rows() -> None:
    features, labels = clusters(3, spread=1.5)
    given = examples(features, labels, 3)
    fit = _fit(ADAMW)
    for part in range(5):
        rest = np.flatnonzero(given.fold != part)
        head = _train(features[rest], labels[rest], 3, ADAMW)
        rows = given.fold[fit.judged] == part
        np.testing.assert_allclose(
            fit.logits[rows], head.logits(features[fit.judged[rows]]), rtol=1e-3, atol=1e-3
        )  # fmt: skip


def test_early_stopping_keeps_the_number_of_epochs_with_the_lowest_held_out_loss() -> None:
    """Labels without sense can only be learnt by heart: the held-out loss soon rises."""
    random = np.random.default_rng(0)
    features = random.normal(size=(80, 20)).astype(np.float32)
    given = examples(features, random.integers(0, 2, 80), 2)
    recipe = TrainingRecipe("adamw", 200, 16, 0.01, 0.0, hidden=32)
    fit = fit_trained(given, recipe, CPU, stops_early=True, progress=no_progress)
    losses = [point.held_out_loss or math.inf for point in fit.epochs]
    best = losses.index(min(losses)) + 1
    assert fit.recipe == dataclasses.replace(recipe, epochs=best)
    assert len(fit.epochs) == best + training.PATIENCE < 200
    final = retrain(given, fit.recipe, CPU, no_progress)
    np.testing.assert_array_equal(final.weight, fit.head.weight)


def test_a_large_set_holds_out_one_fold() -> None:
    features, labels = clusters(2, 6000)
    fit = fit_trained(
        examples(features, labels, 2), dataclasses.replace(SGD, epochs=1, batch_size=500), CPU, stops_early=False,
        progress=no_progress,
    )  # fmt: skip
    assert (fit.folds, len(fit.judged)) == (1, 1200)


def test_views_are_trained_on_and_not_judged() -> None:
    given = examples(*clusters(3), 3)
    is_judged = np.arange(60) < 30
    fit = fit_trained(
        dataclasses.replace(given, is_judged=is_judged), SGD, CPU, stops_early=False, progress=no_progress
    )
    assert sorted(fit.judged.tolist()) == list(range(30))


def test_pytorch_works_with_one_thread_meanwhile() -> None:
    seen: set[int] = set()
    fit_trained(
        examples(*clusters(3), 3), MLP, CPU, stops_early=True,
        progress=lambda *_: seen.add(torch.get_num_threads()),
    )  # fmt: skip
    retrain(examples(*clusters(3), 3), SGD, CPU, lambda *_: seen.add(torch.get_num_threads()))
    assert seen == {1}


def test_progress_ends_every_stage_once() -> None:
    seen: list[tuple[str, int, int]] = []
    fit_trained(
        examples(*clusters(3), 3), dataclasses.replace(MLP, epochs=40, learning_rate=0.3), CPU, stops_early=True,
        progress=lambda *call: seen.append(call),
    )  # fmt: skip
    ended = [stage for stage, done, total in seen if done == total]
    assert ended == ["early stopping", "held-out training", "training"]


def test_features_without_any_difference_give_a_finite_head() -> None:
    head = _train(np.full((8, 4), 2.5, np.float32), np.arange(8) % 2, 2, SGD)
    assert np.isfinite(head.weight).all()
    np.testing.assert_allclose(head.logits(np.full((1, 4), 2.5, np.float32)), 0.0, rtol=0, atol=0.1)

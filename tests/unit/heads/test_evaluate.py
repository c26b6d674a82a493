from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest

from edgetune.heads.evaluate import ClassMetrics, Metrics, evaluate

CLASSES = ("ant", "bee", "cat", "dog")


def _called(*labels: int, classes: int = 4) -> npt.NDArray[np.float32]:
    """Logits that name these labels."""
    return np.eye(classes, dtype=np.float32)[list(labels)]


@pytest.fixture
def metrics() -> Metrics:
    """Ants are called ant, ant, bee; bees bee, ant; the one cat is called bee; there are no dogs."""
    return evaluate(_called(0, 0, 1, 1, 0, 1), np.array([0, 0, 0, 1, 1, 2]), CLASSES)


def test_the_confusion_lists_what_was_called_what_and_how_often(metrics: Metrics) -> None:
    assert metrics.confusion == ((0, 0, 2), (0, 1, 1), (1, 0, 1), (1, 1, 1), (2, 1, 1))
    assert type(metrics.confusion[0][0]) is int


def test_accuracy_is_the_share_on_the_diagonal(metrics: Metrics) -> None:
    assert (metrics.task, metrics.images, metrics.top1_accuracy) == ("classification", 6, 0.5)


def test_the_interval_is_wilsons(metrics: Metrics) -> None:
    """3 of 6: (0.5 + 0.320122) / 1.640244 = 0.5; half 1.959964 * sqrt(0.25 / 6 + 0.026677) / 1.640244 = 0.312384."""
    np.testing.assert_allclose(metrics.top1_accuracy_ci95, (0.187616, 0.812384), rtol=0, atol=1e-5)


def test_precision_recall_and_f1_are_worked_out_per_class(metrics: Metrics) -> None:
    """Ants: 2 of 3 called are right, 2 of 3 are found. Bees: 1 of 3 called, 1 of 2 found, F1 2 / (2 + 3)."""
    ant, bee, cat, dog = (metrics.per_class[name] for name in CLASSES)
    assert ant == ClassMetrics(3, 2 / 3, 2 / 3, 4 / 6)
    assert bee == ClassMetrics(2, 1 / 3, 1 / 2, 2 / 5)
    assert cat == ClassMetrics(1, None, 0.0, 0.0)
    assert dog == ClassMetrics(0, None, None, None)


def test_the_log_loss_is_the_mean_in_nats() -> None:
    """Shares 1/8, 2/8 and 5/8 for the true classes: -(ln 0.125 + ln 0.25 + ln 0.625) / 3."""
    logits = np.log(np.array([[1, 2, 5], [1, 2, 5], [1, 2, 5]])).astype(np.float32)
    loss = evaluate(logits, np.array([0, 1, 2]), ("a", "b", "c")).log_loss
    np.testing.assert_allclose(loss, 1.311914, rtol=0, atol=1e-6)


def test_a_certain_mistake_costs_a_finite_loss() -> None:
    """The probability is held at 1e-30, which is 69.08 nats."""
    loss = evaluate(np.array([[5000.0, -5000.0]], np.float32), np.array([1]), ("a", "b")).log_loss
    np.testing.assert_allclose(loss, 69.0776, rtol=0, atol=1e-3)


def test_logits_that_are_no_numbers_show_in_the_loss() -> None:
    logits = np.array([[np.nan, 0.0], [1.0, 0.0]], np.float32)
    assert math.isnan(evaluate(logits, np.array([0, 0]), ("a", "b")).log_loss)

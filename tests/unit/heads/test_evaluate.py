from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest

from edgetune.core.config import from_dict, to_dict
from edgetune.core.errors import DataError, EdgetuneError
from edgetune.core.files import pretty_json
from edgetune.heads.evaluate import ClassMetrics, Metrics, Rejection, evaluate, most_confident_mistakes

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


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("judge", [evaluate, most_confident_mistakes])
def test_logits_that_are_no_numbers_are_refused(value: float, judge: Callable[..., object]) -> None:
    logits = np.array([[1.0, 0.0], [value, 0.0], [1.0, value]], np.float32)
    arguments = (("a", "b"),) if judge is evaluate else ()
    with pytest.raises(EdgetuneError, match="NaN or infinity for 2 of 3 images, first for number 1"):
        judge(logits, np.array([0, 0, 0]), *arguments)


def test_no_image_is_no_proof() -> None:
    with pytest.raises(DataError, match="no image to judge"):
        evaluate(np.zeros((0, 2), np.float32), np.zeros(0, np.int64), ("a", "b"))


def test_macro_f1_and_balanced_accuracy_are_means_over_the_classes_that_matter(metrics: Metrics) -> None:
    """F1 2/3, 2/5 and 0 of ants, bees and cats; recall 2/3, 1/2 and 0. Dogs neither occur nor were called."""
    np.testing.assert_allclose(metrics.macro_f1, (2 / 3 + 2 / 5 + 0) / 3, rtol=1e-12, atol=0)
    np.testing.assert_allclose(metrics.balanced_accuracy, (2 / 3 + 1 / 2 + 0) / 3, rtol=1e-12, atol=0)


def test_means_are_those_of_scikit_learn() -> None:
    scores = pytest.importorskip("sklearn.metrics")
    random = np.random.default_rng(3)
    labels, called = random.integers(0, 9, 200), random.integers(0, 9, 200)
    labels[labels == 4], called[called == 4] = 5, 5  # a class that is not there
    metrics = evaluate(np.eye(9, dtype=np.float32)[called], labels, tuple("abcdefghi"))
    np.testing.assert_allclose(metrics.macro_f1, scores.f1_score(labels, called, average="macro"), rtol=1e-12, atol=0)
    expected = scores.balanced_accuracy_score(labels, called)
    np.testing.assert_allclose(metrics.balanced_accuracy, expected, rtol=1e-12, atol=0)
    assert {each[:2]: each[2] for each in metrics.confusion} == Counter(
        zip(labels.tolist(), called.tolist(), strict=True)
    )


# The called class is always 0, with these probabilities.
SHARES = np.array([0.62, 0.62, 0.65, 0.93, 0.99, 0.52])
RIGHT = np.array([True, False, True, True, True, False])


def _of_shares(shares: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
    return np.log(np.stack([shares, 1 - shares], axis=1)).astype(np.float32)


def test_the_calibration_error_is_worked_out_from_the_bins() -> None:
    """15 bins of 1/15: 0.52 lies in (7/15, 8/15], 0.62 and 0.65 in (9/15, 10/15], 0.93 in (13/15, 14/15], 0.99 in the
    last. (1 * 0.52 + 3 * |2/3 - 0.63| + 1 * 0.07 + 1 * 0.01) / 6 = 0.71 / 6.
    """
    metrics = evaluate(_of_shares(SHARES), np.where(RIGHT, 0, 1), ("a", "b"))
    np.testing.assert_allclose(metrics.expected_calibration_error, 0.71 / 6, rtol=0, atol=1e-6)
    filled = {round(each.low * 15): each for each in metrics.reliability if each.images}
    assert {number: each.images for number, each in filled.items()} == {7: 1, 9: 3, 13: 1, 14: 1}
    assert filled[9].confidence == pytest.approx(0.63, rel=0, abs=1e-6)
    assert filled[9].accuracy == pytest.approx(2 / 3, rel=0, abs=1e-12)
    assert sum(each.images for each in metrics.reliability) == metrics.images


def test_copies_of_training_images_are_left_out_of_a_second_accuracy() -> None:
    labels, copies = np.where(RIGHT, 0, 1), np.array([True, False, True, False, False, False])
    metrics = evaluate(_of_shares(SHARES), labels, ("a", "b"), is_duplicate=copies)
    assert (metrics.duplicates, metrics.accuracy_without_duplicates) == (2, 2 / 4)
    assert metrics.top1_accuracy == 4 / 6


@pytest.mark.parametrize(("copies", "duplicates"), [(None, 0), (False, 0), (True, 6)])
def test_without_copies_or_without_others_there_is_no_second_accuracy(copies: bool | None, duplicates: int) -> None:
    mask = None if copies is None else np.full(6, copies)
    metrics = evaluate(_of_shares(SHARES), np.where(RIGHT, 0, 1), ("a", "b"), is_duplicate=mask)
    assert (metrics.duplicates, metrics.accuracy_without_duplicates) == (duplicates, None)


def test_a_threshold_is_judged_by_what_it_rejects() -> None:
    """Below 0.63 are two of 0.62 and one of 0.52, two of the three wrong; all of the rest are right."""
    labels = np.where(RIGHT, 0, 1)
    metrics = evaluate(_of_shares(SHARES), labels, ("a", "b"), reject_below=0.63)
    assert metrics.rejection == Rejection(0.63, rejected=3, rejected_mistakes=2, kept_accuracy=1.0)
    nothing = evaluate(_of_shares(SHARES), labels, ("a", "b"), reject_below=0.0).rejection
    assert nothing == Rejection(0.0, 0, 0, 4 / 6)
    everything = evaluate(_of_shares(SHARES), labels, ("a", "b"), reject_below=1.0).rejection
    assert everything == Rejection(1.0, 6, 2, None)
    assert evaluate(_of_shares(SHARES), labels, ("a", "b")).rejection is None


def test_an_image_right_at_the_threshold_is_kept() -> None:
    metrics = evaluate(np.zeros((1, 2), np.float32), np.array([0]), ("a", "b"), reject_below=0.5)
    assert metrics.rejection == Rejection(0.5, 0, 0, 1.0)


def test_metrics_come_back_from_their_file() -> None:
    metrics = evaluate(
        _of_shares(SHARES), np.where(RIGHT, 0, 1), ("a", "b"), is_duplicate=np.arange(6) > 4, reject_below=0.63
    )  # fmt: skip
    content = json.loads(pretty_json(to_dict(metrics)))
    assert from_dict(Metrics, content, "metrics.json") == metrics
    old = {"task", "images", "top1_accuracy", "top1_accuracy_ci95", "log_loss", "per_class", "confusion"}
    assert old < set(content)
    assert content["per_class"]["a"] == {"images": 4, "precision": 4 / 6, "recall": 1.0, "f1": 8 / 10}


def test_the_most_confident_mistakes_come_first() -> None:
    """Softmax of logarithms gives their shares: rows 1, 2 and 4 are wrong, with 0.7, 0.9 and 0.7."""
    shares = np.array([[0.98, 0.01, 0.01], [0.1, 0.7, 0.2], [0.9, 0.06, 0.04], [0.3, 0.3, 0.4], [0.25, 0.05, 0.7]])
    mistakes = most_confident_mistakes(np.log(shares).astype(np.float32), np.array([0, 0, 2, 2, 0]))
    assert [(each.row, each.label, each.called, each.second) for each in mistakes] == [
        (2, 2, 0, 1), (1, 0, 1, 2), (4, 0, 2, 0),
    ]  # fmt: skip
    found = [(each.probability, each.second_probability) for each in mistakes]
    np.testing.assert_allclose(found, [(0.9, 0.06), (0.7, 0.2), (0.7, 0.25)], rtol=1e-6, atol=0)


def test_equal_mistakes_keep_the_order_of_the_images_and_the_limit_holds() -> None:
    logits = np.tile(np.array([[1.0, 0.0]], np.float32), (40, 1))
    labels = np.where(np.arange(40) % 2, 1, 0)
    assert [each.row for each in most_confident_mistakes(logits, labels)] == list(range(1, 40, 2))
    assert [each.row for each in most_confident_mistakes(logits, labels, limit=3)] == [1, 3, 5]


def test_of_equal_classes_the_first_is_called_and_the_next_is_second() -> None:
    (mistake,) = most_confident_mistakes(np.zeros((1, 3), np.float32), np.array([2]))
    assert (mistake.called, mistake.second) == (0, 1)


def test_without_mistakes_there_are_none() -> None:
    assert most_confident_mistakes(np.eye(3, dtype=np.float32), np.arange(3)) == ()

"""Temperatures against scipy, calibration errors and thresholds worked by hand."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from edgetune.heads.calibration import (
    Answers,
    answers,
    best_temperature,
    calibration_error,
    fit_calibration,
    fit_reject,
    reliability_bins,
)

Logits = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]


def _overconfident(images: int = 400, classes: int = 4, factor: float = 3.0) -> tuple[Logits, Labels]:
    """Logits that are `factor` times those the labels are drawn by."""
    random = np.random.default_rng(0)
    logits = random.normal(size=(images, classes)) * 1.5
    drawn = (logits + random.gumbel(size=logits.shape)).argmax(axis=1)
    return (factor * logits).astype(np.float32), drawn


def _log_loss(logits: Logits, labels: Labels, weights: npt.NDArray[np.float64]) -> float:
    wide = logits.astype(np.float64)
    special = pytest.importorskip("scipy.special")
    log_probabilities = special.log_softmax(wide, axis=1)[np.arange(len(labels)), labels]
    return float(-(weights * log_probabilities).sum() / weights.sum())


@pytest.mark.parametrize("factor", [0.2, 1.0, 3.0])
@pytest.mark.parametrize("is_weighted", [False, True], ids=["plain", "weighted"])
def test_the_temperature_is_that_of_an_independent_minimiser(factor: float, is_weighted: bool) -> None:
    logits, labels = _overconfident(factor=factor)
    weights = np.where(labels == 0, 5.0, 1.0) if is_weighted else np.ones(len(labels))
    optimize = pytest.importorskip("scipy.optimize")
    found = optimize.minimize_scalar(
        lambda log: _log_loss(logits / np.float32(np.exp(log)), labels, weights),
        bounds=(-3.0, 3.0), method="bounded", options={"xatol": 1e-9},
    )  # fmt: skip
    np.testing.assert_allclose(best_temperature(logits, labels, weights), np.exp(found.x), rtol=1e-4, atol=0)


def test_logits_three_times_too_large_have_a_temperature_near_three() -> None:
    logits, labels = _overconfident(images=20_000)
    assert best_temperature(logits, labels, np.ones(len(labels))) == pytest.approx(3.0, rel=0.05)


def test_calibration_never_worsens_the_loss_and_mends_the_error() -> None:
    logits, labels = _overconfident()
    weights = np.ones(len(labels))
    found = fit_calibration(logits, labels, weights)
    assert found.images == 400
    np.testing.assert_allclose(found.log_loss_before, _log_loss(logits, labels, weights), rtol=1e-6, atol=0)
    cooled = logits / np.float32(found.temperature)
    np.testing.assert_allclose(found.log_loss_after, _log_loss(cooled, labels, weights), rtol=1e-5, atol=0)
    assert found.log_loss_after < found.log_loss_before
    assert found.ece_after < 0.5 * found.ece_before


def test_images_that_are_all_right_leave_some_doubt() -> None:
    """Two classes, logits +-1, N images, and one more of unknown class: p = (N + 1/2) / (N + 1), 2 / T its logit."""
    labels = np.arange(50) % 2
    logits = np.where(np.eye(2)[labels] == 1.0, 1.0, -1.0).astype(np.float32)
    probability = 50.5 / 51.0
    expected = 2.0 / np.log(probability / (1.0 - probability))
    temperature = best_temperature(logits, labels, np.ones(50))
    np.testing.assert_allclose(temperature, expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("logits", "labels", "expected"),
    [
        (np.array([[0.001, 0.0], [0.0, 0.001]] * 200), [0, 1] * 200, 0.05),
        (np.array([[100.0, 0.0], [100.0, 0.0]]), [0, 1], 20.0),
        (np.array([[0.0, 1.0], [1.0, 0.0]]), [0, 1], 20.0),
        (np.zeros((4, 3)), [0, 1, 2, 0], None),
    ],
    ids=["tiny margins", "half wrong", "all wrong", "no opinion"],
)
def test_a_temperature_is_never_absurd(
    logits: npt.NDArray[np.float64], labels: list[int], expected: float | None
) -> None:
    found = fit_calibration(logits.astype(np.float32), np.array(labels), np.ones(len(labels)))
    if expected is not None:
        assert found.temperature == pytest.approx(expected, rel=1e-6)
    figures = [found.temperature, found.log_loss_before, found.log_loss_after, found.ece_before, found.ece_after]
    assert np.isfinite(figures).all()
    assert 0.05 <= found.temperature <= 20.0


def test_answers_are_softmax_argmax_and_log_loss() -> None:
    logits = np.log(np.array([[0.7, 0.2, 0.1], [0.2, 0.3, 0.5]])).astype(np.float32)
    found = answers(logits, np.array([0, 1]))
    np.testing.assert_allclose(found.confidence, [0.7, 0.5], rtol=1e-6, atol=0)
    assert found.is_right.tolist() == [True, False]
    np.testing.assert_allclose(found.losses, -np.log([0.7, 0.3]), rtol=1e-6, atol=0)


def test_blocks_of_rows_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, labels = _overconfident(images=37)
    whole = fit_calibration(logits, labels, np.ones(37))
    monkeypatch.setattr("edgetune.heads.calibration._BLOCK_CELLS", 20)
    parts = fit_calibration(logits, labels, np.ones(37))
    assert parts.temperature == pytest.approx(whole.temperature, rel=1e-9)
    assert [each.images for each in parts.bins_after] == [each.images for each in whole.bins_after]
    np.testing.assert_allclose(parts.ece_after, whole.ece_after, rtol=1e-9, atol=0)


def _answered() -> Answers:
    """Bins are 1/15 wide: 0.62 and 0.65 share one (0.6, 0.667], 0.95 and 1.0 the last, 0.4 lies on an upper edge."""
    confidence = np.array([0.62, 0.65, 0.95, 1.0, 0.4])
    return Answers(confidence, np.array([True, False, True, True, False]), np.zeros(5))


def test_the_calibration_error_is_that_worked_by_hand() -> None:
    """|1.27 - 1| / 5 + |1.95 - 2| / 5 + |0.4 - 0| / 5."""
    assert calibration_error(_answered(), np.ones(5)) == pytest.approx((0.27 + 0.05 + 0.4) / 5)


def test_the_calibration_error_is_weighted() -> None:
    """Weights 2, 1, 1, 1, 5: |2 * -0.38 + 0.65| / 10 + |-0.05| / 10 + 5 * 0.4 / 10."""
    weights = np.array([2.0, 1.0, 1.0, 1.0, 5.0])
    assert calibration_error(_answered(), weights) == pytest.approx((0.11 + 0.05 + 2.0) / 10)


def test_bins_hold_what_lies_in_them() -> None:
    bins = reliability_bins(_answered())
    assert len(bins) == 15
    assert [place for place, each in enumerate(bins) if each.images] == [5, 9, 14]
    edge, middle, last = bins[5], bins[9], bins[14]
    assert [edge.low, edge.high] == pytest.approx([1 / 3, 0.4])
    assert [middle.images, middle.confidence, middle.accuracy] == pytest.approx([2, 0.635, 0.5])
    assert [last.images, last.confidence, last.accuracy] == pytest.approx([2, 0.975, 1.0])
    assert (bins[0].images, bins[0].confidence, bins[0].accuracy) == (0, None, None)


def _confidences(values: list[float]) -> Logits:
    """Logits of two classes whose first has these probabilities."""
    wide = np.array(values)
    return np.stack([np.log(wide), np.log(1.0 - wide)], axis=1).astype(np.float32)


def test_a_threshold_turns_the_share_away_that_was_asked_for() -> None:
    """Confidences 0.55, 0.6, 0.7, 0.8, 0.9; the second and the fourth answer are wrong."""
    reject = fit_reject(_confidences([0.9, 0.6, 0.7, 0.8, 0.55]), np.array([0, 1, 0, 1, 0]), 1.0, 0.4)
    assert reject.below == pytest.approx(0.7, rel=1e-6)
    assert (reject.share, reject.rejected) == (0.4, 0.4)
    assert reject.rejected_of_right == pytest.approx(1 / 3)
    assert reject.rejected_of_wrong == pytest.approx(1 / 2)


def test_a_threshold_is_in_probabilities_behind_the_temperature() -> None:
    """0.9 is 9 to 1; with a temperature of 2 it is 3 to 1."""
    reject = fit_reject(_confidences([0.9, 0.99]), np.array([0, 0]), 2.0, 0.01)
    assert reject.below == pytest.approx(0.75, rel=1e-6)
    assert (reject.rejected, reject.rejected_of_right, reject.rejected_of_wrong) == (0.0, 0.0, None)


def test_equal_probabilities_are_kept_together() -> None:
    reject = fit_reject(_confidences([0.8] * 4), np.array([1, 1, 1, 1]), 1.0, 0.5)
    assert (reject.rejected, reject.rejected_of_right, reject.rejected_of_wrong) == (0.0, None, 0.0)


def test_a_share_of_nearly_all_keeps_the_surest() -> None:
    reject = fit_reject(_confidences([0.6, 0.7, 0.9]), np.array([0, 0, 0]), 1.0, 0.99)
    assert reject.rejected == pytest.approx(2 / 3)

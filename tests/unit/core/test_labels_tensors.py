from __future__ import annotations

import re

import numpy as np
import pytest

from edgetune.core.errors import TensorError
from edgetune.core.labels import Prediction, is_rejected, top_predictions
from edgetune.core.tensors import Array, TensorSpec, check_feed, softmax

SPECS = (TensorSpec("image", "uint8", (None, 2, 2, 3)), TensorSpec("scale", "float32", (1,)))
IMAGE, SCALE = np.zeros((5, 2, 2, 3), np.uint8), np.ones(1, np.float32)


def test_softmax_of_logarithms_gives_their_shares() -> None:
    logits = np.log(np.array([[1.0, 2.0, 5.0], [3.0, 3.0, 6.0]]))
    np.testing.assert_allclose(softmax(logits), [[0.125, 0.25, 0.625], [0.25, 0.25, 0.5]], rtol=1e-12, atol=0)


def test_softmax_does_not_overflow() -> None:
    logits = np.array([3e38, -3e38, 3e38], dtype=np.float32)
    np.testing.assert_allclose(softmax(logits), [0.5, 0.0, 0.5], rtol=1e-12, atol=0)


def test_softmax_computes_in_float64() -> None:
    assert softmax(np.zeros(3, np.float32)).dtype == np.float64


def test_softmax_of_nan_is_nan() -> None:
    assert np.isnan(softmax(np.array([np.nan, 0.0], np.float32))).all()


def test_the_best_labels_come_first() -> None:
    logits = np.log(np.array([1.0, 5.0, 2.0])).astype(np.float32)
    first, second = top_predictions(logits, ("ant", "bee", "cat"), 2)
    assert (first.label, first.index, second.label, second.index) == ("bee", 1, "cat", 2)
    np.testing.assert_allclose([first.probability, second.probability], [0.625, 0.25], rtol=1e-6, atol=0)


def test_equal_labels_keep_their_order() -> None:
    assert top_predictions(np.zeros(2, np.float32), ("a", "b"), 2) == (Prediction("a", 0, 0.5), Prediction("b", 1, 0.5))


def test_more_labels_than_there_are_gives_all() -> None:
    assert len(top_predictions(np.zeros(2, np.float32), ("a", "b"), 10)) == 2


def test_a_feed_that_fits_passes() -> None:
    check_feed({"scale": SCALE, "image": IMAGE}, SPECS)


@pytest.mark.parametrize(
    ("feed", "words"),
    [
        ({"image": IMAGE}, "the feed has the inputs ['image'], the model expects ['image', 'scale']"),
        ({"image": IMAGE, "scale": SCALE, "x": SCALE}, "the feed has the inputs ['image', 'scale', 'x']"),
        ({"images": IMAGE, "scale": SCALE}, "the feed has the inputs ['images', 'scale']"),
        (
            {"image": IMAGE.astype(np.float32), "scale": SCALE},
            "input 'image' is float32 (5, 2, 2, 3), the model expects uint8 ('any', 2, 2, 3)",
        ),
        ({"image": IMAGE.astype(np.int8), "scale": SCALE}, "input 'image' is int8"),
        ({"image": IMAGE[:, :1], "scale": SCALE}, "input 'image' is uint8 (5, 1, 2, 3)"),
        ({"image": IMAGE[0], "scale": SCALE}, "input 'image' is uint8 (2, 2, 3)"),
        (
            {"image": IMAGE, "scale": np.ones(2, np.float32)},
            "input 'scale' is float32 (2,), the model expects float32 (1,)",
        ),
    ],
    ids=["too few", "too many", "other name", "float", "signed", "other size", "no batch", "other length"],
)
def test_a_feed_that_does_not_fit_is_refused(feed: dict[str, Array], words: str) -> None:
    with pytest.raises(TensorError, match=re.escape(words)):
        check_feed(feed, SPECS)


@pytest.mark.parametrize(
    ("probability", "reject_below", "expected"),
    [(0.5, None, False), (0.5, 0.625, True), (0.625, 0.625, False), (0.75, 0.625, False)],
)
def test_what_is_below_the_threshold_is_rejected(
    probability: float, reject_below: float | None, expected: bool
) -> None:
    assert is_rejected(Prediction("ant", 0, probability), reject_below) is expected

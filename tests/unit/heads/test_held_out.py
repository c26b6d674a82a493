"""Accuracy on rows that a head has not seen."""

from __future__ import annotations

import numpy as np
import pytest

from edgetune.core.errors import DataError
from edgetune.core.head_recipe import LINEAR, HeadRecipe
from edgetune.heads.held_out import held_out_heads, held_out_hits

pytest.importorskip("threadpoolctl")


def _blobs(count: int, spread: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    labels = np.arange(count) % 3
    centres = np.array([[4, 0, 0, 0], [0, 4, 0, 0], [0, 0, 4, 0]], np.float32)
    return (centres[labels] + generator.normal(0, spread, (count, 4))).astype(np.float32), labels


def test_separable_classes_are_all_hit() -> None:
    features, labels = _blobs(90, 0.1)
    rows = np.arange(0, 90, 2)
    heads = held_out_heads(features, labels, HeadRecipe(LINEAR, 1.0), rows)
    assert held_out_hits(heads, features[rows], labels[rows]).all()


def test_each_judged_row_is_held_out_once() -> None:
    features, labels = _blobs(60, 1.0)
    rows = np.arange(10, 50)
    heads = held_out_heads(features, labels, HeadRecipe(LINEAR, 1.0), rows)
    assert sorted(np.concatenate([part.rows for part in heads]).tolist()) == list(range(40))


def test_a_label_that_only_a_row_itself_could_teach_is_missed() -> None:
    """One outlier far away with the wrong label: a head that had seen it would learn it."""
    features, labels = _blobs(60, 0.1)
    features[30], labels[30] = np.array([0, 0, 0, 50], np.float32), 1
    labels[30] = 2 if labels[30] == 1 else 1
    rows = np.arange(60)
    hits = held_out_hits(held_out_heads(features, labels, HeadRecipe(LINEAR, 1e-3), rows), features, labels)
    assert hits.sum() >= 58
    seen = held_out_heads(features, labels, HeadRecipe(LINEAR, 1e-3), np.delete(rows, 30))
    assert all(part.head.logits(features[30:31]).argmax() == labels[30] for part in seen)


@pytest.mark.parametrize("count", [60, 30], ids=["all judged", "half judged"])
def test_labels_without_sense_are_not_named_right(count: int) -> None:
    """With more features than rows a head knows every row that it has seen by heart."""
    generator = np.random.default_rng(0)
    features = generator.normal(size=(60, 200)).astype(np.float32)
    labels, rows = generator.integers(0, 2, 60), np.arange(count)
    heads = held_out_heads(features, labels, HeadRecipe(LINEAR, 0.1), rows)
    assert held_out_hits(heads, features[rows], labels[rows]).mean() < 0.7
    seen = np.concatenate([np.setdiff1d(rows, part.rows) for part in heads[:1]])
    assert (heads[0].head.logits(features[seen]).argmax(axis=1) == labels[seen]).all()


def test_spoilt_features_lose_hits() -> None:
    features, labels = _blobs(90, 0.3)
    heads = held_out_heads(features, labels, HeadRecipe(LINEAR, 1.0), np.arange(90))
    spoilt = features[:, ::-1].copy()
    assert held_out_hits(heads, features, labels).mean() > 0.95
    assert held_out_hits(heads, spoilt, labels).mean() < 0.7


def test_a_class_with_one_judged_row_is_refused() -> None:
    features, labels = _blobs(30, 0.1)
    with pytest.raises(DataError, match="fewer than two"):
        held_out_heads(features, labels, HeadRecipe(LINEAR, 1.0), np.array([0, 1, 3, 4]))

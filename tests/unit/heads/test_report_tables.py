from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from edgetune.heads.evaluate import evaluate
from edgetune.heads.report_tables import results_csv, top_confusions, worst_classes
from edgetune.heads.report_words import counted, percent, seconds, share, short, visible
from tests.unit.heads.report_cases import EPOCHS, fitted


def test_the_path_is_written_as_csv() -> None:
    assert results_csv(fitted()) == (
        b"l2,cv_log_loss,cv_top1_accuracy\n1000,0.693147,0.500000\n3.16228,0.250000,0.937500\n0.01,0.300000,0.906250\n"
    )


def test_the_epochs_are_written_as_csv() -> None:
    bare = dataclasses.replace(EPOCHS[1], held_out_loss=None, held_out_accuracy=None)
    assert results_csv(fitted(path=(), epochs=(EPOCHS[0], bare))) == (
        b"epoch,learning_rate,train_log_loss,held_out_log_loss,held_out_top1_accuracy\n"
        b"1,0.001,1.500000,1.250000,0.500000\n2,0.0005,0.750000,,\n"
    )


def test_the_worst_classes_come_first_and_those_without_images_last() -> None:
    """F1 of ants 2 * 3 / 7, of dogs 2 * 1 / 4, of the cat 0; bees and eels are not there and not called."""
    labels, called = np.array([0, 0, 0, 1, 1, 2]), np.array([0, 0, 0, 1, 0, 1])
    metrics = evaluate(np.eye(5, dtype=np.float32)[called], labels, ("ant", "dog", "cat", "bee", "eel"))
    assert [name for name, _ in worst_classes(metrics)] == ["cat", "dog", "ant", "bee", "eel"]


def test_what_is_confused_most_comes_first_and_among_equals_the_smallest_class() -> None:
    labels = np.array([0] * 5 + [1] * 3 + [2] * 2)
    called = np.array([1, 1, 2, 0, 0, 0, 1, 1, 0, 2])
    metrics = evaluate(np.eye(3, dtype=np.float32)[called], labels, ("ant", "bee", "cat"))
    assert top_confusions(metrics, 9) == [(0, 1, 2), (2, 0, 1), (1, 0, 1), (0, 2, 1)]
    assert top_confusions(metrics, 1) == [(0, 1, 2)]


@pytest.mark.parametrize(
    ("text", "limit", "expected"),
    [
        ("ants", 4, "ants"),
        ("abcdefghijkl", 12, "abcdefghijkl"),
        ("abcdefghijklm", 12, "abcdef...klm"),
        ("\u732b" * 6, 12, "\u732b" * 6),
        ("\u732b" * 7, 12, "\u732b" * 3 + "..." + "\u732b"),
        ("a\nb", 9, "a\\u000ab"),
    ],
    ids=["short", "exact", "long", "wide", "long and wide", "two lines"],
)
def test_long_names_keep_both_ends(text: str, limit: int, expected: str) -> None:
    assert short(text, limit) == expected


def test_controls_and_turned_text_are_written_out_and_emoji_stay() -> None:
    assert visible("a\x1b[31m\u202eb\ud800") == "a\\u001b[31m\\u202eb\\ud800"
    family = "\U0001f468\u200d\U0001f469"
    assert visible(family) == family


def test_figures_are_written_for_people() -> None:
    assert (percent(0.95424), percent(None), share(2 / 3), share(None)) == ("95.42%", "-", "0.667", "-")
    assert (counted(1, "image"), counted(1234, "image"), counted(2, "class", "classes")) == (
        "1 image", "1,234 images", "2 classes",
    )  # fmt: skip
    assert (seconds(0.04), seconds(99.9), seconds(150.0)) == ("0.0 s", "99.9 s", "2.5 min")

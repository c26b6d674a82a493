from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from edgetune.heads.evaluate import evaluate
from edgetune.heads.report_plots import confusion_png, learning_png, path_png, reliability_png
from tests.unit.heads.report_cases import CALIBRATION, EPOCHS, PATH, perfect

pytest.importorskip("matplotlib")
BARE = tuple(dataclasses.replace(each, held_out_loss=None, held_out_accuracy=None) for each in EPOCHS)


def _size(png: bytes) -> tuple[int, int]:
    with Image.open(io.BytesIO(png), formats=["PNG"]) as image:
        image.load()
        assert len(set(image.convert("L").tobytes())) > 2
        width, height = image.size
    return width, height


@pytest.mark.parametrize(
    "draw",
    [
        lambda: path_png(PATH, 0.01),
        lambda: path_png(PATH[:1], 1000.0),
        lambda: learning_png(EPOCHS),
        lambda: learning_png(EPOCHS[:1]),
        lambda: learning_png(BARE),
        lambda: reliability_png(CALIBRATION, perfect("ant", "bee")),
        lambda: reliability_png(dataclasses.replace(CALIBRATION, bins_before=()), perfect("ant", "bee")),
        lambda: confusion_png(perfect("ant", "bee")),
    ],
    ids=["path", "one strength", "epochs", "one epoch", "nothing held out", "reliability", "empty bins", "confusion"],
)
def test_the_plots_are_pictures(draw: Callable[[], bytes]) -> None:
    assert min(_size(draw())) > 200


@pytest.mark.parametrize(
    "classes",
    [
        ("a" * 40, "b" * 40),
        tuple(f"class {index}" for index in range(30)),
        tuple(f"class {index}" for index in range(100)),
        tuple(f"class {index}" for index in range(400)),
        ("$5 off", "$9 off"),
        ("$^$", "$_$"),
        ("\u732b" * 40, "\u72ac" * 40),
        ("a" * 300, "b" * 300),
        ("a\nb", "\u202eb"),
    ],
    ids=["long names", "30 classes", "100 classes", "400 classes", "dollar signs", "broken formulas", "no such glyph",
         "very long names", "controls"],
)  # fmt: skip
def test_any_folder_name_can_be_plotted_without_a_warning(classes: tuple[str, ...]) -> None:
    width, height = _size(confusion_png(perfect(*classes)))
    assert max(width, height) < 1200


def _colours(png: bytes, corner: tuple[float, float, float, float]) -> set[tuple[int, int, int]]:
    """Those of a part of the picture, given in shares of its sides."""
    with Image.open(io.BytesIO(png), formats=["PNG"]) as image:
        box = tuple(round(share * side) for share, side in zip(corner, image.size * 2, strict=True))
        part = image.convert("RGB").crop((box[0], box[1], box[2], box[3]))
    return {pixel for _, pixel in part.getcolors(1 << 24) or []}


def test_with_very_many_classes_mistakes_stand_out_from_the_diagonal() -> None:
    """Orange where classes 0 to 99 are called 300 to 399, at the upper right; blue only on the diagonal."""
    labels, called = np.arange(400), np.where(np.arange(400) < 100, np.arange(400) + 300, np.arange(400))
    png = confusion_png(evaluate(np.eye(400, dtype=np.float32)[called], labels, tuple(map(str, range(400)))))
    blue, orange = (31, 119, 180), (255, 127, 14)
    upper_right, lower_right = _colours(png, (0.7, 0.1, 0.9, 0.3)), _colours(png, (0.7, 0.7, 0.9, 0.9))
    assert orange in upper_right
    assert blue not in upper_right
    assert blue in lower_right
    assert orange not in lower_right

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgetune.core.errors import MissingDependencyError
from edgetune.data.digits import write_digits
from edgetune.data.scan import scan_images


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("sklearn")
    folder = tmp_path_factory.mktemp("digits")
    assert write_digits(folder) == 1797
    return folder


def test_all_images_of_ten_classes_are_written(digits: Path) -> None:
    folder = scan_images(digits)
    assert folder.classes == tuple("0123456789")
    assert len(folder.train) + len(folder.val) == 1797
    assert folder.skipped == ()


def test_the_content_of_each_image_decides_its_side(digits: Path) -> None:
    for path in digits.rglob("*.png"):
        share = int(hashlib.sha256(path.read_bytes()).hexdigest(), 16) / 16**64
        assert path.parts[-3] == ("val" if share < 0.2 else "train")


def test_no_image_is_in_both_splits(digits: Path) -> None:
    sides = [
        {hashlib.sha256(path.read_bytes()).hexdigest() for path in (digits / split).rglob("*.png")}
        for split in ("train", "val")
    ]
    assert sides[0] & sides[1] == set()
    assert 0.15 < len(sides[1]) / (len(sides[0]) + len(sides[1])) < 0.25


def test_an_image_is_the_digit_in_dark_ink_on_white(digits: Path) -> None:
    """The first digit is a zero; the 72 px inside the margin of 12 px are its 8x8 values, enlarged 9 times."""
    values = pytest.importorskip("sklearn.datasets").load_digits().images[0]
    (path,) = digits.glob("*/0/0000.png")
    with Image.open(path) as image:
        assert (image.size, image.mode) == ((96, 96), "L")
        pixels = np.asarray(image).astype(np.float64)
    frame = pixels.copy()
    frame[12:84, 12:84] = 255
    assert (frame == 255).all()
    middles = pixels[12 + 4 : 84 : 9, 12 + 4 : 84 : 9]
    np.testing.assert_allclose(middles, 255 - values * 255 / 16, rtol=0, atol=2)


def test_without_scikit_learn_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(
        MissingDependencyError, match="scikit-learn, which ships the digits, is not installed"
    ) as caught:
        write_digits(tmp_path)
    assert "edgetune[train]" in caught.value.hint

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("torchvision")

from edgetune.core.preprocess import PreprocessSpec, preprocess_image
from edgetune.models.reference_pixels import torchvision_pixels

SPEC = PreprocessSpec(20, 16, "bicubic", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (31, 47, 3), dtype=np.uint8))


def _file(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P", "CMYK"])
def test_ours_are_torchvisions(mode: str) -> None:
    data = _file(PICTURE.convert(mode), "TIFF" if mode == "CMYK" else "PNG")
    pixels = torchvision_pixels(data, SPEC)
    assert pixels is not None
    assert pixels.shape == (16, 16, 3)
    assert pixels.dtype == np.uint8
    np.testing.assert_array_equal(pixels, preprocess_image(data, SPEC))


def test_a_turned_image_comes_out_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = _file(PICTURE, exif=exif)
    turned = torchvision_pixels(data, SPEC)
    expected = torchvision_pixels(_file(PICTURE.transpose(Image.Transpose.ROTATE_270)), SPEC)
    assert turned is not None
    assert expected is not None
    np.testing.assert_array_equal(turned, expected)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "I;16"])
def test_what_torchvision_treats_otherwise_is_not_compared(mode: str) -> None:
    image = Image.fromarray(np.zeros((9, 9), np.uint16)) if mode == "I;16" else PICTURE.convert(mode)
    assert torchvision_pixels(_file(image), SPEC) is None
    transparent = _file(PICTURE.convert("P"), transparency=3)
    assert torchvision_pixels(transparent, SPEC) is None

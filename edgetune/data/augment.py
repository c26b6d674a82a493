"""Augmented views of an image: each a function of the image's bytes, the seed and the view's number alone."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageEnhance

from edgetune.core.preprocess import DEFAULT_MAX_PIXELS, PreprocessSpec, decode_image, preprocess_opened

# Changes with anything below that moves a pixel: features of views are cached under it.
AUGMENT_RECIPE = "crop 0.5-1 flip jitter 0.2, 1"

# Of a square image, a crop of half the area to all of it shows things at 0.88 to 1.24 times the size that plain
# preprocessing (256 px, crop of 224) shows them at. The crops that backbones are pretrained with go down to 8 % of the
# area: things would be larger than at inference on average, and features move with apparent size (Touvron et al. 2019,
# "Fixing the train-test resolution discrepancy").
_MIN_AREA = 0.5
_MAX_ASPECT = 4 / 3
_JITTER = 0.2


@dataclass(frozen=True)
class _Draws:
    """Independent numbers, uniform in [0, 1), one for each choice."""

    area: float
    aspect: float
    left: float
    top: float
    flip: float
    brightness: float
    contrast: float
    saturation: float


def view_digest(sha256: str, seed: int, view: int) -> bytes:
    """32 bytes that decide view number `view` (from 1) of the image with content hash `sha256`."""
    return hashlib.sha256(f"{AUGMENT_RECIPE}|{sha256}|{seed}|{view}".encode()).digest()


def augmented(image: Image.Image, spec: PreprocessSpec, digest: bytes) -> npt.NDArray[np.uint8]:
    """A view of an upright RGB image, uint8 `(crop_size, crop_size, 3)`.

    A crop of 50 to 100 % of the area with sides 3:4 to 4:3 (less of an image that is longer than that), resized with
    the spec's interpolation; mirrored in half of the views; brightness, contrast and saturation times 0.8 to 1.2.
    The digest's eight 32-bit words are the random numbers: no library's generator, whose stream may change, has a say.
    """
    draws = _Draws(*(np.frombuffer(digest, "<u4") / 2.0**32).tolist())
    image = _reduced(image, spec.crop_size)
    left, top, width, height = _crop_box(image.size, draws)
    cropped = image.crop((left, top, left + width, top + height))
    resized = cropped.resize((spec.crop_size, spec.crop_size), Image.Resampling[spec.interpolation.upper()])
    mirrored = resized.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if draws.flip < 0.5 else resized
    brightened = ImageEnhance.Brightness(mirrored).enhance(_factor(draws.brightness))
    contrasted = ImageEnhance.Contrast(brightened).enhance(_factor(draws.contrast))
    pixels: npt.NDArray[np.uint8] = np.array(ImageEnhance.Color(contrasted).enhance(_factor(draws.saturation)))
    return pixels


def preprocess_versions(
    data: bytes, spec: PreprocessSpec, digests: Sequence[bytes | None], *, name: str = "image"
) -> list[npt.NDArray[np.uint8]]:
    """Decodes an image file once; for each digest its view, for None the plain pixels of `preprocess_image`.

    Raises:
        ImageError: see `preprocess_image`.
    """
    image = decode_image(data, name=name, max_pixels=DEFAULT_MAX_PIXELS)
    image.info = {}  # the image is upright now, and its EXIF must not turn it once more
    return [
        preprocess_opened(image, spec, name=name) if digest is None else augmented(image, spec, digest)
        for digest in digests
    ]


def _reduced(image: Image.Image, crop_size: int) -> Image.Image:
    """Shrunk by a whole factor to a short side of two to three crops, so that a photo's views cost no more than it."""
    factor = min(image.size) // (2 * crop_size)
    return image.reduce(factor) if factor > 1 else image


def _crop_box(size: tuple[int, int], draws: _Draws) -> tuple[int, int, int, int]:
    """Left, top, width and height in pixels."""
    area = size[0] * size[1] * (_MIN_AREA + (1 - _MIN_AREA) * draws.area)
    aspect = _MAX_ASPECT ** (2 * draws.aspect - 1)  # 3:4 to 4:3, its logarithm uniform
    width, height = min(size[0], math.sqrt(area * aspect)), min(size[1], math.sqrt(area / aspect))
    across = max(1, round(min(width, height * _MAX_ASPECT)))
    down = max(1, round(min(height, width * _MAX_ASPECT)))
    return int(draws.left * (size[0] - across + 1)), int(draws.top * (size[1] - down + 1)), across, down


def _factor(draw: float) -> float:
    return 1 - _JITTER + 2 * _JITTER * draw

"""scikit-learn's handwritten digits (UCI, 1,797 images of 8x8 grey pixels) as an image folder, offline."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from edgetune.core.errors import MissingDependencyError
from edgetune.core.files import sha256_of_bytes
from edgetune.data.splits import is_validation

_SIDE_PX = 96


def write_digits(folder: Path) -> int:
    """Writes `train/DIGIT/*.png` and `val/DIGIT/*.png`, split by content hash; returns the number of images.

    Raises:
        MissingDependencyError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise MissingDependencyError(
            "scikit-learn, which ships the digits, is not installed.", hint="pip install 'edgetune[train]'"
        ) from error
    digits = load_digits()
    for index, (values, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        data = _png_of_digit(values)
        split = "val" if is_validation(sha256_of_bytes(data)) else "train"
        path = folder / split / str(label) / f"{index:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return len(digits.images)


def _png_of_digit(values: npt.NDArray[np.float64]) -> bytes:
    """Grey values 0..16 to a PNG: dark ink on white, enlarged, with a margin that the centre crop takes away."""
    ink = Image.fromarray((255 - values * (255 / 16)).round().astype(np.uint8))
    page = Image.new("L", (_SIDE_PX, _SIDE_PX), 255)
    inner = _SIDE_PX * 3 // 4
    margin = (_SIDE_PX - inner) // 2
    page.paste(ink.resize((inner, inner), Image.Resampling.BICUBIC), (margin, margin))
    stream = io.BytesIO()
    page.save(stream, format="PNG")
    return stream.getvalue()

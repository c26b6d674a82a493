"""torchvision's pixels of an image file, which edgetune's own preprocessing has to equal."""

from __future__ import annotations

import io
import struct

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps
from torchvision.transforms import v2

from edgetune.core.preprocess import PreprocessSpec

# Modes that Pillow brings to RGB as edgetune does; it cuts 16 bits and drops transparency.
_ALIKE = ("RGB", "L", "1", "P", "CMYK", "YCbCr")


def torchvision_pixels(data: bytes, spec: PreprocessSpec) -> npt.NDArray[np.uint8] | None:
    """Pixels uint8 `(crop_size, crop_size, 3)` by Pillow and `torchvision.transforms.v2`; None for an image with
    transparency or more than 8 bits, which training scripts on torchvision treat otherwise, and for one whose EXIF
    Pillow cannot write back, on which its own function for turning images fails.
    """
    with Image.open(io.BytesIO(data)) as image:
        if image.mode not in _ALIKE or "transparency" in image.info:
            return None
        try:
            upright = ImageOps.exif_transpose(image).convert("RGB")
        except (TypeError, ValueError, AttributeError, KeyError, SyntaxError, struct.error):
            return None
    resize = v2.Resize(spec.resize_size, v2.InterpolationMode(spec.interpolation))
    return np.array(v2.Compose([resize, v2.CenterCrop(spec.crop_size)])(upright))

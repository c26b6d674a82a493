"""From file bytes to pixels: the only decoding and resizing that fit, calibration, parity and the server use."""

from __future__ import annotations

import io
import itertools
import math
import re
import struct
import zlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, features

from edgetune.core.errors import ConfigError, ImageError

DEFAULT_MAX_PIXELS = 50_000_000
IMAGE_FORMATS = ("JPEG", "PNG", "BMP", "PPM", "TIFF", "WEBP")
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".ppm", ".pgm", ".tif", ".tiff", ".webp")

_INTERPOLATIONS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# Pillow's own limit would warn or fail first, in words of its own; ours is checked before any pixel is decoded.
Image.MAX_IMAGE_PIXELS = None

# More scans than any encoder writes. A scan's header tells its length, 6 + 2 n, and its number of components, n.
_MAX_SCANS = 100
_SCAN = re.compile(rb"\xff\xda\x00(?:\x08\x01|\x0a\x02|\x0c\x03|\x0e\x04)")

# What Pillow's decoders raise on damaged bytes; a bug of ours outside this list keeps its traceback.
_DECODE_ERRORS = (
    OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError, OverflowError, MemoryError,
    ZeroDivisionError, RuntimeError, struct.error, zlib.error, Image.DecompressionBombError,
)  # fmt: skip


@dataclass(frozen=True)
class PreprocessSpec:
    """Short side to `resize_size` px, centre crop of `crop_size` px; `mean` and `std` are for pixels in 0..1."""

    resize_size: int
    crop_size: int
    interpolation: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __post_init__(self) -> None:
        if self.interpolation not in _INTERPOLATIONS:
            raise ConfigError(
                f"interpolation is {self.interpolation!r}, expected one of {', '.join(sorted(_INTERPOLATIONS))}."
            )
        if not 1 <= self.crop_size <= self.resize_size <= 4096:
            raise ConfigError(
                f"crop_size is {self.crop_size} px and resize_size {self.resize_size} px, "
                "expected 1 <= crop_size <= resize_size <= 4096."
            )
        if not all(math.isfinite(value) for value in (*self.mean, *self.std)) or min(self.std) <= 0:
            raise ConfigError(f"mean is {self.mean} and std {self.std}, expected finite numbers and std above 0.")


def decoder_version() -> str:
    """Names the decoder: another libjpeg may move pixels by a step or two, so caches depend on it."""
    import PIL

    jpeg = features.version("libjpeg_turbo") or features.version("jpg")
    return f"pillow {PIL.__version__}, jpeg {jpeg}, webp {features.version('webp')}"


def preprocess_image(
    data: bytes, spec: PreprocessSpec, *, name: str = "image", max_pixels: int = DEFAULT_MAX_PIXELS
) -> npt.NDArray[np.uint8]:
    """Decodes an image file and returns RGB pixels, uint8 `(crop_size, crop_size, 3)`.

    Size and crop offsets follow torchvision's `Resize` and `CenterCrop` on Pillow images, bit for bit.

    Raises:
        ImageError: the bytes are no image of a supported format, are damaged, or are over `max_pixels`.
    """
    return preprocess_opened(open_image(data, name=name, max_pixels=max_pixels), spec, name=name, max_pixels=max_pixels)


def decode_image(data: bytes, *, name: str = "image", max_pixels: int = DEFAULT_MAX_PIXELS) -> Image.Image:
    """Decodes, turns upright by EXIF and converts to RGB. `max_pixels` is checked before any pixel is decoded.

    Raises:
        ImageError: see `preprocess_image`.
    """
    return _decoded(open_image(data, name=name, max_pixels=max_pixels), name)


def open_image(
    data: bytes | memoryview, *, name: str = "image", max_pixels: int = DEFAULT_MAX_PIXELS,
    formats: tuple[str, ...] = IMAGE_FORMATS,
) -> Image.Image:  # fmt: skip
    """Reads an image file's header, and none of its pixels.

    Raises:
        ImageError: the bytes are no image of one of `formats`, or it is over `max_pixels`.
    """
    try:
        image = Image.open(io.BytesIO(data), formats=formats)
    except _DECODE_ERRORS as error:
        raise ImageError(
            f"{name} is not an image that can be read ({len(data)} bytes; supported: {', '.join(formats)})."
        ) from error
    width, height = image.size
    if width * height > max_pixels:
        raise ImageError(f"{name} has {width}x{height} pixels, over the limit of {max_pixels} pixels.")
    if image.format == "JPEG" and _count_scans(data) > _MAX_SCANS:
        raise ImageError(f"{name} is a JPEG of over {_MAX_SCANS} scans; cameras write at most a dozen.")
    return image


def _count_scans(data: bytes | memoryview) -> int:
    """Scans of a JPEG (ITU-T T.81, B.2.3), those of thumbnails in it included; no more are sought than are allowed.

    A progressive JPEG may repeat a scan of a few bytes without end, and each costs a pass over all pixels.
    """
    content = bytes(data)
    if content.count(b"\xff\xda\x00") <= _MAX_SCANS:  # faster than the pattern, and enough for all but hostile files
        return 0
    return sum(1 for _ in itertools.islice(_SCAN.finditer(content), _MAX_SCANS + 1))


def preprocess_opened(
    image: Image.Image, spec: PreprocessSpec, *, name: str = "image", max_pixels: int = DEFAULT_MAX_PIXELS
) -> npt.NDArray[np.uint8]:
    """The second half of `preprocess_image`, for an image of `open_image`."""
    return _centre_crop(_resize_short_side(_decoded(image, name), spec, name, max_pixels), spec.crop_size)


def _decoded(image: Image.Image, name: str) -> Image.Image:
    try:
        image.load()
        return _to_rgb(_upright(image))
    except _DECODE_ERRORS as error:
        raise ImageError(f"{name} is damaged and cannot be decoded: {error}.") from error


def _upright(image: Image.Image) -> Image.Image:
    """Turns the image by its EXIF orientation alone. Pillow's own `exif_transpose` also rewrites the EXIF, and
    fails on tags that it cannot write.
    """
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    except (*_DECODE_ERRORS, AttributeError):
        return image  # Damaged EXIF says nothing about the orientation; the pixels are still good.
    turn = _TURNS.get(orientation) if isinstance(orientation, int) else None
    return image if turn is None else image.transpose(turn)


def _to_rgb(image: Image.Image) -> Image.Image:
    """Every Pillow mode to RGB: transparency over white, 16-bit grey divided by 257, floats clipped to 0..255."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I"):
        return _grey_from_array(np.clip(np.asarray(image), 0, 65535) // 257)
    if image.mode == "F":
        return _grey_from_array(np.clip(np.nan_to_num(np.asarray(image)), 0, 255).round())
    if image.mode in {"RGBA", "LA", "PA", "RGBa", "La"} or "transparency" in image.info:
        return _over_white(image)
    return image.convert("RGB")


def _grey_from_array(values: npt.NDArray[np.generic]) -> Image.Image:
    return Image.fromarray(values.astype(np.uint8)).convert("RGB")


def _over_white(image: Image.Image) -> Image.Image:
    if image.mode == "La":
        image = image.convert("LA")
    rgba = image.convert("RGBA")
    page = Image.new("RGB", rgba.size, (255, 255, 255))
    page.paste(rgba, mask=rgba.getchannel("A"))
    return page


def _resize_short_side(image: Image.Image, spec: PreprocessSpec, name: str, max_pixels: int) -> Image.Image:
    width, height = image.size
    short, long = min(width, height), max(width, height)
    long_size = int(spec.resize_size * long / short)
    if spec.resize_size * long_size > max(max_pixels, spec.resize_size**2):
        raise ImageError(
            f"{name} is {width}x{height}: with its short side at {spec.resize_size} px it would have "
            f"{spec.resize_size * long_size} pixels, over the limit of {max_pixels}."
        )
    size = (spec.resize_size, long_size) if width <= height else (long_size, spec.resize_size)
    return image if size == image.size else image.resize(size, _INTERPOLATIONS[spec.interpolation])


def _centre_crop(image: Image.Image, crop_size: int) -> npt.NDArray[np.uint8]:
    width, height = image.size
    left, top = round((width - crop_size) / 2.0), round((height - crop_size) / 2.0)
    pixels: npt.NDArray[np.uint8] = np.array(image.crop((left, top, left + crop_size, top + crop_size)))
    return pixels

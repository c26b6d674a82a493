"""Other ways to make pixels of an image file than ours: what servers and cameras do, to be held against an answer."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image

from edgetune.core.preprocess import PreprocessSpec, decode_image

Images = npt.NDArray[np.uint8]

SHORT_SIDE, SQUASH, SQUASH_AND_CROP, LETTERBOX = "short side", "squash", "squash and crop", "letterbox"
UPRIGHT, AS_STORED, NO_ALPHA, OVER_BLACK = "upright", "as stored", "no alpha", "over black"
CENTRE, TOP_LEFT = "centre", "top left"

_FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
    "box": Image.Resampling.BOX,
}
# Sampling at points, which does not average what lies between them: OpenCV, and tensors in torchvision.
_POINT_FILTERS = ("nearest", "bilinear", "bicubic")
_CUBIC = -0.75  # the constant of both
# Sides that common recipes resize to, and crop_size over the usual shares.
_SIDES = (224, 232, 236, 240, 248, 256, 288, 320)
_SHARES = (0.875, 0.9, 0.95, 1.0)


@dataclass(frozen=True)
class Recipe:
    """How file bytes become `(crop, crop, 3)` pixels; `offset` moves the crop right and down, in pixels."""

    size: int
    crop: int
    filter: str
    antialias: bool = True
    shape: str = SHORT_SIDE
    decode: str = UPRIGHT
    anchor: str = CENTRE
    offset: tuple[int, int] = (0, 0)
    bgr: bool = False


def recipe_of(spec: PreprocessSpec) -> Recipe:
    """What `core.preprocess` does, bit for bit."""
    return Recipe(spec.resize_size, spec.crop_size, spec.interpolation)


def variants(recipe: Recipe) -> Iterator[Recipe]:
    """Every recipe that differs in one thing; of crops, a coarse net of offsets."""

    def changed(**fields: object) -> Recipe:
        return dataclasses.replace(recipe, **fields)  # type: ignore[arg-type]

    yield changed(bgr=not recipe.bgr)
    for decode in (AS_STORED, NO_ALPHA, OVER_BLACK):
        yield changed(decode=decode)
    for name in _FILTERS:
        yield changed(filter=name, antialias=True)
        if name in _POINT_FILTERS:
            yield changed(filter=name, antialias=False)
    for shape in (SHORT_SIDE, SQUASH, SQUASH_AND_CROP, LETTERBOX):
        yield changed(shape=shape)
    for size in sorted({*_SIDES, *(round(recipe.crop / share) for share in _SHARES)}):
        if size >= recipe.crop:
            yield changed(size=size)
    yield changed(anchor=TOP_LEFT)
    for step in (1, 4, 16):
        yield from moved(recipe, step)


def moved(recipe: Recipe, step: int) -> Iterator[Recipe]:
    """The crop moved by so many pixels, in all eight directions."""
    (x, y), steps = recipe.offset, (-step, 0, step)
    for dx, dy in ((dx, dy) for dx in steps for dy in steps if dx or dy):
        yield dataclasses.replace(recipe, offset=(x + dx, y + dy))


def describe_change(usual: Recipe, other: Recipe) -> str:
    """What the other does otherwise, in words: `resize without antialiasing and blue before red`."""
    parts = []
    if other.antialias != usual.antialias:
        parts.append("resize without antialiasing" if not other.antialias else "resize with antialiasing")
    if other.filter != usual.filter:
        parts.append(f"{other.filter} in place of {usual.filter} interpolation")
    if other.size != usual.size:
        no_margin = " (no margin is cropped)" if other.size == other.crop else ""
        parts.append(f"resize to {other.size} px in place of {usual.size} px{no_margin}")
    words = {
        SQUASH: "squash to a square in place of a crop",
        SQUASH_AND_CROP: "squash to a square before the crop",
        LETTERBOX: "padding to a square in place of a crop",
        AS_STORED: "EXIF orientation ignored",
        NO_ALPHA: "transparency dropped",
        OVER_BLACK: "transparency over black",
        TOP_LEFT: "a crop from the top left corner",
    }
    parts += [words[word] for word in (other.shape, other.decode, other.anchor) if word in words]
    if other.offset != usual.offset:
        parts.append(f"a crop moved by {other.offset[0]} px to the right and {other.offset[1]} px down")
    if other.bgr != usual.bgr:
        parts.append("blue before red")
    return " and ".join(parts)


class RecipeBook:
    """Makes pixels of the same files by any recipe; files are decoded once a way, and resized once in a row."""

    def __init__(self, files: Sequence[bytes]) -> None:
        self._files = files
        self._decoded: dict[str, list[Image.Image]] = {}
        self._resized: tuple[Recipe, list[Images]] | None = None

    def images(self, recipe: Recipe) -> Images:
        """uint8 `(N, crop, crop, 3)`.

        Raises:
            ImageError: a file cannot be decoded.
        """
        key = dataclasses.replace(recipe, anchor=CENTRE, offset=(0, 0), bgr=False)
        if self._resized is None or self._resized[0] != key:
            self._resized = (key, [_resized(image, recipe) for image in self._decode(recipe.decode)])
        pixels = np.stack([_cropped(image, recipe) for image in self._resized[1]])
        return pixels[..., ::-1] if recipe.bgr else pixels

    def _decode(self, way: str) -> list[Image.Image]:
        if way not in self._decoded:
            self._decoded[way] = [_decoded(data, way) for data in self._files]
        return self._decoded[way]


def _decoded(data: bytes, way: str) -> Image.Image:
    usual = decode_image(data)
    if way == UPRIGHT:
        return usual
    image = Image.open(io.BytesIO(data))
    is_turned = image.getexif().get(ExifTags.Base.Orientation, 1) != 1
    is_clear = "A" in image.getbands() or "transparency" in image.info
    if way == AS_STORED:
        return image.convert("RGB") if is_turned else usual
    if not is_clear:
        return usual
    if way == NO_ALPHA:
        return image.convert("RGBA").convert("RGB")
    page = Image.new("RGBA", image.size, (0, 0, 0, 255))
    page.alpha_composite(image.convert("RGBA"))
    return page.convert("RGB")


def _resized(image: Image.Image, recipe: Recipe) -> Images:
    width, height = _target_size(image.size, recipe)
    if recipe.antialias:
        same = image.size == (width, height)
        pixels = np.asarray(image if same else image.resize((width, height), _FILTERS[recipe.filter]))
    else:
        rows = _sampled(np.asarray(image), height, 0, recipe.filter)
        pixels = np.clip(np.rint(_sampled(rows, width, 1, recipe.filter)), 0, 255).astype(np.uint8)
    return _padded(pixels, recipe.crop) if recipe.shape == LETTERBOX else pixels


def _target_size(size: tuple[int, int], recipe: Recipe) -> tuple[int, int]:
    (width, height), short, long = size, min(size), max(size)
    if recipe.shape == SQUASH:
        return recipe.crop, recipe.crop
    if recipe.shape == SQUASH_AND_CROP:
        return recipe.size, recipe.size
    if recipe.shape == LETTERBOX:
        scale = recipe.crop / long
        return max(1, round(width * scale)), max(1, round(height * scale))
    long_size = int(recipe.size * long / short)
    return (recipe.size, long_size) if width <= height else (long_size, recipe.size)


def _padded(pixels: Images, side: int) -> Images:
    height, width = pixels.shape[:2]
    top, left = (side - height) // 2, (side - width) // 2
    return np.pad(pixels, ((top, side - height - top), (left, side - width - left), (0, 0)))


def _cropped(pixels: Images, recipe: Recipe) -> Images:
    """A crop that would leave the image stops at its edge."""
    height, width = pixels.shape[:2]
    if recipe.anchor == TOP_LEFT:
        left, top = recipe.offset
    else:
        left, top = round((width - recipe.crop) / 2.0) + recipe.offset[0], round((height - recipe.crop) / 2.0)
        top += recipe.offset[1]
    left, top = min(max(left, 0), width - recipe.crop), min(max(top, 0), height - recipe.crop)
    return pixels[top : top + recipe.crop, left : left + recipe.crop]


def _sampled(pixels: npt.NDArray[np.generic], size: int, axis: int, name: str) -> npt.NDArray[np.float32]:
    """One axis sampled at `size` points, half a pixel from the edges, from the neighbours of each point only."""
    old = pixels.shape[axis]
    if name == "nearest":
        return np.asarray(pixels.take(np.arange(size) * old // size, axis), np.float32)
    points = (np.arange(size) + 0.5) * old / size - 0.5
    if name == "bilinear":
        points = np.maximum(points, 0.0)
    base = np.floor(points).astype(np.int64)
    weights = _linear(points - base) if name == "bilinear" else _cubic(points - base)
    result: npt.NDArray[np.float32] = np.zeros((), np.float32)
    for shift, weight in weights.items():
        shaped = weight.astype(np.float32).reshape([-1 if each == axis else 1 for each in range(pixels.ndim)])
        result = result + pixels.take(np.clip(base + shift, 0, old - 1), axis).astype(np.float32) * shaped
    return result


def _linear(fraction: npt.NDArray[np.float64]) -> dict[int, npt.NDArray[np.float64]]:
    return {0: 1.0 - fraction, 1: fraction}


def _cubic(fraction: npt.NDArray[np.float64]) -> dict[int, npt.NDArray[np.float64]]:
    """Keys' kernel: its two pieces, for distances up to 1 and up to 2."""

    def near(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        return ((_CUBIC + 2) * x - (_CUBIC + 3)) * x * x + 1

    def far(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        return ((_CUBIC * x - 5 * _CUBIC) * x + 8 * _CUBIC) * x - 4 * _CUBIC

    return {-1: far(1 + fraction), 0: near(fraction), 1: near(1 - fraction), 2: far(2 - fraction)}

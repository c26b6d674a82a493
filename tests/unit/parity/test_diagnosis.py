"""Each explanation on a planted case, and silence where nothing is planted or nothing explains it."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import ExifTags, Image

from edgetune.core.preprocess import PreprocessSpec, decode_image, preprocess_image
from edgetune.core.tensors import softmax
from edgetune.parity.diagnosis import explain_inputs, explain_outputs, explain_preprocessing

Images = npt.NDArray[np.uint8]
Logits = npt.NDArray[np.float32]

SPEC = PreprocessSpec(40, 32, "bilinear", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
LOGITS: Logits = (np.random.default_rng(0).normal(size=(40, 5)) * 3 + [0, 1, -2, 0, 2]).astype(np.float32)
_WEIGHTS = np.random.default_rng(1).normal(size=(3, 3, 3, 16)) / 5
_HEAD = np.random.default_rng(2).normal(size=(16 * 64, 6)) / 10


def model(images: Images) -> Logits:
    """A convolution of random weights, a ReLU, means of 4x4, and a linear layer: every pixel counts where it is."""
    pixels = images.astype(np.float64) / 127.5 - 1.0
    padded = np.pad(pixels, ((0, 0), (1, 1), (1, 1), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2))
    features = np.maximum(np.einsum("nhwcyx,yxco->nhwo", windows, _WEIGHTS), 0.0)
    count, height, width, channels = features.shape
    means = features.reshape(count, height // 4, 4, width // 4, 4, channels).mean(axis=(2, 4))
    logits: Logits = (means.reshape(count, -1) @ _HEAD).astype(np.float32)
    return logits


def picture(seed: int, size: tuple[int, int] = (90, 70)) -> Image.Image:
    """A landscape of soft shapes with fine grain: what antialiasing, crops and colours all change."""
    random = np.random.default_rng(seed)
    coarse = Image.fromarray(random.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)
    grain = random.integers(-40, 41, (size[1], size[0], 3))
    return Image.fromarray(np.clip(np.asarray(coarse) + grain, 0, 255).astype(np.uint8))


def encoded(image: Image.Image, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "PNG", **options)
    return stream.getvalue()


FILES = [encoded(picture(seed)) for seed in range(4)]
IMAGES: Images = np.stack([preprocess_image(data, SPEC) for data in FILES])


def _scaled(step: float) -> Logits:
    return (np.round(LOGITS / step) * step).astype(np.float32)


@pytest.mark.parametrize(
    ("candidate", "words"),
    [
        (LOGITS[:, [2, 1, 0, 4, 3]], "the outputs are permuted: 0 is the candidate's 2, 2 is the candidate's 0"),
        (softmax(LOGITS), "a softmax is applied already"),
        (1 / (1 + np.exp(-LOGITS)), "a sigmoid is applied already"),
        (LOGITS - np.log(np.exp(LOGITS).sum(axis=1, keepdims=True)), "a log-softmax is applied already"),
        (-LOGITS, "the sign is turned"),
        (LOGITS * 0.5, "all logits are multiplied by 0.5"),
        (LOGITS + 100, "all logits are off by 100"),
        (LOGITS * 2 - 40, "all logits are multiplied by 2 and off by -40"),
        (LOGITS + np.array([5, -9, 0, 3, 30]), "each output is off by a constant of its own"),
        (np.roll(LOGITS, 1, axis=0), "the rows are one late"),
        (np.roll(LOGITS, -1, axis=0), "the rows are one early"),
        (LOGITS[::-1], "the rows are in another order"),
        (np.tile(LOGITS[:1], (40, 1)), "all rows are the same: the input is ignored"),
        (np.where(np.arange(5) == 3, 7.0, LOGITS), "the outputs 3 are constant"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_was_done_to_the_outputs_is_told(candidate: npt.NDArray[Any], words: str) -> None:
    assert explain_outputs(LOGITS, candidate.astype(np.float32)).startswith(words)


def test_an_explanation_has_its_figures() -> None:
    """Rounding to steps of 0.1 leaves noise of 0.1^2 / 12, in dB of the spread over the columns."""
    turned = -_scaled(0.1)
    spread = np.mean((turned - turned.mean(axis=0)) ** 2, dtype=np.float64)
    before = 10 * np.log10(spread / np.mean((turned.astype(np.float64) - LOGITS) ** 2))
    after = 10 * np.log10(spread / np.mean((turned.astype(np.float64) + LOGITS) ** 2))
    assert after == pytest.approx(10 * np.log10(spread / (0.01 / 12)), abs=0.7)
    expected = f"the sign is turned would explain it: {before:.1f} dB -> {after:.1f} dB"
    assert explain_outputs(LOGITS, turned) == expected


@pytest.mark.parametrize(
    "candidate",
    [
        LOGITS,
        LOGITS * (1 + 1e-6),
        _scaled(0.5),
        LOGITS + np.random.default_rng(3).normal(size=LOGITS.shape),
        np.random.default_rng(4).normal(size=LOGITS.shape) * 3,
        -LOGITS + np.random.default_rng(5).normal(size=LOGITS.shape) * 0.5,
        LOGITS[:, :4],
        np.full_like(LOGITS, np.nan),
    ],
    ids=["same", "rounding", "coarse", "noisy", "random", "turned and noisy", "other shape", "NaN"],
)
def test_nothing_is_guessed_of_outputs(candidate: npt.NDArray[Any]) -> None:
    assert explain_outputs(LOGITS, candidate.astype(np.float32)) == ""


def test_few_values_explain_nothing() -> None:
    """Rows of 5 logits say 4 things each, of 2 logits one."""
    assert explain_outputs(LOGITS[:1], -LOGITS[:1]) == ""
    assert explain_outputs(LOGITS[:7, :2], -LOGITS[:7, :2]) == ""
    assert explain_outputs(LOGITS[:8, :2], -LOGITS[:8, :2]) != ""


def _read_as_planes(images: Images) -> Images:
    pixels: Images = images.reshape(len(images), 3, 32, 32).transpose(0, 2, 3, 1)
    return pixels


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda images: images[..., ::-1], "red and blue are swapped"),
        (lambda images: 255 - images, "the image is inverted"),
        (lambda images: images[:, :, ::-1], "the image is mirrored left to right"),
        (lambda images: images[:, ::-1], "the image is upside down"),
        (lambda images: images[:, ::-1, ::-1], "the image is turned by 180 degrees"),
        (lambda images: images.swapaxes(1, 2), "rows and columns are swapped"),
        (lambda images: np.rot90(images, -1, (1, 2)), "the image is turned by 90 degrees"),
        (lambda images: np.roll(images, 1, 2), "the image is moved by 1 px right"),
        (_read_as_planes, "pixels are read as planes"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_the_candidate_does_to_pixels_is_told(change: Callable[[Images], Images], words: str) -> None:
    found = explain_inputs(lambda images: model(change(images)), IMAGES, model(IMAGES))
    assert found.startswith(words)
    assert found.endswith("dB -> no difference")


def test_nothing_is_guessed_of_pixels() -> None:
    reference = model(IMAGES)
    noise = np.random.default_rng(6).normal(size=reference.shape).astype(np.float32)
    assert explain_inputs(model, IMAGES, reference) == ""
    assert explain_inputs(lambda images: model(images) + 0.02 * noise, IMAGES, reference) == ""
    assert explain_inputs(lambda images: model(images // 2), IMAGES, reference) == ""
    assert explain_inputs(lambda images: noise, IMAGES, reference) == ""
    assert explain_inputs(lambda images: model(images[..., ::-1]), IMAGES[:1], reference[:1]) == ""


def _cropped(image: Image.Image, right: int = 0, down: int = 0) -> Images:
    left, top = round((image.width - 32) / 2) + right, round((image.height - 32) / 2) + down
    return np.asarray(image.crop((left, top, left + 32, top + 32)))


def _short(image: Image.Image, side: int, filter_: Image.Resampling = Image.Resampling.BILINEAR) -> Image.Image:
    return image.resize((int(side * image.width / image.height), side), filter_)


def _bilinear_points(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Sampled at single points: Pillow's affine transform, which averages nothing; in float, since it cuts off."""
    affine = (image.width / size[0], 0, 0, 0, image.height / size[1], 0)
    planes = [
        band.convert("F").transform(size, Image.Transform.AFFINE, affine, Image.Resampling.BILINEAR)
        for band in image.split()
    ]
    return Image.fromarray(np.rint(np.stack([np.asarray(plane) for plane in planes], axis=2)).astype(np.uint8))


CASES: dict[str, Callable[[Image.Image], Images]] = {
    "resize without antialiasing": lambda image: _cropped(_bilinear_points(image, (51, 40))),
    "bicubic in place of bilinear interpolation": lambda image: _cropped(_short(image, 40, Image.Resampling.BICUBIC)),
    "a crop moved by 3 px to the right and -2 px down": lambda image: _cropped(_short(image, 40), 3, -2),
    "a crop moved by 1 px to the right and 1 px down": lambda image: _cropped(_short(image, 40), 1, 1),
    "squash to a square in place of a crop": lambda image: np.asarray(
        image.resize((32, 32), Image.Resampling.BILINEAR)
    ),
    "squash to a square before the crop": lambda image: _cropped(image.resize((40, 40), Image.Resampling.BILINEAR)),
    "resize to 32 px in place of 40 px (no margin is cropped)": lambda image: _cropped(_short(image, 32)),
    "resize to 37 px in place of 40 px": lambda image: _cropped(_short(image, 37)),
    "a crop from the top left corner": lambda image: np.asarray(_short(image, 40).crop((0, 0, 32, 32))),
    "blue before red": lambda image: _cropped(_short(image, 40))[..., ::-1],
    "bicubic in place of bilinear interpolation and blue before red": lambda image: _cropped(
        _short(image, 40, Image.Resampling.BICUBIC)
    )[..., ::-1],
}


@pytest.mark.parametrize("words", CASES)
def test_what_another_preprocessing_does_is_told(words: str) -> None:
    theirs = np.stack([CASES[words](decode_image(data)) for data in FILES])
    assert not np.array_equal(theirs, IMAGES)
    found = explain_preprocessing(FILES, SPEC, model, model(theirs))
    assert found.startswith(f"{words} would explain it: ")


def test_an_exif_orientation_that_is_ignored_is_told() -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    files = [encoded(picture(0)), *(encoded(picture(seed), exif=exif) for seed in (1, 2, 3))]
    theirs = np.stack([_cropped(_short(picture(seed), 40)) for seed in range(4)])
    found = explain_preprocessing(files, SPEC, model, model(theirs))
    assert found.startswith("EXIF orientation ignored would explain it: ")
    assert found.endswith("no difference")


@pytest.mark.parametrize(("backdrop", "words"), [(None, "transparency dropped"), (0, "transparency over black")])
def test_other_ways_with_transparency_are_told(backdrop: int | None, words: str) -> None:
    files, theirs = [], []
    for seed in range(4):
        image = picture(seed)
        mask = Image.fromarray(np.tile(np.linspace(0, 255, 90).astype(np.uint8), (70, 1)))
        files.append(encoded(Image.merge("RGBA", (*image.split(), mask))))
        shown = image if backdrop is None else Image.composite(image, Image.new("RGB", image.size), mask)
        theirs.append(_cropped(_short(shown, 40)))
    found = explain_preprocessing(files, SPEC, model, model(np.stack(theirs)))
    assert found.startswith(f"{words} would explain it: ")


def test_nothing_is_guessed_of_preprocessing() -> None:
    healthy = model(IMAGES)
    random = np.random.default_rng(7)
    noise = random.normal(size=healthy.shape).astype(np.float32)
    grain = np.clip(IMAGES + random.integers(-30, 31, IMAGES.shape), 0, 255).astype(np.uint8)
    for candidate in (healthy, healthy + 0.01 * noise, noise, model(grain), model(255 - IMAGES), healthy * np.nan):
        assert explain_preprocessing(FILES, SPEC, model, candidate) == ""
    assert explain_preprocessing(FILES[:1], SPEC, model, model(IMAGES[..., ::-1])[:1]) == ""

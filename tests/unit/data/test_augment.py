from __future__ import annotations

import hashlib
import io

import numpy as np
import numpy.typing as npt
import pytest
from PIL import ExifTags, Image

from edgetune.core.errors import ImageError
from edgetune.core.preprocess import PreprocessSpec, preprocess_image
from edgetune.data.augment import AUGMENT_RECIPE, augmented, preprocess_versions, view_digest

SPEC = PreprocessSpec(36, 32, "bicubic", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
NEAREST = PreprocessSpec(36, 32, "nearest", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
SHA256 = hashlib.sha256(b"an image").hexdigest()

Pixels = npt.NDArray[np.uint8]


def _image(width: int, height: int) -> Image.Image:
    noise = np.random.default_rng(width * height).integers(0, 256, (height // 4 + 1, width // 4 + 1, 3), np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


def _digest(*shares: float) -> bytes:
    """The digest whose words are these shares of 2^32: area, aspect, left, top, flip, and three colour factors."""
    return np.array([min(share * 2**32, 2**32 - 1) for share in shares], "<u4").tobytes()


PLAIN = (0.5, 0.5, 0.5)  # colour factors of 1


def _by_torchvision(image: Image.Image, box: tuple[int, int, int, int], flip: bool, factors: list[float]) -> Pixels:
    """`box` is left, top, width and height."""
    functional = pytest.importorskip("torchvision.transforms.functional")
    left, top, width, height = box
    bicubic = functional.InterpolationMode.BICUBIC
    view = functional.resized_crop(image, top, left, height, width, [32, 32], bicubic)
    view = functional.hflip(view) if flip else view
    view = functional.adjust_brightness(view, factors[0])
    view = functional.adjust_contrast(view, factors[1])
    return np.array(functional.adjust_saturation(view, factors[2]))


@pytest.mark.parametrize(
    ("size", "shares", "box"),
    [
        ((60, 60), (1, 0.5, 0, 0), (0, 0, 60, 60)),  # all of it
        ((60, 60), (0, 0.5, 0, 0), (0, 0, 42, 42)),  # half the area: 60 / sqrt 2 = 42.4
        ((60, 60), (0, 0.5, 1, 1), (18, 18, 42, 42)),  # the other corner
        ((60, 60), (0, 1, 0.5, 0.5), (6, 12, 49, 37)),  # 4:3: 42.4 times and over sqrt 4/3
        ((60, 60), (0, 0, 0, 0), (0, 0, 37, 49)),  # 3:4
        ((60, 30), (1, 0.5, 1, 0), (20, 0, 40, 30)),  # twice as wide as high: all of the height, 4:3 of it
        ((30, 60), (1, 0.5, 0, 1), (0, 20, 30, 40)),
        ((60, 60), (1, 1, 0, 0), (0, 0, 60, 52)),  # 69 wide would not fit; the height is 60 / sqrt 4/3
    ],
)
def test_a_view_is_what_torchvision_makes_of_the_same_box(
    size: tuple[int, int], shares: tuple[float, ...], box: tuple[int, int, int, int]
) -> None:
    image = _image(*size)
    for flip, colours, factors in [
        (0.4, (0.0, 0.5, 1.0), [0.8, 1.0, 1.2]),
        (0.6, (1.0, 0.0, 0.25), [1.2, 0.8, 0.9]),
    ]:
        view = augmented(image, SPEC, _digest(*shares, flip, *colours))
        assert view.dtype == np.uint8
        expected = _by_torchvision(image, box, flip < 0.5, factors)
        np.testing.assert_array_equal(view, expected)


def test_a_photo_is_shrunk_by_a_whole_factor_first() -> None:
    """Two crops of 32 px go into 140 px twice: every 2x2 pixels become their mean, and the rest follows from them."""
    photo = _image(200, 140)
    sums = np.asarray(photo).astype(int).reshape(70, 2, 100, 2, 3).sum(axis=(1, 3))
    small = Image.fromarray(((sums + 2) // 4).astype(np.uint8))
    digest = view_digest(SHA256, 0, 1)
    np.testing.assert_array_equal(augmented(photo, SPEC, digest), augmented(small, SPEC, digest))
    assert (augmented(photo, SPEC, digest) != augmented(photo.resize((100, 70)), SPEC, digest)).any()


def test_the_specs_interpolation_is_used() -> None:
    stripes = Image.fromarray(np.repeat(np.array([[[0, 0, 0], [255, 255, 255]]], np.uint8), 40, 0).repeat(20, 1))
    digest = _digest(1, 0.5, 0, 0, 1, *PLAIN)
    assert set(np.unique(augmented(stripes, NEAREST, digest))) == {0, 255}
    assert len(np.unique(augmented(stripes, SPEC, digest))) > 2


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (500, 1), (3, 2)])
def test_tiny_and_long_images_have_views(size: tuple[int, int]) -> None:
    view = augmented(Image.new("RGB", size, (9, 8, 7)), SPEC, _digest(0, 1, 1, 1, 0, *PLAIN))
    np.testing.assert_array_equal(view, np.full((32, 32, 3), (9, 8, 7)))


def test_a_view_is_decided_by_content_seed_and_number() -> None:
    others = [(SHA256[::-1], 0, 1), (SHA256, 1, 1), (SHA256, 0, 2)]
    digests = {view_digest(SHA256, 0, 1), *(view_digest(*other) for other in others)}
    assert len(digests) == 4
    assert {len(digest) for digest in digests} == {32}
    text = f"{AUGMENT_RECIPE}|{SHA256}|0|1"
    assert view_digest(SHA256, 0, 1) == hashlib.sha256(text.encode()).digest()


def test_the_draws_are_spread_evenly() -> None:
    """The mean over 400 views of a bright spot's place: half of the views are mirrored, none leans to a side."""
    ramp = Image.fromarray(np.tile(np.arange(0, 240, 4, dtype=np.uint8)[np.newaxis, :, np.newaxis], (60, 1, 3)))
    views = np.stack([augmented(ramp, NEAREST, view_digest(SHA256, 0, number)) for number in range(1, 401)]).astype(int)
    rising = views[:, 16, -1, 0] > views[:, 16, 0, 0]
    assert 0.42 < rising.mean() < 0.58  # a standard error is 0.025
    assert 112 < views[:, 16, 15:17, 0].mean() < 124  # in the middle of 0 to 236 is 118


@pytest.mark.parametrize("orientation", range(1, 9))
def test_versions_of_a_turned_photo_are_upright(orientation: int) -> None:
    photo = _image(50, 40)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    stored, upright = io.BytesIO(), photo.transpose(_TURNS[orientation]) if orientation in _TURNS else photo
    photo.save(stored, "PNG", exif=exif)
    digest = view_digest(SHA256, 0, 1)
    view, plain = preprocess_versions(stored.getvalue(), SPEC, [digest, None])
    np.testing.assert_array_equal(plain, preprocess_image(stored.getvalue(), SPEC))
    np.testing.assert_array_equal(view, augmented(upright, SPEC, digest))


_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def test_a_file_that_is_no_image_is_an_image_error() -> None:
    with pytest.raises(ImageError, match=r"x\.jpg is not an image"):
        preprocess_versions(b"no image", SPEC, [None], name="x.jpg")

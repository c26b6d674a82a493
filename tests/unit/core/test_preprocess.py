from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import PIL
import pytest
from PIL import Image

from edgetune.core.errors import ConfigError, DataError, ImageError
from edgetune.core.preprocess import (
    DEFAULT_MAX_PIXELS,
    IMAGE_FORMATS,
    PreprocessSpec,
    decode_image,
    decoder_version,
    preprocess_image,
)

Pixels = npt.NDArray[np.uint8]

ORIENTATION = 0x0112
HALVES = (0.5, 0.5, 0.5)

# Six colours of an upright picture of 2 rows and 3 columns.
COLOURS = {
    "A": (250, 10, 20),
    "B": (30, 240, 40),
    "C": (50, 60, 230),
    "D": (220, 210, 70),
    "E": (80, 200, 190),
    "F": (180, 90, 170),
}
UPRIGHT = ("ABC", "DEF")


def _spec(resize: int = 32, crop: int = 24, interpolation: str = "bilinear") -> PreprocessSpec:
    return PreprocessSpec(resize, crop, interpolation, HALVES, HALVES)


def _file(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def _noise(width: int, height: int, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def _decoded(data: bytes) -> Pixels:
    image = decode_image(data)
    assert image.mode == "RGB"
    return np.asarray(image)


def _colours(rows: tuple[str, ...]) -> Pixels:
    return np.array([[COLOURS[letter] for letter in row] for row in rows], dtype=np.uint8)


def _png_header(width: int, height: int) -> bytes:
    """A PNG that announces a size and then holds hardly any pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


def _exif(*entries: tuple[int, int, int, bytes], tail: bytes = b"") -> bytes:
    """A big-endian EXIF block: (tag, type, count, four bytes of value or offset) in each entry, then `tail`."""
    body = b"".join(struct.pack(">HHI", tag, kind, count) + value for tag, kind, count, value in entries)
    directory = struct.pack(">H", len(entries)) + body + struct.pack(">I", 0)
    return b"Exif\0\0MM\0*" + struct.pack(">I", 8) + directory + tail


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("resize", "crop"), [(32, 24), (33, 32), (32, 27), (17, 17)])
@pytest.mark.parametrize(
    ("width", "height"),
    [
        (64, 48),
        (48, 64),
        (51, 37),
        (37, 51),
        (101, 33),
        (33, 101),
        (32, 32),
        (33, 64),
        (17, 17),
        (1, 1),
        (3, 7),
        (7, 3),
    ],
    ids=str,
)
def test_pixels_are_those_of_torchvision(width: int, height: int, resize: int, crop: int, interpolation: str) -> None:
    transforms = pytest.importorskip("torchvision.transforms")
    image = _noise(width, height)
    mode = transforms.InterpolationMode(interpolation)
    reference = transforms.Compose([transforms.Resize(resize, mode), transforms.CenterCrop(crop)])
    pixels = preprocess_image(_file(image), _spec(resize, crop, interpolation))
    np.testing.assert_array_equal(pixels, np.asarray(reference(image)))


def test_the_imagenet_sizes_are_those_of_torchvision_too() -> None:
    transforms = pytest.importorskip("torchvision.transforms")
    image = _noise(411, 305)
    reference = transforms.Compose([transforms.Resize(256), transforms.CenterCrop(224)])
    np.testing.assert_array_equal(preprocess_image(_file(image), _spec(256, 224)), np.asarray(reference(image)))


def test_an_image_of_the_right_size_keeps_its_pixels() -> None:
    image = _noise(24, 24)
    np.testing.assert_array_equal(preprocess_image(_file(image), _spec(24, 24)), np.asarray(image))


def test_the_crop_is_cut_from_the_middle() -> None:
    image = _noise(30, 20)
    np.testing.assert_array_equal(preprocess_image(_file(image), _spec(20, 10)), np.asarray(image)[5:15, 10:20])


def test_an_odd_rest_is_halved_to_the_even_neighbour() -> None:
    """7 - 4 leaves 3: round(1.5) is 2; 5 - 4 leaves 1: round(0.5) is 0."""
    image = _noise(7, 5)
    np.testing.assert_array_equal(preprocess_image(_file(image), _spec(5, 4)), np.asarray(image)[0:4, 2:6])


def test_nearest_repeats_pixels() -> None:
    image = _noise(2, 2)
    expected = np.asarray(image).repeat(2, axis=0).repeat(2, axis=1)
    np.testing.assert_array_equal(preprocess_image(_file(image), _spec(4, 4, "nearest")), expected)


def test_the_result_is_one_block_of_bytes() -> None:
    pixels = preprocess_image(_file(_noise(60, 40)), _spec())
    assert pixels.shape == (24, 24, 3)
    assert pixels.dtype == np.uint8
    assert pixels.flags.c_contiguous
    assert pixels.flags.writeable


# How a camera stores the upright picture, by the meaning that the EXIF standard gives each orientation:
# 6, say, means "row 0 is the right-hand side, column 0 is the top".
STORED = {
    1: ("ABC", "DEF"),
    2: ("CBA", "FED"),
    3: ("FED", "CBA"),
    4: ("DEF", "ABC"),
    5: ("AD", "BE", "CF"),
    6: ("CF", "BE", "AD"),
    7: ("FC", "EB", "DA"),
    8: ("DA", "EB", "FC"),
}


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientations_come_out_upright(orientation: int, kind: str) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    options = {"lossless": True} if kind == "WEBP" else {}
    data = _file(Image.fromarray(_colours(STORED[orientation])), kind, exif=exif, **options)
    np.testing.assert_array_equal(_decoded(data), _colours(UPRIGHT))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_jpegs_come_out_upright(orientation: int) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    stored = _colours(STORED[orientation]).repeat(16, axis=0).repeat(16, axis=1)
    data = _file(Image.fromarray(stored), "JPEG", exif=exif, quality=95, subsampling=0)
    middles = _decoded(data)[8::16, 8::16].astype(np.int64)
    np.testing.assert_allclose(middles, _colours(UPRIGHT), rtol=0, atol=4)


@pytest.mark.parametrize("orientation", [0, 9, 255], ids=["zero", "nine", "255"])
def test_an_unknown_orientation_changes_nothing(orientation: int) -> None:
    data = _file(
        Image.fromarray(_colours(UPRIGHT)), exif=_exif((ORIENTATION, 3, 1, struct.pack(">HH", orientation, 0)))
    )
    np.testing.assert_array_equal(_decoded(data), _colours(UPRIGHT))


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize(
    "exif",
    [
        b"Exif\0\0",
        b"Exif\0\0garbage, and not a TIFF header",
        b"Exif\0\0MM\0*\xff\xff\xff\xff",
        _exif((ORIENTATION, 3, 1, b"\0\6\0\0"))[:-10],
        _exif((ORIENTATION, 2, 1, b"6\0\0\0")),
        _exif((ORIENTATION, 5, 1, b"\0\0\0\x1a"), tail=bytes(8)),
    ],
    ids=["nothing", "garbage", "offset far out", "cut off", "as text", "zero over zero"],
)
@pytest.mark.filterwarnings("ignore:Corrupt EXIF data:UserWarning", "ignore:Truncated File Read:UserWarning")
def test_an_image_with_damaged_exif_is_still_decoded(exif: bytes, kind: str) -> None:
    assert _decoded(_file(_noise(16, 8), kind, exif=exif)).shape in {(8, 16, 3), (16, 8, 3)}


@pytest.mark.parametrize(
    "neighbour",
    [
        ((0x010F, 12, 1, struct.pack(">I", 38)), struct.pack(">d", 1.5)),
        ((0x010F, 5, 1, struct.pack(">I", 38)), struct.pack(">II", 3, 2)),
        ((0x0107, 5, 1, struct.pack(">I", 38)), struct.pack(">II", 3, 2)),
    ],
    ids=["maker as a number", "maker as a fraction", "threshold as a fraction"],
)
def test_a_readable_orientation_counts_whatever_its_neighbours_are(
    neighbour: tuple[tuple[int, int, int, bytes], bytes],
) -> None:
    entry, value = neighbour
    exif = _exif(entry, (ORIENTATION, 3, 1, struct.pack(">HH", 6, 0)), tail=value)
    data = _file(Image.fromarray(_colours(STORED[6])), exif=exif)
    np.testing.assert_array_equal(_decoded(data), _colours(UPRIGHT))


def _row(mode: str, *pixels: Any) -> Image.Image:
    image = Image.new(mode, (len(pixels), 1))
    for index, pixel in enumerate(pixels):
        image.putpixel((index, 0), pixel)
    return image


def _palette_row(mode: str = "P") -> Image.Image:
    """Palette indices 0, 1, 2 stand for red, green and blue."""
    image = Image.new("P", (3, 1))
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    for index in range(3):
        image.putpixel((index, 0), index)
    if mode == "P":
        return image
    with_alpha = image.convert("PA")
    with_alpha.putalpha(_row("L", 255, 0, 51))
    return with_alpha


def _tiff_from_array(values: list[Any], dtype: str) -> bytes:
    return _file(Image.fromarray(np.array([values], dtype=dtype)), "TIFF")


def _grey(*values: int) -> list[tuple[int, int, int]]:
    return [(value, value, value) for value in values]


# Transparency goes over white: colour * alpha / 255 + 255 * (255 - alpha) / 255, so a quarter (alpha 51 is 0.2) of
# blue is (204, 204, 255), and alpha 51 of grey 100 is 20 + 204 = 224.
MODES: dict[str, tuple[str, Callable[[], bytes], list[tuple[int, int, int]]]] = {
    "1": ("1", lambda: _file(_row("1", 0, 255)), _grey(0, 255)),
    "L": ("L", lambda: _file(_row("L", 0, 7, 255)), _grey(0, 7, 255)),
    "L with a transparent grey": ("L", lambda: _file(_row("L", 7, 9), transparency=7), _grey(255, 9)),
    "LA": ("LA", lambda: _file(_row("LA", (100, 255), (100, 0), (100, 51))), _grey(100, 255, 224)),
    "P": ("P", lambda: _file(_palette_row()), [(255, 0, 0), (0, 255, 0), (0, 0, 255)]),
    "P with a transparent index": (
        "P",
        lambda: _file(_palette_row(), transparency=1),
        [(255, 0, 0), (255, 255, 255), (0, 0, 255)],
    ),
    "P with an alpha per index": (
        "P",
        lambda: _file(_palette_row(), transparency=bytes([255, 0, 51])),
        [(255, 0, 0), (255, 255, 255), (204, 204, 255)],
    ),
    "PA": ("PA", lambda: _file(_palette_row("PA"), "TIFF"), [(255, 0, 0), (255, 255, 255), (204, 204, 255)]),
    "RGB with a transparent colour": (
        "RGB",
        lambda: _file(_row("RGB", (1, 2, 3), (4, 5, 6)), transparency=(1, 2, 3)),
        [(255, 255, 255), (4, 5, 6)],
    ),
    "RGBA": (
        "RGBA",
        lambda: _file(_row("RGBA", (10, 20, 30, 255), (10, 20, 30, 0), (0, 0, 255, 51), (255, 0, 0, 128))),
        [(10, 20, 30), (255, 255, 255), (204, 204, 255), (255, 127, 127)],
    ),
    "CMYK": (
        "CMYK",
        lambda: _file(_row("CMYK", (0, 0, 0, 0), (0, 0, 0, 255), (0, 255, 255, 0), (255, 0, 255, 0)), "TIFF"),
        [(255, 255, 255), (0, 0, 0), (255, 0, 0), (0, 255, 0)],
    ),
    "YCbCr": (
        "YCbCr",
        lambda: _file(_row("YCbCr", (0, 128, 128), (99, 128, 128), (255, 128, 128)), "TIFF"),
        _grey(0, 99, 255),
    ),
    "I;16": ("I;16", lambda: _file(_row("I;16", 0, 257, 32896, 65534, 65535)), _grey(0, 1, 128, 254, 255)),
    "I;16 big-endian": ("I;16B", lambda: _tiff_from_array([257, 65535], ">u2"), _grey(1, 255)),
    "I": ("I", lambda: _tiff_from_array([-5, 0, 300, 32896, 70_000], "<i4"), _grey(0, 0, 1, 128, 255)),
    "F": (
        "F",
        lambda: _tiff_from_array([np.nan, -5.0, 300.0, 126.4, 126.6, np.inf, -np.inf], "<f4"),
        _grey(0, 0, 255, 126, 127, 255, 0),
    ),
}


@pytest.mark.parametrize("name", MODES)
def test_every_mode_becomes_the_rgb_worked_out_by_hand(name: str) -> None:
    mode, make, expected = MODES[name]
    data = make()
    if name == "YCbCr" and int(PIL.__version__.partition(".")[0]) < 13:
        pytest.skip("Pillow 12, the newest for Python 3.10, cannot read the YCbCr TIFF that it writes")
    with Image.open(io.BytesIO(data)) as image:
        assert image.mode == mode
    np.testing.assert_array_equal(_decoded(data)[0], np.array(expected, dtype=np.uint8))


def test_a_jpeg_in_ycbcr_has_the_colours_of_the_jfif_formula() -> None:
    """R = Y + 1.402 (Cr - 128), G = Y - 0.344 (Cb - 128) - 0.714 (Cr - 128), B = Y + 1.772 (Cb - 128).

    Y 120, Cb 100, Cr 160 give R = 120 + 44.9, G = 120 + 9.6 - 22.9, B = 120 - 49.6.
    """
    data = _file(Image.new("YCbCr", (16, 16), (120, 100, 160)), "JPEG", quality=100)
    np.testing.assert_allclose(_decoded(data)[8, 8], [164.9, 106.8, 70.4], rtol=0, atol=2.5)


def test_a_jpeg_in_cmyk_has_the_right_colours() -> None:
    data = _file(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG", quality=100)
    np.testing.assert_allclose(_decoded(data)[8, 8], [255, 0, 0], rtol=0, atol=3)


@pytest.mark.parametrize("kind", IMAGE_FORMATS)
def test_every_supported_format_is_read(kind: str) -> None:
    assert _decoded(_file(_noise(12, 8), kind)).shape == (8, 12, 3)


def test_only_the_first_frame_is_taken() -> None:
    first, second = Image.new("RGB", (8, 8), (1, 2, 3)), Image.new("RGB", (8, 8), (9, 9, 9))
    data = _file(first, "TIFF", save_all=True, append_images=[second])
    np.testing.assert_array_equal(_decoded(data)[0, 0], [1, 2, 3])


@pytest.mark.parametrize(
    ("width", "height"), [(8_000, 7_000), (12_000, 12_000), (60_000, 60_000)], ids=["56 MP", "144 MP", "3600 MP"]
)
def test_the_pixel_limit_is_checked_before_decoding(width: int, height: int) -> None:
    with pytest.raises(
        ImageError, match=rf"big\.png has {width}x{height} pixels, over the limit of {DEFAULT_MAX_PIXELS}"
    ):
        decode_image(_png_header(width, height), name="big.png")


def test_below_the_pixel_limit_the_missing_pixels_are_noticed() -> None:
    with pytest.raises(ImageError, match=r"short\.png is damaged and cannot be decoded"):
        decode_image(_png_header(100, 100), name="short.png")


def test_the_pixel_limit_itself_is_allowed() -> None:
    data = _file(_noise(10, 10))
    assert decode_image(data, max_pixels=100).size == (10, 10)
    with pytest.raises(ImageError, match="10x10 pixels, over the limit of 99 pixels"):
        decode_image(data, max_pixels=99)


@pytest.mark.parametrize("size", [(1, 3000), (3000, 1)], ids=["tall", "wide"])
def test_an_extreme_aspect_ratio_is_refused_before_it_is_enlarged(size: tuple[int, int]) -> None:
    with pytest.raises(ImageError, match="short side at 224 px it would have 150528000 pixels, over the limit"):
        preprocess_image(_file(Image.new("L", size)), _spec(224, 224))


def test_a_small_limit_does_not_forbid_the_resize_of_square_images() -> None:
    assert preprocess_image(_file(_noise(4, 4)), _spec(), max_pixels=16).shape == (24, 24, 3)


@pytest.mark.parametrize("share", [0.05, 0.3, 0.6, 0.9], ids=lambda share: f"{share:.0%} left")
@pytest.mark.parametrize(
    ("kind", "options"),
    [("JPEG", {}), ("JPEG", {"progressive": True}), ("PNG", {}), ("TIFF", {}), ("BMP", {}), ("PPM", {}), ("WEBP", {})],
    ids=["JPEG", "progressive JPEG", "PNG", "TIFF", "BMP", "PPM", "WEBP"],
)
@pytest.mark.filterwarnings("ignore:Truncated File Read:UserWarning")
def test_a_truncated_file_is_an_image_error(kind: str, options: dict[str, Any], share: float) -> None:
    data = _file(_noise(64, 48), kind, **options)
    with pytest.raises(ImageError, match=r"cut\.img is (damaged and cannot be decoded|not an image that can be read)"):
        decode_image(data[: int(len(data) * share)], name="cut.img")


@pytest.mark.parametrize(
    ("data", "size"),
    [(b"", 0), (b"not an image\n", 13), (bytes(64), 64), (b"<svg xmlns='http://www.w3.org/2000/svg'/>", 41)],
    ids=["empty", "text", "zeros", "SVG"],
)
def test_what_is_no_image_is_an_image_error(data: bytes, size: int) -> None:
    with pytest.raises(
        ImageError, match=rf"x\.jpg is not an image that can be read \({size} bytes; supported: JPEG, PNG"
    ):
        decode_image(data, name="x.jpg")


@pytest.mark.parametrize("kind", ["GIF", "ICO", "TGA"])
def test_other_formats_are_refused(kind: str) -> None:
    with pytest.raises(ImageError, match="not an image that can be read"):
        preprocess_image(_file(_noise(16, 16), kind), _spec())


def test_an_image_error_is_a_data_error() -> None:
    with pytest.raises(DataError):
        preprocess_image(b"", _spec())


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (
            (32, 24, "area", HALVES, HALVES),
            "interpolation is 'area', expected one of bicubic, bilinear, lanczos, nearest",
        ),
        ((24, 32, "bilinear", HALVES, HALVES), "crop_size is 32 px and resize_size 24 px, expected 1 <= crop_size"),
        ((32, 0, "bilinear", HALVES, HALVES), "crop_size is 0 px"),
        ((4097, 32, "bilinear", HALVES, HALVES), "resize_size <= 4096"),
        ((32, 24, "bilinear", HALVES, (0.5, 0.0, 0.5)), "expected finite numbers and std above 0"),
        ((32, 24, "bilinear", HALVES, (0.5, -1.0, 0.5)), "expected finite numbers and std above 0"),
        ((32, 24, "bilinear", HALVES, (0.5, float("nan"), 0.5)), "expected finite numbers and std above 0"),
        ((32, 24, "bilinear", HALVES, (0.5, float("inf"), 0.5)), "and std"),
        ((32, 24, "bilinear", (0.5, float("nan"), 0.5), HALVES), "mean is"),
    ],
    ids=[
        "interpolation",
        "crop over resize",
        "no crop",
        "too large",
        "std 0",
        "std -1",
        "std NaN",
        "std inf",
        "mean NaN",
    ],
)
def test_a_spec_that_makes_no_sense_is_refused(values: tuple[Any, ...], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        PreprocessSpec(*values)


def test_the_decoder_version_names_pillow() -> None:
    assert decoder_version().startswith(f"pillow {PIL.__version__}, jpeg ")

"""Pixels against torchvision, which decodes and resizes without edgetune, and against files with recorded pixels.

test_preprocess.py works small cases out by hand; here are the ways in which two correct pipelines differ, with their
measured sizes: bounds are on both sides, so that a difference that goes away is noticed as one that grows.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image, ImageCms

from edgetune.core.preprocess import PreprocessSpec, decode_image, preprocess_image

Pixels = npt.NDArray[np.uint8]

GOLDEN = Path(__file__).resolve().parents[2] / "golden"
HALVES = (0.5, 0.5, 0.5)
ORIENTATION = 0x0112

# Files in formats that lose nothing: pixels are numbers that were worked out, whatever libraries read them.
LOSSLESS = (
    "grey16.png", "grey16.tiff", "grey_alpha.png", "rgba.webp", "bits.png", "frames.png", "frames.webp",
)  # fmt: skip
LOSSY = ("420_turned.jpg", "444_progressive_profile.jpg", "cmyk.jpg", "grey.jpg", "lossy.webp")


def _spec(resize: int, crop: int, interpolation: str = "bilinear") -> PreprocessSpec:
    return PreprocessSpec(resize, crop, interpolation, HALVES, HALVES)


def _picture(width: int, height: int) -> Image.Image:
    """Waves of several lengths under a fine pattern: some of a photo's edges, and the same numbers everywhere."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    waves = [
        120 + 70 * np.sin(x / (6 + c) + c) + 40 * np.cos(y / (9 - c)) + 3 * ((7 * x + 13 * y) % 11) for c in range(3)
    ]
    return Image.fromarray(np.clip(np.stack(waves, axis=-1), 0, 255).astype(np.uint8))


def _file(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def _exif(orientation: int) -> Image.Exif:
    entries = Image.Exif()
    entries[ORIENTATION] = orientation
    return entries


def _by_torchvision(data: bytes, mode: str = "RGB") -> npt.NDArray[Any]:
    """Pixels `(H, W, C)` of torchvision's own decoder, which does not go through Pillow."""
    torch = pytest.importorskip("torch")
    io_module = pytest.importorskip("torchvision.io")
    raw = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    tensor = io_module.decode_image(raw, mode=io_module.ImageReadMode[mode], apply_exif_orientation=True)
    pixels: npt.NDArray[Any] = tensor.permute(1, 2, 0).numpy()
    return pixels


def _largest(ours: npt.NDArray[Any], theirs: npt.NDArray[Any]) -> int:
    assert ours.shape == theirs.shape
    return int(np.abs(ours.astype(np.int64) - theirs.astype(np.int64)).max())


# ---- recorded pixels ----------------------------------------------------------------------------------------------


def test_every_golden_file_is_named_here() -> None:
    with np.load(GOLDEN / "pixels.npz") as table:
        assert sorted(table.files) == sorted((*LOSSLESS, *LOSSY))


@pytest.mark.parametrize("name", [*LOSSLESS, *LOSSY])
def test_a_golden_file_gives_its_recorded_pixels(name: str) -> None:
    """Another libjpeg or libwebp may round otherwise by a step or two; where nothing is lost, nothing may differ."""
    with np.load(GOLDEN / "pixels.npz") as table:
        expected = table[name]
    pixels = preprocess_image((GOLDEN / name).read_bytes(), _spec(32, 24))
    assert _largest(pixels, expected) <= (0 if name in LOSSLESS else 2)
    assert expected.std() > 20  # of a picture, not of a blank page


# ---- decoding against torchvision's decoder -----------------------------------------------------------------------

JPEGS: dict[str, dict[str, Any]] = {
    "4:4:4": {"subsampling": 0},
    "4:2:2": {"subsampling": 1},
    "4:2:0": {"subsampling": 2},
    "4:2:0 progressive": {"subsampling": 2, "progressive": True},
    "4:4:4 progressive, quality 30": {"subsampling": 0, "progressive": True, "quality": 30},
    "restart markers": {"subsampling": 2, "restart_marker_rows": 1},
    "optimised, quality 100": {"quality": 100, "optimize": True},
}


@pytest.mark.parametrize("size", [(223, 317), (1, 37), (37, 1), (1, 1), (2, 3), (241, 79), (97, 61)], ids=str)
@pytest.mark.parametrize("name", JPEGS)
def test_a_jpeg_is_decoded_as_torchvision_decodes_it(name: str, size: tuple[int, int]) -> None:
    data = _file(_picture(*size), "JPEG", **JPEGS[name])
    assert _largest(np.asarray(decode_image(data)), _by_torchvision(data)) == 0


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientations_are_those_of_torchvision(orientation: int, kind: str) -> None:
    data = _file(_picture(53, 31), kind, exif=_exif(orientation))
    ours = np.asarray(decode_image(data))
    assert ours.shape == ((31, 53, 3) if orientation < 5 else (53, 31, 3))
    assert _largest(ours, _by_torchvision(data)) == 0


MODES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "grey JPEG": ("L", "JPEG", {}),
    "CMYK JPEG": ("CMYK", "JPEG", {}),
    "grey PNG": ("L", "PNG", {}),
    "1-bit PNG": ("1", "PNG", {}),
    "palette PNG": ("P", "PNG", {}),
    "interlaced sizes PNG": ("RGB", "PNG", {"compress_level": 9}),
    "WebP": ("RGB", "WEBP", {"quality": 80}),
    "lossless WebP": ("RGB", "WEBP", {"lossless": True}),
}


@pytest.mark.parametrize("name", MODES)
def test_a_mode_without_transparency_is_decoded_as_torchvision_decodes_it(name: str) -> None:
    mode, kind, options = MODES[name]
    data = _file(_picture(97, 61).convert(mode), kind, **options)
    assert _largest(np.asarray(decode_image(data)), _by_torchvision(data)) == 0


def test_a_colour_profile_is_not_applied() -> None:
    """Neither here nor by torchvision: the numbers in the file are the pixels."""
    picture = _picture(64, 48)
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    plain, tagged = _file(picture, "JPEG"), _file(picture, "JPEG", icc_profile=profile)
    assert len(tagged) > len(plain) + 400
    assert _largest(np.asarray(decode_image(tagged)), np.asarray(decode_image(plain))) == 0
    assert _largest(np.asarray(decode_image(tagged)), _by_torchvision(tagged)) == 0


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_the_first_frame_of_an_animation_is_taken(kind: str) -> None:
    first = _picture(40, 30)
    options: dict[str, Any] = {"lossless": True} if kind == "WEBP" else {}
    second = Image.fromarray(255 - np.asarray(first))
    data = _file(first, kind, save_all=True, append_images=[second], **options)
    with Image.open(io.BytesIO(data)) as image:
        assert getattr(image, "n_frames", 1) == 2
    assert _largest(np.asarray(decode_image(data)), np.asarray(first)) == 0


def test_a_huge_jpeg_is_decoded_whole_and_then_made_small() -> None:
    """48 million pixels. Pillow's draft mode would let libjpeg shrink it in the DCT, to other pixels."""
    transforms = pytest.importorskip("torchvision.transforms.v2")
    tile = np.asarray(_picture(400, 300))
    data = _file(Image.fromarray(np.tile(tile, (20, 20, 1))), "JPEG", quality=85)
    pixels = preprocess_image(data, _spec(256, 224))
    reference = transforms.Compose([transforms.Resize(256), transforms.CenterCrop(224)])
    assert _largest(pixels, np.asarray(reference(Image.fromarray(_by_torchvision(data))))) == 0
    with Image.open(io.BytesIO(data)) as drafted:
        drafted.draft("RGB", (256, 256))
        assert max(drafted.size) < 8000
        assert _largest(pixels, np.asarray(reference(drafted.convert("RGB")))) >= 3


# ---- what torchvision leaves to others, by hand --------------------------------------------------------------------


def test_16_bit_grey_is_torchvisions_divided_by_257() -> None:
    """257 takes 65535 to 255 exactly; its decoder gives 16 bits, and Pillow's own way to RGB would cut them off."""
    values = (np.arange(61 * 97, dtype=np.int64).reshape(61, 97) * 11 % 65536).astype(np.uint16)
    data = _file(Image.fromarray(values), "PNG")
    theirs = _by_torchvision(data, "RGB")
    assert theirs.dtype == np.uint16
    assert _largest(np.asarray(decode_image(data)), theirs // 257) == 0
    with Image.open(io.BytesIO(data)) as image:
        naive = np.asarray(image.convert("RGB"))
    assert (naive == 255).mean() > 0.9  # nearly all white: the fault that is avoided


@pytest.mark.parametrize(("kind", "options"), [("PNG", {}), ("WEBP", {"lossless": True, "exact": True})], ids=str)
@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_is_torchvisions_colour_over_white(mode: str, kind: str, options: dict[str, Any]) -> None:
    """colour * alpha / 255 + 255 * (255 - alpha) / 255, to the nearest; torchvision's RGB drops alpha instead."""
    image = _picture(97, 61).convert("L" if mode == "LA" else "RGB")
    alpha = np.linspace(0, 255, 97).round().astype(np.uint8)[None].repeat(61, axis=0)
    image.putalpha(Image.fromarray(alpha))
    data = _file(image, kind, **options)
    rgba = _by_torchvision(data, "RGB_ALPHA").astype(np.float64)
    share = rgba[..., 3:] / 255.0
    over_white = np.floor(rgba[..., :3] * share + 255.0 * (1.0 - share) + 0.5)
    ours = np.asarray(decode_image(data))
    assert _largest(ours, over_white) == 0
    assert _largest(ours, _by_torchvision(data)) > 100


def test_a_palette_with_transparency_is_its_colours_over_white() -> None:
    """Index i is the grey 20 i with alpha 50 i: (20 i) (50 i) / 255 + 255 - 50 i, to the nearest."""
    image = Image.new("P", (6, 1))
    image.putpalette([value for index in range(6) for value in (20 * index,) * 3])
    for index in range(6):
        image.putpixel((index, 0), index)
    data = _file(image, transparency=bytes(50 * index for index in range(6)))
    # 0 -> 255; 1 -> 3.92 + 205; 2 -> 15.69 + 155; 3 -> 35.29 + 105; 4 -> 62.75 + 55; 5 -> 98.04 + 5
    assert np.asarray(decode_image(data))[0, :, 0].tolist() == [255, 209, 171, 140, 118, 103]


# ---- resizing and cropping ----------------------------------------------------------------------------------------

SIZES = [(223, 317), (601, 199), (199, 601), (1, 1), (2, 3), (7, 5), (1, 29), (256, 256), (257, 255), (640, 480)]


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic", "lanczos"])
@pytest.mark.parametrize(
    ("resize", "crop"), [(256, 224), (232, 224), (224, 224), (255, 223)], ids=["256/224", "232/224", "224/224", "odd"]
)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_the_pillow_path_of_torchvision_is_met_bit_for_bit(
    size: tuple[int, int], resize: int, crop: int, interpolation: str
) -> None:
    transforms = pytest.importorskip("torchvision.transforms.v2")
    image = _picture(*size)
    mode = transforms.InterpolationMode(interpolation)
    reference = transforms.Compose([transforms.Resize(resize, mode), transforms.CenterCrop(crop)])
    pixels = preprocess_image(_file(image), _spec(resize, crop, interpolation))
    assert _largest(pixels, np.asarray(reference(image))) == 0


@pytest.mark.parametrize("size", [(223, 317), (601, 199), (97, 61)], ids=str)
@pytest.mark.parametrize(
    ("crop", "share", "interpolation"),
    [(224, 0.875, "bicubic"), (240, 0.882, "bicubic"), (260, 0.89, "bicubic"), (224, 1.0, "bilinear")],
)
def test_the_evaluation_transform_of_timm_is_met_bit_for_bit(
    crop: int, share: float, interpolation: str, size: tuple[int, int]
) -> None:
    timm_data = pytest.importorskip("timm.data")
    image = _picture(*size)
    transform = timm_data.create_transform(
        (3, crop, crop), is_training=False, interpolation=interpolation, crop_pct=share, mean=(0.0,) * 3, std=(1.0,) * 3
    )
    theirs = (transform(image).permute(1, 2, 0).numpy() * 255.0).round()
    pixels = preprocess_image(_file(image), _spec(int(crop / share), crop, interpolation))
    assert _largest(pixels, theirs) == 0


# The other ways to resize in torchvision, on pictures of 640x480: the range of the largest and of the mean difference,
# in steps of 255. A uint8 tensor is rounded after each of the two passes, as by Pillow, but in another fixed point.
# A float tensor is rounded once, and between the passes nothing clips what bicubic and lanczos overshoot at black and
# white edges. Without antialias a shrunk picture is another picture: the fault that parity exists to find. For nearest,
# tensors take the pixel before the middle, Pillow the one at it, as nearest-exact does, but for ties of float rounding.
TABLE: list[tuple[str, str, str, tuple[int, int], tuple[float, float]]] = [
    ("uint8, antialias", "waves", "bilinear", (1, 1), (0.005, 0.010)),  # measured: 0.0071
    ("uint8, antialias", "waves", "bicubic", (1, 1), (0.005, 0.010)),  # 0.0071
    ("uint8, antialias", "waves", "lanczos", (1, 1), (0.006, 0.012)),  # 0.0086
    ("uint8, antialias", "edges", "bilinear", (1, 1), (0.005, 0.012)),  # 0.0081
    ("uint8, antialias", "edges", "bicubic", (1, 1), (0.003, 0.007)),  # 0.0048
    ("uint8, antialias", "edges", "lanczos", (1, 1), (0.005, 0.011)),  # 0.0076
    ("float, antialias", "waves", "bilinear", (1, 1), (0.12, 0.19)),  # 0.155
    ("float, antialias", "waves", "bicubic", (1, 1), (0.12, 0.19)),  # 0.159
    ("float, antialias", "edges", "bilinear", (1, 1), (0.07, 0.13)),  # 0.098
    ("float, antialias", "edges", "bicubic", (12, 20), (2.2, 3.7)),  # 16 and 2.95
    ("float, antialias", "edges", "lanczos", (21, 35), (3.7, 6.1)),  # 28 and 4.89
    ("uint8, no antialias", "waves", "bilinear", (10, 17), (2.8, 4.8)),  # 13 and 3.81
    ("uint8, no antialias", "waves", "bicubic", (12, 21), (4.3, 7.3)),  # 16 and 5.79
    ("uint8, no antialias", "edges", "bilinear", (79, 131), (26.0, 45.0)),  # 105 and 35.3
    ("uint8, no antialias", "edges", "bicubic", (88, 148), (20.0, 34.0)),  # 118 and 27.2
    ("uint8, antialias", "waves", "nearest", (32, 54), (8.8, 14.8)),  # 43 and 11.8
    ("uint8, antialias", "waves", "nearest-exact", (0, 30), (0.0, 0.12)),  # 24 and 0.078: one column in 256
]


def _edges(width: int, height: int) -> Image.Image:
    """Black and white areas of all sizes with sharp edges, as letters are."""
    y, x = np.mgrid[0:height, 0:width].astype(np.int64)
    return Image.fromarray(((((x * y) // 977) % 2) * 255).astype(np.uint8)).convert("RGB")


def _resized(way: str, interpolation: str, image: Image.Image) -> npt.NDArray[np.int64]:
    transforms = pytest.importorskip("torchvision.transforms.v2")
    mode = transforms.InterpolationMode(interpolation)
    steps = [transforms.Resize(256, mode, antialias="no antialias" not in way), transforms.CenterCrop(224)]
    tensor = transforms.functional.pil_to_tensor(image)
    result = transforms.Compose(steps)(tensor.float() if "float" in way else tensor)
    pixels: npt.NDArray[np.int64] = result.clamp(0, 255).round().permute(1, 2, 0).numpy().astype(np.int64)
    return pixels


@pytest.mark.parametrize(("way", "picture", "interpolation", "largest", "mean"), TABLE, ids=str)
def test_the_other_ways_to_resize_differ_by_as_much_as_is_known(
    way: str, picture: str, interpolation: str, largest: tuple[int, int], mean: tuple[float, float]
) -> None:
    image = _edges(640, 480) if picture == "edges" else _picture(640, 480)
    ours = preprocess_image(_file(image), _spec(256, 224, interpolation.removesuffix("-exact"))).astype(np.int64)
    difference = np.abs(ours - _resized(way, interpolation, image))
    assert largest[0] <= difference.max() <= largest[1]
    assert mean[0] <= difference.mean() <= mean[1]

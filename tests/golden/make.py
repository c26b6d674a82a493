"""Writes the golden image files beside it, and the pixels that they must give: `python tests/golden/make.py`.

The pixels come from arrays of numbers where a format is lossless, from torchvision's own decoder where it is not, and
from torchvision's transforms on Pillow images; nothing of edgetune takes part.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageCms
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms import v2

HERE = Path(__file__).resolve().parent
RESIZE, CROP = 32, 24
ORIENTATION = 0x0112

Pixels = npt.NDArray[np.uint8]


def picture(width: int, height: int) -> Pixels:
    """Waves of three colours under a fixed pattern, uint8 `(height, width, 3)`."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    waves = [120 + 80 * np.sin(x / (5 + c) + c) + 40 * np.cos(y / (4 + c)) + (7 * x + 13 * y) % 11 for c in range(3)]
    return np.asarray(np.clip(np.stack(waves, axis=-1), 0, 255), np.uint8)


def encode(image: Image.Image, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def decoded(data: bytes) -> Pixels:
    tensor = decode_image(
        torch.frombuffer(bytearray(data), dtype=torch.uint8), mode=ImageReadMode.RGB, apply_exif_orientation=True
    )
    return np.asarray(tensor.permute(1, 2, 0).numpy(), np.uint8)


def over_white(colour: Pixels, alpha: Pixels) -> Pixels:
    """colour * alpha / 255 + 255 * (255 - alpha) / 255, to the nearest."""
    share = alpha.astype(np.float64)[..., None] / 255.0
    mixed: Pixels = np.floor(colour * share + 255.0 * (1.0 - share) + 0.5).astype(np.uint8)
    return mixed


def exif(orientation: int) -> Image.Exif:
    entries = Image.Exif()
    entries[ORIENTATION] = orientation
    return entries


def lossy() -> dict[str, bytes]:
    image = Image.fromarray(picture(57, 41))
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    return {
        "420_turned.jpg": encode(image, "JPEG", subsampling=2, quality=85, exif=exif(6)),
        "444_progressive_profile.jpg": encode(
            image, "JPEG", subsampling=0, quality=85, progressive=True, icc_profile=profile
        ),
        "cmyk.jpg": encode(image.convert("CMYK"), "JPEG", quality=90),
        "grey.jpg": encode(image.convert("L"), "JPEG", quality=85),
        "lossy.webp": encode(image, "WEBP", quality=80),
    }


def lossless() -> dict[str, tuple[bytes, Pixels]]:
    colour = picture(57, 41)
    grey = colour[..., 0]
    ramp = np.linspace(0, 255, 57).astype(np.uint8)[None].repeat(41, axis=0)
    sixteen = grey.astype(np.uint16) * 257 + (np.arange(57, dtype=np.uint16) % 257)[None]
    grey16 = np.minimum(sixteen.astype(np.int64), 65535)
    in_rgb = [np.stack([values] * 3, axis=-1).astype(np.uint8) for values in (grey16 // 257, grey, (grey > 127) * 255)]
    frames = [Image.fromarray(colour), Image.fromarray(255 - colour)]
    return {
        "grey16.png": (encode(Image.fromarray(grey16.astype(np.uint16)), "PNG"), in_rgb[0]),
        "grey16.tiff": (encode(Image.fromarray(grey16.astype(np.uint16)), "TIFF"), in_rgb[0]),
        "grey_alpha.png": (
            encode(Image.merge("LA", (Image.fromarray(grey), Image.fromarray(ramp))), "PNG"),
            over_white(in_rgb[1], ramp),
        ),
        "rgba.webp": (
            encode(Image.fromarray(np.dstack([colour, ramp])), "WEBP", lossless=True, exact=True),
            over_white(colour, ramp),
        ),
        "bits.png": (encode(Image.fromarray(grey > 127), "PNG"), in_rgb[2]),
        "frames.png": (encode(frames[0], "PNG", save_all=True, append_images=frames[1:]), colour),
        "frames.webp": (encode(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True), colour),
    }  # fmt: skip


def expected(pixels: Pixels) -> Pixels:
    image = v2.Compose([v2.Resize(RESIZE, v2.InterpolationMode.BILINEAR), v2.CenterCrop(CROP)])(Image.fromarray(pixels))
    return np.asarray(image)


def main() -> None:
    files = {name: (data, decoded(data)) for name, data in lossy().items()} | lossless()
    for name, (data, _) in files.items():
        (HERE / name).write_bytes(data)
    np.savez_compressed(HERE / "pixels.npz", **{name: expected(pixels) for name, (_, pixels) in files.items()})  # type: ignore[arg-type]


if __name__ == "__main__":
    main()

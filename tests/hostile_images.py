"""Image files, forms and compressed bodies made to hurt: cases for `test_server_hostile.py`.

The server they are for takes bodies of 2 MiB, 256 images and 25,000,000 pixels at most.
"""

from __future__ import annotations

import gzip
import io
import struct
import zipfile
import zlib

import numpy as np
from PIL import Image

from tests.raw_http import case, classify

FORM = "Content-Type: multipart/form-data; boundary=frontier"
KIB = 1024


def _chunk(kind: bytes, data: bytes, crc: int | None = None) -> bytes:
    right = zlib.crc32(kind + data)
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", right if crc is None else crc)


def png(width: int, height: int, *more: bytes, bits: int = 8, colours: int = 0, data: bytes | None = None) -> bytes:
    """A black picture, or one of the given compressed data; `more` are chunks before them."""
    if data is None:
        row = 1 + (width * bits * {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colours] + 7) // 8
        data = _deflated(row * height)
    header = struct.pack(">IIBBBBB", width, height, bits, colours, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + b"".join(more) + _chunk(b"IDAT", data) + _chunk(b"IEND", b"")
    )


def _deflated(zeros: int) -> bytes:
    """Zeros, compressed: blocks of a MiB, each alike, and the checksum that so many zeros have."""
    stream = zlib.compressobj(9, zlib.DEFLATED, -15)
    block = stream.compress(bytes(1 << 20)) + stream.flush(zlib.Z_FULL_FLUSH)
    rest = zlib.compressobj(9, zlib.DEFLATED, -15)
    last = rest.compress(bytes(zeros % (1 << 20))) + rest.flush()
    return b"\x78\xda" + block * (zeros >> 20) + last + struct.pack(">HH", zeros % 65521, 1)


def _saved(image: Image.Image, kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def _noise(side: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (side, side, 3), np.uint8))


def scans(count: int) -> bytes:
    """A progressive JPEG of 25 million black pixels, whose last scan, 42 bytes, comes `count` times more."""
    picture = _saved(Image.new("L", (5000, 5000)), "JPEG", progressive=True, quality=10)
    last = picture.rindex(b"\xff\xda")
    return picture[:-2] + picture[last:-2] * count + b"\xff\xd9"


GOOD_PNG = png(4, 4)
_NOISE_PNG, _NOISE_JPEG = _saved(_noise(64), "PNG"), _saved(_noise(128), "JPEG", quality=90)
_EXIF_HEAD = b"Exif\x00\x00"

BOMBS = (
    case("png 9000x9000", classify(png(9000, 9000)), 400),
    case("png 30000x30000 of one bit", classify(png(30000, 30000, bits=1, data=b"")), 400),
    case("png of 2**31-1 squared", classify(png(2**31 - 1, 2**31 - 1, data=b"")), 400),
    case("png of no pixels", classify(png(0, 0, data=b"")), 400),
    case("png of the most pixels", classify(png(5000, 5000)), 200),
    case("png with less data than it says", classify(png(5000, 5000, data=_deflated(100))), 400),
    case("png with more data than it says", classify(png(4, 4, data=_deflated(1 << 28))), 200, 400),
    case("jpeg of 65535 squared", classify(_NOISE_JPEG.replace(
        struct.pack(">HH", 128, 128), struct.pack(">HH", 65535, 65535), 1)), 400),
    case("strip 1x25000000", classify(png(1, 25_000_000, data=b"")), 400),
    case("strip 25000000x1", classify(png(25_000_000, 1, data=b"")), 400),
    case("strip 1x100000", classify(png(1, 100_000)), 200),
    case("text bomb", classify(png(4, 4, _chunk(b"zTXt", b"k\x00\x00" + _deflated(1 << 28)))), 200, 400),
    case("international text bomb", classify(png(4, 4, _chunk(b"iTXt",
         b"k\x00\x01\x00\x00\x00" + _deflated(1 << 28)))), 200, 400),
    case("profile bomb", classify(png(4, 4, _chunk(b"iCCP", b"k\x00\x00" + _deflated(1 << 28)))), 200, 400),
    case("giant text", classify(png(4, 4, _chunk(b"tEXt", b"k\x00" + b"x" * 1_500_000))), 200, 400),
    case("10,000 texts", classify(png(4, 4, _chunk(b"tEXt", b"k\x00x") * 10_000)), 200, 400),
    case("bombs of text, many", classify(png(4, 4, *[_chunk(b"zTXt", b"k\x00\x00" + _deflated(1_000_000))] * 500)),
         200, 400),
)  # fmt: skip

OTHER_KINDS = tuple(
    case(f"kind {name}", classify(data), 400)
    for name, data in {
        "gif": _saved(_noise(8), "GIF"), "tiff": _saved(_noise(8), "TIFF"), "bmp": _saved(_noise(8), "BMP"),
        "webp": _saved(_noise(8), "WEBP"), "ico": _saved(_noise(16), "ICO"), "ppm": _saved(_noise(8), "PPM"),
        "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "pdf": b"%PDF-1.7\n1 0 obj\n<<>>\nendobj\n",
        "svg": b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
        "exe": b"MZ" + bytes(500),
        "elf": b"\x7fELF" + bytes(500), "url": b"http://127.0.0.1:1/x.png", "path": b"/etc/passwd",
        "psd": b"8BPS\x00\x01" + bytes(50),
        "fits": b"SIMPLE  =                    T" + b" " * 2850, "gd": b"\xff\xfe" + bytes(2000), "one byte": b"\xff",
        "start of jpeg": b"\xff\xd8\xff", "start of png": GOOD_PNG[:8], "markers only": b"\xff\xd8" + b"\xff" * 100_000,
        "jpeg without scan": b"\xff\xd8\xff\xd9", "zeros": bytes(100_000), "ff": b"\xff" * 100_000,
        "python": b"cos\nsystem\n(S'x'\ntR.",
    }.items()
)  # fmt: skip

CUTS = (
    *(case(f"png cut at {size}", classify(_NOISE_PNG[:size]), 400) for size in range(KIB, len(_NOISE_PNG), KIB)),
    *(
        case(f"jpeg cut at {size}", classify(_NOISE_JPEG[:size]), 400)
        for size in range(KIB, len(_NOISE_JPEG) - 512, KIB)
    ),
)


def _zip() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("x.png", GOOD_PNG)
    return stream.getvalue()


def _exif(orientation: int, *, pointer: bytes = b"") -> bytes:
    entry = struct.pack(">HHIHH", 0x0112, 3, 1, orientation, 0)
    return _EXIF_HEAD + b"MM\x00*\x00\x00\x00\x08\x00\x01" + entry + (pointer or bytes(4))


def _jpeg_with(exif: bytes) -> bytes:
    return _saved(_noise(8), "JPEG", exif=exif)


def _broken_jpegs() -> dict[str, bytes]:
    """A JPEG with one marker after the other turned into another, or given a wrong length."""
    picture = _saved(_noise(8), "JPEG")
    places = [
        at for at in range(2, len(picture) - 3) if picture[at] == 0xFF and picture[at + 1] in (0xDB, 0xC0, 0xC4, 0xDA)
    ]
    broken = {}
    for at in places:
        broken[f"marker {at} turned"] = picture[: at + 1] + b"\xc9" + picture[at + 2 :]
        broken[f"length {at} 0"] = picture[: at + 2] + b"\x00\x00" + picture[at + 4 :]
        broken[f"length {at} huge"] = picture[: at + 2] + b"\xff\xff" + picture[at + 4 :]
    return broken


ODD_IMAGES = (
    case("zip", classify(_zip()), 400),
    case("png and zip", classify(GOOD_PNG + _zip()), 200, 400),
    case("wrong crc of IHDR", classify(GOOD_PNG.replace(GOOD_PNG[29:33], b"abcd")), 400),
    case("wrong crc of IDAT", classify(GOOD_PNG[:-16] + b"abcd" + GOOD_PNG[-12:]), 200, 400),
    case("png without header", classify(GOOD_PNG[:8] + GOOD_PNG[33:]), 400),
    case("png of 3 bits", classify(png(4, 4, bits=3, data=_deflated(20))), 400),
    case("png with a palette of nothing", classify(png(4, 4, colours=3)), 200, 400),
    case("png of 16 bits", classify(png(4, 4, bits=16)), 200),
    case("png chunk longer than the file", classify(GOOD_PNG[:33] + b"\x7f\xff\xff\xffIDAT" + bytes(50)), 400),
    case("png chunk of negative length", classify(GOOD_PNG[:33] + b"\xff\xff\xff\xffIDAT" + bytes(50)), 400),
    case("animated png", classify(_saved(_noise(8), "PNG", save_all=True, append_images=[Image.new("RGB", (8,
         8))] * 50)), 200, 400),
    *(case(f"exif orientation {value}", classify(_jpeg_with(_exif(value))), 200) for value in (0, 6, 9, 65535)),
    case("exif that points at itself", classify(_jpeg_with(_exif(6, pointer=b"\x00\x00\x00\x08"))), 200),
    case("exif of one byte", classify(_jpeg_with(_EXIF_HEAD + b"M")), 200),
    case("exif of 60 kB of nothing", classify(_jpeg_with(_EXIF_HEAD + b"MM\x00*" + bytes(60_000))), 200),
    *(case(f"jpeg {name}", classify(data), 200, 400) for name, data in _broken_jpegs().items()),
)  # fmt: skip


def _part(data: bytes, head: str = 'Content-Disposition: form-data; name="f"; filename="a.png"') -> bytes:
    return b"--frontier\r\n" + head.encode("latin-1") + b"\r\n\r\n" + data + b"\r\n"


_END = b"--frontier--\r\n"
_BOUNDARIES = (
    "",
    "; boundary=",
    "; boundary=" + "b" * 71,
    "; boundary=other",
    '; boundary="',
    "; boundary*=utf-8''%ff",
    "; boundary*9=x",
)

FORMS = (
    case("form of three", classify(_part(GOOD_PNG) * 3 + _END, FORM), 200),
    *(case(f"form with {text[:16] or 'no boundary'}", classify(_part(GOOD_PNG) + _END,
          f"Content-Type: multipart/form-data{text}"), 400)
      for text in _BOUNDARIES),
    case("form empty", classify(_END, FORM), 400),
    case("form without end", classify(_part(GOOD_PNG), FORM), 400),
    case("form cut in a head", classify(b"--frontier\r\nContent-Disp", FORM), 400),
    case("form without form", classify(b"x" * 100_000, FORM), 400),
    case("form of 256 parts", classify(_part(b"x") * 256 + _END, FORM), 200),
    case("form of 257 parts", classify(_part(b"x") * 257 + _END, FORM), 413),
    case("form of 20,000 parts", classify(_part(b"") * 20_000 + _END, FORM), 413),
    case("endless headers", classify(b"--frontier\r\n" + b"X: y\r\n" * 300_000, FORM), 400),
    case("one endless header", classify(b"--frontier\r\nX: " + b"y" * 1_900_000, FORM), 400),
    case("part with 100,000 headers", classify(_part(GOOD_PNG, "X: y\r\n" * 100_000 + "X: y") + _END, FORM), 200, 400),
    case("part header without colon", classify(_part(GOOD_PNG, "nonsense") + _END, FORM), 400),
    case("nested form", classify(_part(b"--inner\r\n\r\nx\r\n--inner--",
         "Content-Type: multipart/mixed; boundary=inner") + _END, FORM), 200),
    case("file name with a path", classify(_part(GOOD_PNG,
         'Content-Disposition: form-data; filename="../../x"') + _END, FORM), 200),
    case("file name of 100,000", classify(_part(GOOD_PNG,
         f'Content-Disposition: form-data; filename="{"a" * 100_000}"') + _END, FORM), 200, 400),
    case("file name odd", classify(_part(GOOD_PNG,
         "Content-Disposition: form-data; filename*=utf-9''%ff\x01\xe9") + _END, FORM), 200, 400),
    case("form of bare line feeds", classify(_part(GOOD_PNG).replace(b"\r\n", b"\n") + _END, FORM), 400),
)  # fmt: skip

_GZIP, _DEFLATE = "Content-Encoding: gzip", "Content-Encoding: deflate"
_PACKED = gzip.compress(GOOD_PNG)


def _gzip_bomb(size: int) -> bytes:
    return (
        b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff" + _deflated(size)[2:-4] + struct.pack("<II", 0, size & 0xFFFFFFFF)
    )


COMPRESSED = (
    case("gzip", classify(_PACKED, _GZIP), 200),
    case("deflate", classify(zlib.compress(GOOD_PNG), _DEFLATE), 200),
    case("gzip of 64 members", classify(gzip.compress(b"") * 63 + _PACKED, _GZIP), 200),
    case("gzip of 10,000 members", classify(gzip.compress(b"") * 10_000 + _PACKED, _GZIP), 400),
    case("gzip bomb", classify(_gzip_bomb(1 << 30), _GZIP), 413),
    case("deflate bomb", classify(_deflated(1 << 30), _DEFLATE), 413),
    case("gzip over the ratio", classify(_gzip_bomb(1_900_000), _GZIP), 413),
    case("gzip cut", classify(_PACKED[:-10], _GZIP), 400),
    case("gzip with more behind", classify(_PACKED + b"more", _GZIP), 400),
    case("gzip with a wrong sum", classify(_PACKED[:-8] + b"abcdefgh", _GZIP), 400),
    case("gzip twice", classify(gzip.compress(_PACKED), "Content-Encoding: gzip, gzip"), 415),
    case("gzip in two headers", classify(gzip.compress(_PACKED), _GZIP, _GZIP), 400),
    case("gzip that is none", classify(GOOD_PNG, _GZIP), 400),
    case("none that is gzip", classify(_PACKED), 400),
    case("gzip of nothing", classify(b"", _GZIP), 400),
    case("deflate of another dictionary", classify(b"\x78\xbb\x00\x00\x00\x01abc", _DEFLATE), 400),
    *(case(f"encoding {name[:8]}", classify(_PACKED, f"Content-Encoding: {name}"), 415)
      for name in ("br", "zstd", "compress", "\xff", "x" * 300, "gzip;q=1")),
    case("identity", classify(GOOD_PNG, "Content-Encoding: identity"), 200),
    case("accepts everything badly", classify(GOOD_PNG, "Accept-Encoding: " + "gzip;q=x," * 500), 200),
)  # fmt: skip

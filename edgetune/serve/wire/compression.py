"""Compressed bodies: gzip and deflate, in with limits on what comes out of them, and out."""

from __future__ import annotations

import zlib

from edgetune.serve.errors import RequestError

GZIP, DEFLATE = "gzip", "deflate"

# What a body may grow to whatever its ratio: the pixels of a black image shrink a thousandfold.
_SMALL_BYTES = 1 << 20
_MAX_RATIO = 100
_MAX_MEMBERS = 64
_MAX_OFFERS = 64
_CHUNK_BYTES = 64 << 10
_LEVEL = 1

# zlib's names for the forms: the window's size, and what is around the data.
_GZIP_WINDOW, _ZLIB_WINDOW, _RAW_WINDOW = 16 + 15, 15, -15


def inflate(body: bytes | bytearray, encoding: str, max_bytes: int) -> bytes | bytearray:
    """What `body` was before the client compressed it; itself for `identity`.

    Raises:
        RequestError: 415 for another encoding, 413 over `max_bytes` or a hundred times the body, 400 for damage.
    """
    name = encoding.strip().lower().removeprefix("x-")
    if name in {"", "identity"}:
        if len(body) > max_bytes:
            raise _too_large(f"the body has {len(body)} bytes, over the limit of {max_bytes}")
        return body
    if name not in {GZIP, DEFLATE}:
        raise RequestError(
            415, f"the content encoding {encoding[:64]!r} is not supported; send {GZIP}, {DEFLATE} or none"
        )
    limit = min(max_bytes, max(_SMALL_BYTES, _MAX_RATIO * len(body)))
    window = _GZIP_WINDOW if name == GZIP else _deflate_window(body)
    try:
        return _inflate(memoryview(body), window, limit)
    except zlib.error as error:
        raise RequestError(400, f"the {name} body is damaged") from error


def _deflate_window(body: bytes | bytearray) -> int:
    """Deflate is zlib's form by the standard, and bare data with some clients; zlib's first two bytes tell."""
    is_zlib = len(body) >= 2 and body[0] & 0x0F == 8 and (body[0] << 8 | body[1]) % 31 == 0
    return _ZLIB_WINDOW if is_zlib else _RAW_WINDOW


def _inflate(body: memoryview, window: int, limit: int) -> bytes:
    """Chunk by chunk, so that neither what comes out nor what is left over is ever larger than it may be."""
    stream = zlib.decompressobj(window)
    content = bytearray()
    members = 1
    for start in range(0, len(body), _CHUNK_BYTES):
        chunk: bytes | memoryview = body[start : start + _CHUNK_BYTES]
        while chunk:
            if stream.eof:
                members += 1
                stream = _next_member(window, members)
            content += stream.decompress(chunk, limit + 1 - len(content))
            if len(content) > limit:
                raise _too_large(
                    f"the body is over the limit of {limit} bytes once decompressed, "
                    f"of {_MAX_RATIO} times what was sent at most"
                )
            chunk = stream.unused_data
    if not stream.eof:
        raise RequestError(400, "the compressed body ends too early")
    return bytes(content)


def _next_member(window: int, members: int) -> zlib._Decompress:
    """Only gzip may be several streams in a row."""
    if window != _GZIP_WINDOW or members > _MAX_MEMBERS:
        raise RequestError(400, "bytes follow the end of the compressed body")
    return zlib.decompressobj(window)


def _too_large(message: str) -> RequestError:
    return RequestError(413, message, reason="too_large")


def choose_encoding(accept_encoding: str) -> str:
    """The encoding of an answer that the client likes best, by the weights of RFC 9110; empty for none."""
    weights = dict(_weight(offer) for offer in accept_encoding.lower().split(",")[:_MAX_OFFERS])
    others = weights.get("*", 0.0)
    of_gzip = weights.get(GZIP, weights.get("x-gzip", others))
    of_deflate = weights.get(DEFLATE, others)
    best = max(of_gzip, of_deflate)
    if best <= 0 or best < weights.get("identity", 0.0):
        return ""
    return GZIP if of_gzip == best else DEFLATE


def _weight(offer: str) -> tuple[str, float]:
    """A weight that is no number in 0..1 counts as a refusal."""
    name, *parameters = (part.strip() for part in offer.split(";"))
    if not parameters:
        return name, 1.0
    key, _, value = parameters[0].partition("=")
    digits = value.strip()
    is_weight = key.strip() == "q" and len(digits) <= 5 and digits.isascii() and digits.replace(".", "", 1).isdigit()
    weight = float(digits) if is_weight else 0.0
    return name, weight if weight <= 1 else 0.0


def deflate(body: bytes, encoding: str) -> bytes:
    """`body` in an encoding of `choose_encoding`, fast rather than small."""
    if not encoding:
        return body
    stream = zlib.compressobj(_LEVEL, zlib.DEFLATED, _GZIP_WINDOW if encoding == GZIP else _ZLIB_WINDOW)
    return stream.compress(body) + stream.flush()

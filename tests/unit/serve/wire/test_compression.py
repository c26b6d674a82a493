from __future__ import annotations

import gzip
import hashlib
import time
import zlib
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgetune.serve.errors import RequestError
from edgetune.serve.wire.compression import choose_encoding, deflate, inflate

LIMIT = 1 << 20
# Hexadecimal digits of noise, which shrink to half.
TEXT = b"".join(hashlib.sha256(bytes([index])).hexdigest().encode() * 5 for index in range(256))


def _raw_deflate(data: bytes) -> bytes:
    stream = zlib.compressobj(9, zlib.DEFLATED, -15)
    return stream.compress(data) + stream.flush()


PACKERS: list[tuple[str, Callable[[bytes], bytes]]] = [
    ("gzip", gzip.compress),
    ("x-gzip", gzip.compress),
    (" GZIP ", gzip.compress),
    ("deflate", zlib.compress),
    ("deflate", _raw_deflate),
    ("identity", bytes),
    ("", bytes),
]


def _refuses(body: bytes, encoding: str, words: str, status: int, limit: int = LIMIT) -> None:
    with pytest.raises(RequestError, match=words) as caught:
        inflate(body, encoding, limit)
    assert caught.value.status == status
    assert caught.value.reason == ("too_large" if status == 413 else "")


@pytest.mark.parametrize(("encoding", "pack"), PACKERS)
@pytest.mark.parametrize("data", [b"", b"a", TEXT, TEXT[::-1] * 8], ids=["empty", "one", "some", "several chunks"])
@pytest.mark.parametrize("kind", [bytes, bytearray])
def test_bodies_come_back(encoding: str, pack: Callable[[bytes], bytes], data: bytes, kind: type[bytes]) -> None:
    assert inflate(kind(pack(data)), encoding, LIMIT) == data


@pytest.mark.parametrize("size", [70_000, 200_000])
def test_noise_that_fills_many_chunks_comes_back(size: int) -> None:
    state, noise = 1, bytearray()
    for _ in range(size):
        state = state * 1103515245 + 12345 & 0x7FFFFFFF
        noise.append(state >> 16 & 255)
    assert inflate(gzip.compress(bytes(noise)), "gzip", LIMIT) == noise
    assert inflate(_raw_deflate(bytes(noise)), "deflate", LIMIT) == noise


def test_gzip_may_be_several_streams_in_a_row_but_not_endlessly_many() -> None:
    assert inflate(gzip.compress(b"one") + gzip.compress(b"two"), "gzip", LIMIT) == b"onetwo"
    assert inflate(gzip.compress(b"x") * 64, "gzip", LIMIT) == b"x" * 64
    _refuses(gzip.compress(b"x") * 65, "gzip", "bytes follow the end of the compressed body", 400)
    _refuses(zlib.compress(b"x") * 2, "deflate", "bytes follow the end of the compressed body", 400)


@pytest.mark.parametrize(("encoding", "pack"), PACKERS)
def test_the_limit_is_exact(encoding: str, pack: Callable[[bytes], bytes]) -> None:
    body = pack(TEXT)
    assert inflate(body, encoding, len(TEXT)) == TEXT
    _refuses(body, encoding, f"over the limit of {len(TEXT) - 1}", 413, len(TEXT) - 1)


@pytest.mark.parametrize(("encoding", "pack"), PACKERS[3:5] + PACKERS[:1])
def test_what_grows_more_than_a_hundredfold_is_refused_unless_it_stays_small(
    encoding: str, pack: Callable[[bytes], bytes]
) -> None:
    small = 1 << 20
    assert inflate(pack(bytes(small)), encoding, 2 * LIMIT) == bytes(small)
    _refuses(pack(bytes(small + 1)), encoding, "over the limit of 1048576 bytes once decompressed", 413, 2 * LIMIT)
    bomb = pack(bytes(50_000_000))
    started = time.process_time()
    _refuses(bomb, encoding, f"over the limit of {100 * len(bomb)} bytes", 413, 64 << 20)
    assert time.process_time() - started < 1


@pytest.mark.parametrize(
    ("encoding", "body"),
    [
        ("gzip", b""),
        ("gzip", gzip.compress(TEXT)[:-1]),
        ("gzip", gzip.compress(TEXT)[:5]),
        ("gzip", gzip.compress(b"x") + gzip.compress(TEXT)[:-8]),
        ("deflate", b""),
        ("deflate", zlib.compress(TEXT)[:-1]),
    ],
)
def test_a_body_that_stops_is_refused(encoding: str, body: bytes) -> None:
    _refuses(body, encoding, "the compressed body ends too early", 400)


@pytest.mark.parametrize(
    ("encoding", "body"),
    [
        ("gzip", TEXT),
        ("gzip", zlib.compress(TEXT)),
        ("gzip", gzip.compress(TEXT)[:-8] + bytes(8)),
        ("gzip", gzip.compress(TEXT) + b"tail"),
        ("deflate", gzip.compress(TEXT)),
        ("deflate", zlib.compress(TEXT)[:-4] + bytes(4)),
        ("deflate", b"\xff" * 20),
    ],
    ids=["no gzip", "zlib", "wrong checksum", "tail", "gzip", "wrong zlib checksum", "noise"],
)
def test_a_damaged_body_is_refused(encoding: str, body: bytes) -> None:
    _refuses(body, encoding, f"the {encoding} body is damaged", 400)


@pytest.mark.parametrize("encoding", ["br", "zstd", "gzip, gzip", "deflate, gzip", "compress", "x-deflat", "x" * 9000])
def test_other_encodings_are_refused(encoding: str) -> None:
    _refuses(b"", encoding, r"the content encoding '.{2,64}' is not supported; send gzip, deflate or none", 415)


@settings(max_examples=200, deadline=None, database=None)
@given(
    body=st.binary(max_size=100) | st.binary(max_size=40).map(lambda tail: gzip.compress(b"x")[:10] + tail),
    encoding=st.sampled_from(["gzip", "deflate"]) | st.text(max_size=10),
)
def test_random_bodies_raise_nothing_but_request_errors(body: bytes, encoding: str) -> None:
    try:
        assert len(inflate(body, encoding, 1000)) <= 1000
    except RequestError as error:
        assert error.status in {400, 413, 415}


@pytest.mark.parametrize(
    ("accepted", "expected"),
    [
        ("", ""),
        ("gzip", "gzip"),
        ("GZIP", "gzip"),
        ("x-gzip", "gzip"),
        ("deflate", "deflate"),
        ("gzip, deflate, br", "gzip"),
        ("deflate, gzip", "gzip"),
        ("deflate;q=1.0, gzip;q=0.5", "deflate"),
        ("deflate;q=0.2,gzip;q=0.5", "gzip"),
        ("deflate ; q=0.5 , gzip ; Q=0", "deflate"),
        ("gzip;q=0", ""),
        ("gzip;q=0.000", ""),
        ("*", "gzip"),
        ("*;q=0", ""),
        ("gzip;q=0, *", "deflate"),
        ("br, *;q=0.1", "gzip"),
        ("identity", ""),
        ("identity, gzip;q=0.5", ""),
        ("identity;q=0.5, gzip", "gzip"),
        ("identity;q=0, gzip;q=0.1", "gzip"),
        ("br;q=1.0", ""),
        ("gzip;q=1.5", ""),
        ("gzip;q=-1", ""),
        ("gzip;q=nan", ""),
        ("gzip;q=1e-9", ""),
        ("gzip;q=", ""),
        ("gzip;level=1", ""),
        ("gzip;q=\u0665", ""),
        (";;,,=;", ""),
        ("a," * 100_000 + "gzip", ""),
    ],
    ids=lambda value: str(value)[:40] or "empty",
)
def test_the_client_weighs_the_encodings_of_the_answer(accepted: str, expected: str) -> None:
    assert choose_encoding(accepted) == expected


@settings(max_examples=200, deadline=None, database=None)
@given(st.text(alphabet="gzipdeflat*;q=.01, ", max_size=40) | st.text(max_size=20))
def test_any_header_chooses_an_encoding_or_none(accepted: str) -> None:
    assert choose_encoding(accepted) in {"gzip", "deflate", ""}


def test_answers_are_read_by_others() -> None:
    assert gzip.decompress(deflate(TEXT, "gzip")) == TEXT
    assert zlib.decompress(deflate(TEXT, "deflate")) == TEXT
    assert len(deflate(TEXT, "gzip")) < len(TEXT) * 0.7
    assert deflate(TEXT, "gzip") == deflate(TEXT, "gzip")
    assert deflate(TEXT, "") is TEXT

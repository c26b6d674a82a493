"""Requests for the fuzzer: good ones of every endpoint, and what becomes of them by chance."""

from __future__ import annotations

import gzip
import io
import json
import random
import re
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

_LENGTH, _HEAD_LENGTH = b"content-length", b"inference-header-content-length"
_ODD_NUMBERS = (b"0", b"-1", b"1", b"2", b"255", b"256", b"257", b"65536", b"2147483647", b"4294967295",
b"9223372036854775808",
                b"99999999999999999999999", b"1.5", b"1e9", b"-0", b"0x10", b"007", b"NaN", b"")  # fmt: skip
_WORDS = (b"\r\n", b"\r\n\r\n", b"\n", b"\x00", b"\xff", b"%00", b"%2f", b"../", b'"', b"{", b"}", b"[", b"]", b",",
b":", b"null",
          b"true", b'{"a":', b"[[[[", b"\\ud800", b"\xf0\x9f\x98\x80", b"chunked", b"gzip", b"GET ", b"HTTP/1.1",
          b"--frontier",
          b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"\xff\xff\xff\xff", b"A" * 300)  # fmt: skip
_HEADERS = (b"transfer-encoding: chunked", b"content-encoding: gzip", b"content-encoding: deflate",
b"connection: close",
            b"connection: upgrade\r\nupgrade: websocket", b"expect: 100-continue", b"accept-encoding: gzip",
            b"host: evil.example",
            b"inference-header-content-length: 0", b"content-length: 5", b"accept: application/openmetrics-text",
            b"content-type: multipart/form-data; boundary=frontier", b"x: \xff", b"range: bytes=0-1",
            b"te: trailers")  # fmt: skip
_ODD_VALUES: tuple[Any, ...] = (None, True, 0, -1, 1.5, 2**63, 10**30, "", "x", "BYTES", "UINT8", "FP32", [], [[]], {},
[1, 4, 4, 3],
                                [-1, 4, 4, 3], [2**62, 4, 4, 3], [0], [1] * 40, {"binary_data": True},
                                {"classification": 2},
                                {"binary_data_size": 48}, {"timeout": 1}, {"shared_memory_region": "x"})  # fmt: skip


@dataclass(frozen=True)
class Request:
    """`head` is the request line and the headers, without the empty line."""

    head: tuple[bytes, ...]
    body: bytes = b""

    @property
    def wire(self) -> bytes:
        return b"\r\n".join([*self.head, b"", b""]) + self.body

    def header(self, name: bytes) -> bytes | None:
        found = (line.partition(b":")[2].strip() for line in self.head[1:] if line.lower().startswith(name + b":"))
        return next(found, None)

    def with_header(self, name: bytes, value: bytes) -> Request:
        """Of the headers that are there; none is added."""
        is_it = [line.lower().startswith(name + b":") for line in self.head]
        lines = (name + b": " + value if hit else line for line, hit in zip(self.head, is_it, strict=True))
        return replace(self, head=tuple(lines))


def make_request(method: str, path: str, body: bytes = b"", *headers: str, sized: bool = True) -> Request:
    lines = [f"{method} {path} HTTP/1.1", "host: 127.0.0.1", *headers]
    if body and sized:
        lines.append(f"content-length: {len(body)}")
    return Request(tuple(line.encode() for line in lines), body)


def good_requests(model: str, pixels: npt.NDArray[np.uint8]) -> list[Request]:
    """`pixels` are one image `(1, H, W, 3)`, which also comes as PNG and JPEG."""
    infer = f"/v2/models/{model}/infer"
    png, jpeg = _files(pixels)
    pages = ("/v2", "/v2/health/live", "/v2/health/ready", f"/v2/models/{model}",
    f"/v2/models/{model}/versions/1/ready",
             f"/v2/models/{model}/config", f"/v2/models/{model}/stats", "/v2/models/stats", "/metrics",
             "/openapi.json")  # fmt: skip
    form = b"".join(b'--frontier\r\nContent-Disposition: form-data; name="f"; filename="a.png"\r\n\r\n' + data + b"\r\n"
                    for data in (png, jpeg)) + b"--frontier--\r\n"  # fmt: skip
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (png[:30], png[30:])) + b"0\r\n\r\n"
    return [
        *(make_request("GET", page) for page in pages),
        make_request("HEAD", "/v2"),
        make_request("POST", "/v2/repository/index", b'{"ready": true}'),
        make_request("POST", infer, _json(pixels, data=pixels.ravel().tolist())),
        make_request("POST", infer, _json(pixels, data=pixels.ravel().tolist(), top=2), "accept-encoding: gzip"),
        make_request("POST", infer, pixels.tobytes(), "inference-header-content-length: 0"),
        _binary(infer, _json(pixels, size=pixels.nbytes), pixels.tobytes()),
        _binary(infer, _json(pixels, size=len(png) + 4, datatype="BYTES"), struct.pack("<I", len(png)) + png),
        make_request("POST", "/v1/classify", png, "content-type: image/png"),
        make_request("POST", "/v1/classify?top=2&logits=1", jpeg),
        make_request("POST", "/v1/classify", form, "content-type: multipart/form-data; boundary=frontier"),
        make_request("POST", "/v1/classify", gzip.compress(png), "content-encoding: gzip"),
        make_request("POST", infer, zlib.compress(_json(pixels, data=pixels.tolist())), "content-encoding: deflate"),
        make_request("POST", "/v1/classify", chunks, "transfer-encoding: chunked", sized=False),
    ]


def _files(pixels: npt.NDArray[np.uint8]) -> tuple[bytes, bytes]:
    files = []
    for kind in ("PNG", "JPEG"):
        stream = io.BytesIO()
        Image.fromarray(pixels[0]).save(stream, kind)
        files.append(stream.getvalue())
    return files[0], files[1]


def _json(
    pixels: npt.NDArray[np.uint8], *, data: object = None, size: int = 0, datatype: str = "UINT8", top: int = 0
) -> bytes:
    shape = [1] if datatype == "BYTES" else list(pixels.shape)
    entry: dict[str, Any] = {"name": "image", "shape": shape, "datatype": datatype}
    entry.update({"data": data} if data is not None else {"parameters": {"binary_data_size": size}})
    outputs = [{"name": "logits", "parameters": {"classification": top} if top else {"binary_data": bool(size)}}]
    return json.dumps({"id": "7", "inputs": [entry], "outputs": outputs, "parameters": {"timeout": 0}}).encode()


def _binary(path: str, text: bytes, blob: bytes) -> Request:
    return make_request("POST", path, text + blob, f"inference-header-content-length: {len(text)}")


class Fuzzer:
    """The same requests for the same seed."""

    def __init__(self, corpus: list[Request], seed: int) -> None:
        self._corpus = corpus
        self._random = random.Random(seed)
        self._on_body: tuple[Callable[[bytes], bytes], ...] = (
            self._flip, self._cut, self._insert, self._repeat, self._number, self._splice, self._overwrite,
        )  # fmt: skip

    def next(self) -> bytes:
        """Mostly a good request whose body, head, JSON or bytes are changed one to four times. Lengths in its headers
        are set right again more often than not, or nothing would come further than them.
        """
        chance = self._random
        request = chance.choice(self._corpus)
        if chance.random() < 0.2:
            request = self._odd_json(request)
        for _ in range(chance.choice((1, 1, 2, 4))):
            if request.body and chance.random() < 0.6:
                request = self._changed_body(request)
            elif chance.random() < 0.7:
                request = self._changed_head(request)
        wire = request.wire
        return chance.choice(self._on_body)(wire) if chance.random() < 0.15 else wire

    def _changed_body(self, request: Request) -> Request:
        length = len(request.body)
        body = self._random.choice(self._on_body)(request.body)
        changed = replace(request, body=body)
        if self._random.random() < 0.85:
            changed = changed.with_header(_LENGTH, b"%d" % len(body))
        text = request.header(_HEAD_LENGTH)
        if text is not None and text.isdigit() and int(text) and self._random.random() < 0.5:
            changed = changed.with_header(_HEAD_LENGTH, b"%d" % max(0, int(text) + len(body) - length))
        return changed

    def _changed_head(self, request: Request) -> Request:
        lines, chance = list(request.head), self._random
        at = chance.randrange(len(lines))
        kind = chance.randrange(5)
        if kind == 0 and len(lines) > 1:
            del lines[at]
        elif kind == 1:
            lines.insert(at + 1, chance.choice(lines))
        elif kind == 2:
            lines.append(chance.choice(_HEADERS))
        elif kind == 3:
            lines[at] = self._number(lines[at])
        else:
            lines[at] = chance.choice(self._on_body)(lines[at])
        return replace(request, head=tuple(lines))

    def _odd_json(self, request: Request) -> Request:
        """One value of its JSON for another; the request itself where it has none."""
        end = int(request.header(_HEAD_LENGTH) or len(request.body))
        try:
            message = json.loads(request.body[:end])
        except ValueError:
            return request
        place: Any = message
        while isinstance(place, (dict, list)) and place:
            key = self._random.choice(list(place) if isinstance(place, dict) else range(min(3, len(place))))
            if not isinstance(place[key], (dict, list)) or not place[key] or self._random.random() < 0.3:
                place[key] = self._random.choice(_ODD_VALUES)
                break
            place = place[key]
        text = json.dumps(message).encode()
        changed = replace(request, body=text + request.body[end:])
        return changed.with_header(_LENGTH, b"%d" % len(changed.body)).with_header(_HEAD_LENGTH, b"%d" % len(text))

    def _flip(self, data: bytes) -> bytes:
        changed = bytearray(data)
        for _ in range(self._random.choice((1, 1, 2, 8)) if changed else 0):
            changed[self._random.randrange(len(changed))] ^= 1 << self._random.randrange(8)
        return bytes(changed)

    def _overwrite(self, data: bytes) -> bytes:
        at, word = self._at(data), self._random.choice(_WORDS)
        return data[:at] + word + data[at + len(word) :]

    def _cut(self, data: bytes) -> bytes:
        start, end = sorted((self._at(data), self._at(data)))
        return data[:start] if self._random.random() < 0.5 else data[:start] + data[end:]

    def _insert(self, data: bytes) -> bytes:
        at = self._at(data)
        return data[:at] + self._random.choice(_WORDS) + data[at:]

    def _repeat(self, data: bytes) -> bytes:
        start, end = sorted((self._at(data), self._at(data)))
        return data[:end] + data[start:end] * self._random.choice((1, 1, 3)) + data[end:]

    def _splice(self, data: bytes) -> bytes:
        other = self._random.choice(self._corpus).wire
        return data[: self._at(data)] + other[self._at(other) :]

    def _number(self, data: bytes) -> bytes:
        found = list(re.finditer(rb"\d+", data[:5000]))
        if not found:
            return data
        number = self._random.choice(found)
        return data[: number.start()] + self._random.choice(_ODD_NUMBERS) + data[number.end() :]

    def _at(self, data: bytes) -> int:
        return self._random.randrange(len(data) + 1)

"""Requests whose framing, target or head is wrong or odd: cases for `test_server_hostile.py`.

The server they are for has heads of 64 KiB and bodies of 2 MiB at most.
"""

from __future__ import annotations

from tests.raw_http import HOST, MEAN_COLOUR, SENTINEL, Case, case, classify, head, infer, post

_RAW = "Inference-Header-Content-Length: 0"
_LIVE = "/v2/health/live"
_GET = head("GET", _LIVE)
_CHUNKED = head("POST", "/v2/models/mean/infer", _RAW, "Transfer-Encoding: chunked")


def _line(line: bytes) -> bytes:
    return line + b"\r\n" + HOST + b"\r\n"


def _with(header: bytes) -> bytes:
    return b"GET " + _LIVE.encode() + b" HTTP/1.1\r\n" + HOST + header + b"\r\n\r\n"


def _sized(*lengths: str) -> bytes:
    return head("POST", "/v2/models/mean/infer", _RAW, *(f"Content-Length: {length}" for length in lengths))


def _chunks(*texts: bytes) -> bytes:
    return _CHUNKED + b"".join(texts)


_RUN = infer(MEAN_COLOUR, _RAW)
_ONE_CHUNK = b"30\r\n" + MEAN_COLOUR + b"\r\n"

_LENGTHS = {
    "negative": "-1", "float": "1.5", "huge": "9" * 40, "over int64": str(1 << 63), "over the body": "49", "empty": "",
    "plus": "+48", "hex": "0x30", "exponent": "4e1", "two words": "4 8", "comma": "48,48", "letters": "all",
    "unicode digits": "\u0664\u0668".encode().decode("latin-1"), "underscore": "4_8", "superscript": "\xb2",
}  # fmt: skip

HEADER_LENGTHS = (
    *(case(f"header length {name}", infer(MEAN_COLOUR, f"Inference-Header-Content-Length: {value}"), 400)
      for name, value in _LENGTHS.items()),
    case("header length twice", infer(MEAN_COLOUR, _RAW, _RAW), 400),
    case("header length twice, unlike", infer(MEAN_COLOUR, _RAW, "Inference-Header-Content-Length: 48"), 400),
    case("header length with zeros", infer(MEAN_COLOUR, "Inference-Header-Content-Length: 000"), 200, 400),
)  # fmt: skip

CONTENT_LENGTHS = (
    *(case(f"content length {name}", _sized(value) + MEAN_COLOUR, 400, closes=True)
      for name, value in {"negative": "-1", "plus": "+48", "float": "48.0", "hex": "0x30", "empty": "", "list": "48,48",
                          "words": "4 8", "over uint64": "9" * 30, "not ASCII": "\xb2"}.items()),
    case("content length twice, alike", _sized("48", "48") + MEAN_COLOUR, 400, closes=True),
    case("content length twice, unlike", _sized("48", "5") + MEAN_COLOUR, 400, closes=True),
    case("content length and chunks", head("POST", "/v2/models/mean/infer", _RAW, "Content-Length: 5",
         "Transfer-Encoding: chunked") + b"0\r\n\r\n" + SENTINEL, 400, closes=True),
    case("chunks and content length", head("POST", "/v2/models/mean/infer", _RAW, "Transfer-Encoding: chunked",
         "Content-Length: 5") + b"0\r\n\r\n" + SENTINEL, 400, closes=True),
    case("content length behind a space", head("POST", "/v1/classify", "Content-Length : 5") + b"GET /", 400,
         closes=True),
    case("no length, no body", head("POST", "/v1/classify"), 400),
    case("a body that GET announces", head("GET", _LIVE, length=3) + b"abc", 200),
)  # fmt: skip

CHUNKS = (
    case("chunks", _chunks(_ONE_CHUNK, b"0\r\n\r\n"), 200),
    case("chunk extension", _chunks(b"30;a=b;c\r\n", MEAN_COLOUR, b"\r\n0\r\n\r\n"), 200, 400, closes=False),
    case("one trailer", _chunks(_ONE_CHUNK, b"0\r\nX-Checksum: 1\r\n\r\n"), 200),
    case("chunk size no hex", _chunks(b"xyz\r\n"), 400, closes=True),
    case("chunk size negative", _chunks(b"-30\r\n", MEAN_COLOUR), 400, closes=True),
    case("chunk size huge", _chunks(b"F" * 40 + b"\r\n"), 400, closes=True),
    case("chunk size 0x", _chunks(b"0x30\r\n", MEAN_COLOUR), 400, closes=True),
    case("chunk size empty", _chunks(b"\r\n", MEAN_COLOUR), 400, closes=True),
    case("chunk longer than it says", _chunks(b"10\r\n", MEAN_COLOUR, b"\r\n0\r\n\r\n"), 400, closes=True),
    case("encoding after chunks", head("POST", "/v1/classify", "Transfer-Encoding: chunked, identity") + b"0\r\n\r\n",
         400,
         closes=True),
    case("encoding twice", head("POST", "/v1/classify", "Transfer-Encoding: chunked",
         "Transfer-Encoding: x") + b"0\r\n\r\n",
         400, closes=True),
    case("encoding unknown", head("POST", "/v1/classify", "Transfer-Encoding: xchunked") + b"0\r\n\r\n", 400,
         closes=True),
    case("many chunks", _chunks(b"1\r\nx\r\n" * 70_000, b"0\r\n\r\n"), 400),
)  # fmt: skip

LINES = (
    *(case(f"line {name}", _line(line), 400, closes=True)
      for name, line in {
          "empty": b" ", "one word": b"GET", "no version": b"GET /v2 ", "bad version": b"GET /v2 HTTP/x.y",
          "version 9": b"GET /v2 HTTP/9.9", "lower case": b"get /v2 http/1.1",
          "unknown method": b"BREW /v2 HTTP/1.1", "control in method": b"G\x01T /v2 HTTP/1.1",
          "long method": b"A" * 70_000 + b" /v2 HTTP/1.1", "connect": b"CONNECT a:1 HTTP/1.1",
          "tls hello": b"\x16\x03\x01\x02\x00\x01",
          "space in target": b"GET /v2 /x HTTP/1.1", "no slash": b"GET v2 HTTP/1.1",
          "NUL in target": b"GET /v2\x00 HTTP/1.1",
          "not ASCII in target": b"GET /\xff\xfe HTTP/1.1",
      }.items()),
    case("http 2 as if it were 1", _line(b"GET /v2 HTTP/2.0"), 200, 400, 505, closes=None),
    case("rtsp", _line(b"OPTIONS * RTSP/1.0"), 400, 404, 405, 505, closes=None),
    case("http 2 preface", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400, closes=True),
    case("http 0.9", b"GET /v2\r\n\r\n", 400, 421, closes=True),
    case("http 1.0", b"GET /v2 HTTP/1.0\r\n" + HOST + b"\r\n", 200, closes=True),
    case("http 1.0 with keep-alive", b"GET /v2 HTTP/1.0\r\n" + HOST + b"Connection: keep-alive\r\n\r\n", 200,
         closes=True),
    case("no host", b"GET /v2 HTTP/1.1\r\n\r\n", 400, 421),
    case("two hosts", head("GET", "/v2", "Host: evil.example"), 400),
    case("absolute form", _line(b"GET http://localhost/v2 HTTP/1.1"), 200),
    case("absolute form, other scheme", _line(b"GET gopher://localhost/v2 HTTP/1.1"), 200, 400),
    case("asterisk", _line(b"OPTIONS * HTTP/1.1"), 404, 405),
    case("empty lines first", b"\r\n\r\n\r\n" + _GET, 200),
    case("bare line feeds", b"GET /v2 HTTP/1.1\nHost: localhost\n\n", 200, 400, closes=True),
    case("folded header", _with(b"X: a\r\n b"), 400, closes=True),
    case("header without colon", _with(b"nonsense"), 400, closes=True),
    case("header without name", _with(b": x"), 400, closes=True),
    case("space in header name", _with(b"X Y: z"), 400, closes=True),
    case("NUL in header value", _with(b"X: a\x00b"), 400, closes=True),
    case("NUL in header name", _with(b"X\x00: a"), 400, closes=True),
    case("lone CR in header", _with(b"X: a\rb"), 400, closes=True),
    case("not ASCII in header value", _with(b"X: \xff\xfe\xe9"), 200),
    case("not ASCII in header name", _with(b"\xe9: x"), 400, closes=True),
)  # fmt: skip

METHODS = (
    *(case(f"{method} live", head(method, _LIVE), 405) for method in ("OPTIONS", "TRACE", "PUT", "DELETE", "PATCH",
          "POST")),
    case("HEAD live", head("HEAD", _LIVE), 200),
    case("HEAD unknown", head("HEAD", "/nothing"), 404),
    case("GET infer", head("GET", "/v2/models/mean/infer"), 405),
    case("HEAD infer", head("HEAD", "/v2/models/mean/infer"), 405),
    case("websocket", _with(b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
                            b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA=="), 200, closes=True),
    case("h2c", _with(b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk"), 200,
         closes=True),
    case("expect", head("POST", "/v1/classify", "Expect: 100-continue", length=1 << 30), 413, closes=True),
    case("expect nonsense", infer(MEAN_COLOUR, _RAW, "Expect: the-unexpected"), 200, 417),
)  # fmt: skip

PATHS = (
    *(case(f"path {path[:40]}", head("GET", path), 404)
      for path in (
          "/", "//", "/v2/../../etc/passwd", "/..%2f..%2fetc%2fpasswd", "/%2e%2e/%2e%2e/etc/passwd", "/v2/models/",
          "/v2/models//", "/v2/models/%00", "/v2/models/mean%00", "/v2/models/mean/versions/",
          "/v2/models/mean/versions/1/",
          "/v2/models/mean/versions/-1", "/v2/models/mean/versions/%C2%B2",
          "/v2/models/mean/versions/99999999999999999999", "/v2/models/mean/infer/infer",
          "/v2/models/Mean", "/v2/models/%ff%fe", "/v2/models/%zz", "/v2/models/%", "/v2;x=y",
          "/v2/models/..%252f..%252f", "/.git/config", "/v2/models/" + "a" * 5000, "/v2/models/%ed%a0%80",
          "/docs",
          "/v2/models/mean/config/", "/V2/health/live",
      )),
    case("escaped letters are the letters", head("GET", "/v2/models/%6dean"), 200),
    *(case(f"not offered: {method} {path}", head(method, path), 404, 405, 501)
      for method, path in (("GET", "/v2/logging"), ("POST", "/v2/logging"), ("GET", "/v2/trace/setting"),
                           ("POST", "/v2/systemsharedmemory/region/x/register"), ("GET", "/v2/cudasharedmemory/status"),
                           ("POST", "/v2/repository/models/mean/load"), ("POST", "/v2/repository/models/mean/unload"))),
    case("escaped slash", head("GET", "/v2/models/mean%2finfer"), 404, 405),
    case("query bomb", classify(b"x").replace(b"/v1/classify", b"/v1/classify?" + b"a=b&" * 1000), 400),
    case("query no UTF-8", classify(b"x").replace(b"/v1/classify", b"/v1/classify?top=%ff"), 400),
    case("query number unicode", classify(b"x").replace(b"/v1/classify", b"/v1/classify?top=%D9%A3"), 400),
    case("query number huge", classify(b"x").replace(b"/v1/classify", b"/v1/classify?top=" + b"9" * 5000), 400),
    case("fragment", head("GET", "/v2#x"), 200, 400, 404),
)  # fmt: skip

SIZES = (
    case("head of one long value", head("GET", _LIVE, "X: " + "y" * 70_000), 431, closes=True),
    case("head of many headers", head("GET", _LIVE, *(f"X{n}: y" for n in range(9000))), 431, closes=True),
    case("long target", head("GET", "/" + "a" * 70_000), 431, closes=True),
    case("long query", head("GET", _LIVE + "?" + "a" * 70_000), 431, closes=True),
    case("a thousand headers", head("GET", _LIVE, *(f"X{n}: y" for n in range(1000))), 200),
    case("large index body", post("/v2/repository/index", b" " * 5000), 413),
)


def _burst(request: bytes, count: int) -> bytes:
    return request * count


PIPELINES = (
    Case("three good in one packet", _burst(_GET, 3), ((200,),) * 3),
    Case("60 good in one packet", _burst(_RUN, 60), ((200,),) * 60),
    Case("300 good in one packet: 64 are taken", _burst(_RUN, 300), ((200,),) * 64, closes=True),
    Case("good, refused, good", _GET + infer(b"{") + _GET, ((200,), (400,), (200,))),
    Case("good, then broken", _GET + _line(b"BROKEN"), ((200,), (400,)), closes=True, may_end=True),
    Case("runs, then broken", _RUN * 5 + _line(b"BROKEN"), ((200,),) * 5 + ((400,),), closes=True, may_end=True),
    Case("good, then a head too large", _GET + SIZES[0].data, ((200,), (431,)), closes=True, may_end=True),
    Case("good, close, good", head("GET", _LIVE, "Connection: close") + _GET, ((200,),), closes=True),
    Case("upgrade refused, then good", METHODS[-3].data + _GET, ((200,), (200,)), closes=None, may_end=True),
    Case("good, then half a head", _GET + b"GET /v2", ((200,), (408,)), closes=True, may_end=True),
    Case("runs, then half a body", _RUN * 3 + _sized("48"), ((200,),) * 3 + ((408,),), closes=True, may_end=True),
)

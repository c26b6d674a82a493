"""One HTTP request and its answer, on the bare ASGI interface."""

from __future__ import annotations

import itertools
import re
import secrets
import sys
import urllib.parse
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import Any

import orjson

from edgetune.serve.errors import ClientGone, RequestError
from edgetune.serve.http.body import Body

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

JSON = "application/json"
REQUEST_ID = "x-request-id"
# Under this key of the scope the protocol leaves a function that takes what to call when the client leaves.
WHEN_GONE = "edgetune.when_gone"
# Under this one, the body that it collects; without it, as under another server, the body comes by ASGI's `receive`.
BODY = "edgetune.body"
# And under this one, a function that writes a whole answer.
ANSWER = "edgetune.answer"

_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,64}")
_prefix = secrets.token_hex(4)
_numbers = itertools.count(1)


@dataclass
class Answer:
    """`headers` in lower case; the length is added when it is written."""

    status: int
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


def json_answer(content: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Answer:
    return Answer(status, orjson.dumps(content), {"content-type": JSON, **(headers or {})})


class Request:
    """What a handler may know of a request. `params` are the parts of the path that vary."""

    def __init__(self, scope: Scope, receive: Receive) -> None:
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self.params: dict[str, str] = {}
        self._scope = scope
        self._receive = receive
        # The last of several equal headers, save where several make no sense: see `single`.
        self.headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        given = self.headers.get(REQUEST_ID, "")
        self.id = given if _REQUEST_ID.fullmatch(given) else f"{_prefix}-{next(_numbers):x}"

    def single(self, name: str) -> str | None:
        """A header that decides how the body is read. Raises `RequestError` 400 where it comes twice."""
        given = self._scope["headers"]
        if len(given) > len(self.headers) and sum(key == name.encode() for key, _ in given) > 1:
            raise RequestError(400, f"the header {name} comes more than once")
        return self.headers.get(name)

    def query(self) -> dict[str, str]:
        """Raises `RequestError` 400 for a query that is no UTF-8, or has more than 16 parts."""
        text = self._scope["query_string"].decode("latin-1")
        try:
            return dict(urllib.parse.parse_qsl(text, keep_blank_values=True, errors="strict", max_num_fields=16))
        except ValueError as error:
            raise RequestError(400, "the query is not a short list of key=value in UTF-8") from error

    def integer(self, key: str, default: int, low: int, high: int) -> int:
        """A whole number of the query. Raises `RequestError` 400."""
        text = self.query().get(key, str(default))
        if not (text.isascii() and text.isdigit() and len(text) < 10 and low <= int(text) <= high):
            raise RequestError(400, f"the query parameter {key!r} is {text[:16]!r}, expected a number in {low}..{high}")
        return int(text)

    def when_gone(self, leave: Callable[[], None]) -> None:
        """Has `leave` called if the client closes its connection before it has its answer."""
        register = self._scope.get(WHEN_GONE)
        if register is not None:
            register(leave)

    async def read_body(self, max_bytes: int) -> bytes | bytearray:
        """Raises `RequestError` 413 over the limit, and `ClientGone`; the protocol answers what arrives too slowly."""
        if self.announced_bytes() > max_bytes:
            raise _too_large(max_bytes)
        collected: Body | None = self._scope.get(BODY)
        if collected is not None:
            return await collected.read(max_bytes)
        body = bytearray()
        while True:
            message = await self._receive()
            if message["type"] != "http.request":
                raise ClientGone
            chunk: bytes = message.get("body", b"")
            more = message.get("more_body", False)
            if len(body) + len(chunk) > max_bytes:
                raise _too_large(max_bytes)
            if not body and not more:
                return chunk
            body += chunk
            if not more:
                return body

    def drop_body(self) -> None:
        """The answer is made: what was not read is not kept for as long as the connection lives."""
        collected: Body | None = self._scope.get(BODY)
        if collected is not None:
            collected.drop()

    def announced_bytes(self) -> int:
        """The Content-Length; 0 where the body comes in chunks, or there is none."""
        text = self.headers.get("content-length", "0")
        if not (text.isascii() and text.isdigit()):
            return 0
        return int(text) if len(text) < 19 else sys.maxsize

    @property
    def is_chunked(self) -> bool:
        return "transfer-encoding" in self.headers


def _too_large(max_bytes: int) -> RequestError:
    return RequestError(413, f"the body is over the limit of {max_bytes} bytes", reason="too_large")


async def write_answer(answer: Answer, scope: Scope, send: Send) -> None:
    write = scope.get(ANSWER)
    if write is not None:
        head = "".join([f"{name}: {value}\r\n" for name, value in answer.headers.items()])
        await write(answer.status, head.encode("latin-1"), answer.body)
        return
    headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in answer.headers.items()]
    headers.append((b"content-length", str(len(answer.body)).encode()))
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    await send({"type": "http.response.body", "body": answer.body})

"""A server of raw bytes on a real socket: it answers whatever a test wants, right or wrong."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

METADATA: dict[str, Any] = {
    "name": "m",
    "inputs": [{"name": "image", "datatype": "UINT8", "shape": [-1, 2, 2, 3]}],
    "outputs": [{"name": "logits", "datatype": "FP32", "shape": [-1, 2]}],
}


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    headers: dict[str, str]
    body: bytes


Reply: TypeAlias = "bytes | Callable[[Request], Iterable[bytes]]"


def http(content: Any, status: str = "200 OK", **headers: str) -> bytes:
    """A whole answer; `content` is bytes, or becomes JSON. Underscores in the headers' names are dashes."""
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    lines = {"Content-Length": str(len(body)), **{name.replace("_", "-"): value for name, value in headers.items()}}
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    return f"HTTP/1.1 {status}\r\n{head}\r\n".encode() + body


def answer(*rows: list[float], **changes: Any) -> dict[str, Any]:
    """The message that answers an infer request with these logits as JSON; `changes` are the output's."""
    data = [value for row in rows for value in row]
    output = {"name": "logits", "datatype": "FP32", "shape": [len(rows), 2], "data": data, **changes}
    return {"model_name": "m", "model_version": "1", "outputs": [output]}


class RawServer:
    """One connection at a time; it is kept for the next request, unless `keeps` is False or a reply breaks off.

    `replies` are found by path. `requests` has what came, `connections` how many were opened, `sent` the bytes that
    the client took.
    """

    def __init__(self, replies: dict[str, Reply], *, keeps: bool = True) -> None:
        self.replies = replies
        self.keeps = keeps
        self.requests: list[Request] = []
        self.connections = 0
        self.sent = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._thread = threading.Thread(target=self._serve)
        self._over = threading.Event()
        self._connection: socket.socket | None = None
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> RawServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for open_socket in (self._listener, self._connection):
            if open_socket is not None:
                with contextlib.suppress(OSError):
                    open_socket.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(timeout=20)
        assert not self._thread.is_alive()

    def pause(self, seconds: float) -> None:
        """Ends early when the test does."""
        self._over.wait(seconds)

    def _serve(self) -> None:
        while not self._over.is_set():
            with contextlib.suppress(OSError):
                self._connection, _ = self._listener.accept()
                self.connections += 1
                with self._connection:
                    self._converse(self._connection)

    def _converse(self, connection: socket.socket) -> None:
        with connection.makefile("rb") as stream:
            while not self._over.is_set() and (request := _read(stream)) is not None:
                self.requests.append(request)
                reply = self.replies[request.path]
                for part in [reply] if isinstance(reply, bytes) else reply(request):
                    connection.sendall(part)
                    self.sent += len(part)
                if not self.keeps:
                    return


def _read(stream: Any) -> Request | None:
    first = stream.readline().decode("latin-1").split()
    if len(first) != 3 or not first[2].startswith("HTTP/"):
        return None
    headers: dict[str, str] = {}
    while line := stream.readline().decode("latin-1").strip():
        name, _, value = line.partition(":")
        headers[name.lower()] = value.strip()
    return Request(first[0], first[1], headers, stream.read(int(headers.get("content-length", "0"))))


@contextlib.contextmanager
def serving(infer: Reply = b"", *, keeps: bool = True, **replies: Any) -> Iterator[RawServer]:
    """A model `m` whose metadata is right, and `infer` as it is given.

    `server`, `model`, `config`, `index` and `classify` are the other replies.
    """
    known: dict[str, Reply] = {
        "/v2": replies.get("server", http({"name": "raw", "version": "7", "models": ["m"]})),
        "/v2/models/m": replies.get("model", http(METADATA)),
        "/v2/models/m/config": replies.get("config", http({"error": "unknown"}, "404 Not Found")),
        "/v2/models/m/infer": infer,
        "/v1/classify?top=1&logits=1": replies.get("classify", b""),
        "/v2/repository/index": replies.get("index", b""),
    }
    with RawServer(known, keeps=keeps) as server:
        yield server

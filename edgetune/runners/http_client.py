"""HTTP to one server that may do anything: bounded in time and memory, and every failure in one line."""

from __future__ import annotations

import functools
import http.client
import io
import json
import socket
import ssl
import time
from dataclasses import dataclass, field
from typing import IO, Any
from urllib.parse import SplitResult, urlsplit

from edgetune.core.errors import AddressError, EdgetuneError, ModelError, UsageError, first_line

# What an answer may weigh beside its tensors: the messages of errors, names, white space.
SMALL_ANSWER_BYTES = 1 << 16

_CHUNK_BYTES = 1 << 16
_LONGEST_PAUSE_S = 10
_EXAMPLE = "for example http://127.0.0.1:8000"
_START = "start one with edgetune serve BUNDLE, and give the address that it prints"
_TLS = "is it http:// in place of https://? A certificate must be one that this machine trusts"
_SLOW = "is the server overloaded? try again, or with a longer timeout"


@dataclass(frozen=True)
class Call:
    """One request; `path` begins with a slash, and the answer's body may have `max_bytes`."""

    method: str
    path: str
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    max_bytes: int = SMALL_ANSWER_BYTES


@dataclass(frozen=True)
class Answer:
    """`source` says who answered what, for messages; the names of `headers` are lower-case."""

    source: str
    status: int
    headers: dict[str, str]
    body: bytes


class HttpClient:
    """A connection to one server, kept alive between calls and made again where the server closed it meanwhile.

    `timeout_s` is for a whole call, from its first byte to its last. A call may reach the server twice, so it must
    be one that changes nothing there. `connections` counts how often a connection was made. One thread at a time.

    Raises:
        UsageError: `url` is more, or less, than a scheme, a host and a port.
    """

    def __init__(self, url: str, timeout_s: float) -> None:
        if not 0 < timeout_s < float("inf"):
            raise UsageError(f"the timeout is {timeout_s} s, expected a number of seconds above 0.")
        scheme, self._host, port = _split(url)
        shown = f"[{self._host}]" if ":" in self._host else self._host
        self.url = f"{scheme}://{shown}" + (f":{port}" if port else "")
        self.connections = 0
        self._timeout_s = timeout_s
        kind = http.client.HTTPSConnection if scheme == "https" else http.client.HTTPConnection
        self._connection = kind(self._host, port, timeout=timeout_s)

    def ask(self, call: Call) -> Answer:
        """The answer, whatever its status; one that says that the server is busy (503) only after a second try.

        Raises:
            AddressError: there is no connection.
            ModelError: no whole answer came, in time and within `max_bytes`, or it points elsewhere.
        """
        answer = self._ask_once(call)
        if answer.status == 503:
            time.sleep(_pause_s(answer))
            answer = self._ask_once(call)
        if 300 <= answer.status < 400:
            target = shortened(answer.headers.get("location", "nowhere"))
            raise ModelError(
                f"{answer.source}: HTTP {answer.status}, a redirect to {target}, which is not followed.",
                hint="give the address of the server itself",
            )
        return answer

    def close(self) -> None:
        self._connection.close()

    def _ask_once(self, call: Call) -> Answer:
        """Over a connection that was kept alive, a call may find that the server has closed it: once more, then."""
        is_kept = self._connection.sock is not None
        try:
            return self._exchange(call)
        except ConnectionError as error:
            if not is_kept:
                said = shortened(first_line(error))
                source = self._source(call)
                raise ModelError(f"{source}: the connection was closed without an answer: {said}.") from error
        return self._ask_once(call)  # over a new connection, so that there is no third time

    def _exchange(self, call: Call) -> Answer:
        """Raises `ConnectionError` where the connection ends before the answer's head, else as `ask`."""
        source = self._source(call)
        try:
            if self._connection.sock is None:
                self._connect()
            return self._receive(self._send(call), call, source)
        except (ConnectionError, EdgetuneError):
            self.close()
            raise
        except (OSError, http.client.HTTPException) as error:
            self.close()
            raise self._explained(source, error) from error

    def _connect(self) -> None:
        self.connections += 1
        try:
            self._connection.connect()
        except socket.gaierror as error:
            raise AddressError(
                f"{self.url}: the host name {self._host!r} is not known here: {error.strerror}.", hint=_START
            ) from error
        except ssl.SSLError as error:
            raise AddressError(
                f"{self.url}: no TLS connection: {first_line(error)}.",
                hint=_TLS,
            ) from error
        except TimeoutError as error:
            raise AddressError(f"{self.url} took no connection within {self._timeout_s:g} s.", hint=_START) from error
        except ConnectionRefusedError as error:
            raise AddressError(f"nothing listens at {self.url}.", hint=_START) from error
        except OSError as error:
            reason = error.strerror or first_line(error)
            raise AddressError(f"{self.url} cannot be reached: {reason}.", hint=_START) from error

    def _send(self, call: Call) -> http.client.HTTPResponse:
        """The answer's head. A server may answer, and close, before it has read a body that is too large for it."""
        connection = self._connection
        connection.sock.settimeout(self._timeout_s)
        # Python's client bounds each read alone, so that a byte now and then would hold it for ever.
        deadline = time.monotonic() + self._timeout_s
        connection.response_class = functools.partial(_open_answer, deadline)  # type: ignore[assignment]
        try:
            connection.request(call.method, call.path, call.body or None, call.headers)
        except ConnectionError as error:
            try:
                return connection.getresponse()
            except (OSError, http.client.HTTPException):
                raise error from None
        return connection.getresponse()

    def _receive(self, response: http.client.HTTPResponse, call: Call, source: str) -> Answer:
        headers = {name.lower(): value for name, value in response.getheaders()}
        encoding = headers.get("content-encoding", "identity")
        if encoding.lower() != "identity":
            raise ModelError(f"{source}: the answer is encoded as {shortened(encoding)!r}, expected plain bytes.")
        with response:
            body = self._read_body(response, call.max_bytes, source)
            if not response.isclosed():  # more is to come, which the next call must not take for its own answer
                self.close()
        return Answer(source, response.status, headers, body)

    def _read_body(self, response: http.client.HTTPResponse, max_bytes: int, source: str) -> bytes:
        """Of an error only the beginning is wanted, and the rest is left."""
        is_error = response.status != 200
        limit = SMALL_ANSWER_BYTES if is_error else max_bytes
        announced = response.length
        if not is_error and announced is not None and announced > limit:
            raise _too_large(source, str(announced), limit)
        body = bytearray()
        while len(body) <= limit and (chunk := self._read(response, source)):
            body += chunk
        if len(body) > limit and not is_error:
            raise _too_large(source, f"more than {limit}", limit)
        if announced is not None and len(body) < min(announced, limit):
            raise ModelError(f"{source}: the answer ends after {len(body)} of {announced} bytes.")
        return bytes(body)

    @staticmethod
    def _read(response: http.client.HTTPResponse, source: str) -> bytes:
        try:
            return response.read(_CHUNK_BYTES)
        except ConnectionError as error:  # not before the head any more, so that asking again would not help
            raise ModelError(f"{source}: the connection broke in the middle of the answer.") from error

    def _explained(self, source: str, error: Exception) -> EdgetuneError:
        if isinstance(error, TimeoutError):
            return ModelError(f"{source}: no whole answer within {self._timeout_s:g} s.", hint=_SLOW)
        if isinstance(error, http.client.IncompleteRead):
            return ModelError(f"{source}: the connection ended in the middle of the answer.")
        if isinstance(error, http.client.HTTPException):
            said = shortened(first_line(error))
            return ModelError(f"{source}: the answer is no HTTP: {type(error).__name__}: {said}.", hint=_START)
        return ModelError(f"{source}: the connection failed: {shortened(first_line(error))}.")

    def _source(self, call: Call) -> str:
        return f"{self.url} ({call.method} {call.path})"


def accepted(answer: Answer, hint: str = "") -> Answer:
    """Raises `ModelError` for an answer whose status is not 200."""
    if answer.status != 200:
        raise ModelError(refusal(answer), hint=hint)
    return answer


def refusal(answer: Answer) -> str:
    """The sentence for an answer whose status is not 200, with the server's own words."""
    try:
        said = json.loads(answer.body)
    except (ValueError, RecursionError):
        said = None
    message = said.get("error") if isinstance(said, dict) else None
    text = message if isinstance(message, str) else answer.body[:1000].decode("utf-8", "replace")
    return f"{answer.source}: HTTP {answer.status}: {shortened(text).rstrip('.') or 'without a word'}."


def shortened(text: str, longest: int = 300) -> str:
    """One line of a stranger's text that a terminal can be shown."""
    line = " ".join("".join(char if char.isprintable() else " " for char in text[: 4 * longest]).split())
    return line if len(line) <= longest else line[:longest] + "..."


def _open_answer(deadline: float, sock: socket.socket, **options: Any) -> http.client.HTTPResponse:
    return http.client.HTTPResponse(_TimedSocket(sock, deadline), **options)  # type: ignore[arg-type]


class _TimedSocket:
    """All that `HTTPResponse` wants of a socket: a file to read from, here up to a deadline."""

    def __init__(self, sock: socket.socket, deadline: float) -> None:
        self._sock = sock
        self._deadline = deadline

    def makefile(self, _mode: str) -> IO[bytes]:
        return io.BufferedReader(_TimedReader(self._sock, self._deadline))


class _TimedReader(io.RawIOBase):
    """Keeps the socket open until it is closed itself, as the socket's own files do."""

    def __init__(self, sock: socket.socket, deadline: float) -> None:
        self._sock = sock
        self._deadline = deadline
        self._raw = sock.makefile("rb", buffering=0)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        left_s = self._deadline - time.monotonic()
        if left_s <= 0:
            raise TimeoutError
        self._sock.settimeout(left_s)
        return self._raw.readinto(buffer)

    def close(self) -> None:
        self._raw.close()
        super().close()


def _split(url: str) -> tuple[str, str, int | None]:
    """Scheme, host and port; a password is not shown, not even in an error."""
    if "@" in url:
        raise UsageError("the server's URL holds a user name or password, which are not supported.", hint=_EXAMPLE)
    try:
        parts = urlsplit(url)
        port, host = parts.port, parts.hostname or ""
        host.encode("idna")
    except ValueError as error:  # UnicodeError is one
        raise UsageError(f"{shortened(url)!r} is no URL: {first_line(error)}.", hint=_EXAMPLE) from error
    problem = _problem(url, parts, host, port)
    if problem:
        raise UsageError(f"{shortened(url)!r} is not the URL of a server: {problem}.", hint=_EXAMPLE)
    return parts.scheme, host, port


def _problem(url: str, parts: SplitResult, host: str, port: int | None) -> str:
    if any(char.isspace() or not char.isprintable() for char in url):
        return "it holds white space or control characters"
    if parts.scheme not in {"http", "https"}:
        return f"the scheme is {parts.scheme!r}, expected http or https"
    if not host or port == 0:
        return "it names no port that can be reached" if host else "it names no host"
    if parts.path not in {"", "/"} or parts.query or parts.fragment:
        return "it goes on after the host and port"
    return ""


def _pause_s(answer: Answer) -> int:
    text = answer.headers.get("retry-after", "")
    return min(int(text), _LONGEST_PAUSE_S) if text.isascii() and text.isdigit() and len(text) < 6 else 1


def _too_large(source: str, came: str, limit: int) -> ModelError:
    return ModelError(f"{source}: the answer has {came} bytes, at most {limit} were expected.")

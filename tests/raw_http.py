"""Servers as processes and HTTP as bytes, for tests that send what no client library would."""

from __future__ import annotations

import contextlib
import json
import re
import select
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

HOST = b"Host: localhost\r\n"
MEAN_COLOUR = bytes((10, 20, 30)) * 16  # of `mean_bundle`'s 4x4 image, whose logits are -20 and 30
SENTINEL = b"GET /v2/health/live HTTP/1.1\r\nHost: localhost\r\nX-Request-Id: sentinel\r\n\r\n"

# What no answer may hold: paths, code, addresses in memory, and the names of what we are made of.
_INTERNAL = re.compile(
    rb"/(tmp|home|root|usr|opt|work|proc)/|\.py\b|Traceback|File \\?\"|0x[0-9a-f]{6,}|site-packages|asyncio|uvicorn|"
    rb"orjson|PIL\b|<[A-Za-z_.]+ (object|at)\b"
)


@dataclass(frozen=True)
class Answer:
    """`headers` with their names in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def error(self) -> str:
        content = json.loads(self.body)
        assert list(content) == ["error"], content
        assert isinstance(content["error"], str)
        return content["error"]


@dataclass(frozen=True)
class Case:
    """Bytes to send, and the answers that they must get: for each the statuses that are right. Then the connection is
    closed, or takes another request; None for either. With `may_end`, it may be closed before all have come, and those
    that came must be the first ones all the same.
    """

    name: str
    data: bytes
    answers: tuple[tuple[int, ...], ...]
    closes: bool | None = False
    may_end: bool = False


def case(name: str, data: bytes, *statuses: int, closes: bool | None = False) -> Case:
    """For one answer."""
    return Case(name, data, (statuses,), closes)


class Connection:
    """A TCP connection that reads whole answers; each read waits `timeout_s` at most, and then fails as a hang."""

    def __init__(
        self, place: int | Path, timeout_s: float = 5.0, tls: ssl.SSLContext | None = None, buffer: int = 0
    ) -> None:
        """To a port, or a Unix socket's path. `buffer` is what the kernel keeps of answers that are not read."""
        plain = socket.socket(socket.AF_UNIX if isinstance(place, Path) else socket.AF_INET)
        if buffer:
            plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        plain.settimeout(timeout_s)
        plain.connect(str(place) if isinstance(place, Path) else ("127.0.0.1", place))
        if not isinstance(place, Path):
            plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket = plain if tls is None else tls.wrap_socket(plain, server_hostname="localhost")
        self._buffer = b""

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, data: bytes) -> bool:
        """False where the server has closed before it took everything."""
        try:
            self.socket.sendall(data)
        except (BrokenPipeError, ConnectionResetError):
            return False
        return True

    def answer(self, *, has_body: bool = True) -> Answer | None:
        """The next answer; None where the server has closed."""
        while (end := self._buffer.find(b"\r\n\r\n")) < 0:
            if not self._receive():
                assert not self._buffer, f"closed in the middle of an answer: {self._buffer[:200]!r}"
                return None
        lines = self._buffer[:end].decode("latin-1").split("\r\n")
        assert re.fullmatch(r"HTTP/1\.1 [1-5]\d\d .*", lines[0]), lines[0]
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:])}
        length = int(headers.get("content-length", 0)) if has_body else 0
        while len(self._buffer) < end + 4 + length:
            assert self._receive(), f"closed in the middle of a body: {self._buffer[:200]!r}"
        body = self._buffer[end + 4 : end + 4 + length]
        self._buffer = self._buffer[end + 4 + length :]
        return Answer(int(lines[0][9:12]), headers, body)

    def expect(self, *statuses: int) -> Answer:
        """The next answer, which must be one of these, as `check_answer` has it."""
        answer = self.answer()
        assert answer is not None, "closed without an answer"
        check_answer(answer, statuses)
        return answer

    def expect_end(self) -> None:
        """Closed by the server, without another word."""
        answer = self.answer()
        assert answer is None, f"an answer too many: {answer}"

    def has_data(self) -> bool:
        """Whether something of an answer has come, or the end."""
        return bool(select.select([self.socket], [], [], 0)[0])

    def is_open(self) -> bool:
        """Whether it takes another request, and has no answer in store that nobody asked for."""
        if not self.send(SENTINEL):
            return False
        answer = self.answer()
        if answer is None:
            return False
        assert answer.headers.get("x-request-id") == "sentinel", f"an answer too many: {answer}"
        return True

    def seconds_until_closed(self) -> float:
        """Whatever else comes is dropped."""
        started = time.monotonic()
        while self._receive():
            self._buffer = b""
        return time.monotonic() - started

    def _receive(self) -> bool:
        try:
            data = self.socket.recv(1 << 16)
        except ConnectionResetError:
            return False
        except TimeoutError:
            raise AssertionError(
                f"no answer within {self.socket.gettimeout()} s; so far {self._buffer[:200]!r}"
            ) from None
        self._buffer += data
        return bool(data)


@dataclass(frozen=True)
class Server:
    """A running `edgetune serve`; `log` is its stderr."""

    process: subprocess.Popen[bytes]
    port: int
    log: Path

    def ask(self, data: bytes, *, timeout_s: float = 5.0) -> Answer:
        """One request on a connection of its own."""
        with Connection(self.port, timeout_s) as connection:
            connection.send(data)
            answer = connection.answer()
        assert answer is not None, "closed without an answer"
        return answer

    def metrics(self) -> dict[str, float]:
        """By name with labels, as the page has them."""
        answer = self.ask(b"GET /metrics HTTP/1.1\r\n" + HOST + b"Connection: close\r\n\r\n")
        assert answer.status == 200
        pairs = (line.rsplit(" ", 1) for line in answer.body.decode().splitlines() if not line.startswith("#"))
        return {name: float(value) for name, value in pairs}

    def gauges(self) -> tuple[float, float, float]:
        """Items that wait, requests in work and connections, without those of the question itself."""
        metrics = self.metrics()
        return (
            metrics["edgetune_queue_length"],
            metrics["edgetune_inflight_requests"] - 1,
            metrics["edgetune_open_connections"] - 1,
        )

    def rejected(self, reason: str) -> float:
        return self.metrics()[f'edgetune_rejected_total{{reason="{reason}"}}']

    def wait_until_quiet(self, limit_s: float = 5.0) -> None:
        """Fails where requests or connections stay that nobody has."""
        end_s = time.monotonic() + limit_s
        while (gauges := self.gauges()) != (0, 0, 0):
            assert time.monotonic() < end_s, f"queue, requests and connections are {gauges}, expected none"
            time.sleep(0.05)

    def memory_bytes(self, key: str = "VmRSS") -> int:
        """Of its status: VmRSS, or VmHWM, the most since `forget_peak`."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        found = re.search(rf"{key}:\s+(\d+) kB", status)
        assert found, status
        return int(found[1]) * 1024

    def forget_peak(self) -> None:
        Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")


@contextlib.contextmanager
def server_process(bundle: Path, log: Path, *options: str) -> Iterator[Server]:
    """Ends it with SIGKILL, if it has not ended."""
    command = [sys.executable, "-m", "edgetune.cli.main", "serve", str(bundle), "--port", "0", *options]
    with log.open("wb") as stream:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=stream, cwd=bundle.parent)
    try:
        yield Server(process, _port(process, log), log)
    finally:
        process.kill()
        process.wait(timeout=20)


def _port(process: subprocess.Popen[bytes], log: Path) -> int:
    end_s = time.monotonic() + 60
    while time.monotonic() < end_s and process.poll() is None:
        found = re.search(r"^ready: .*:(\d+)$", log.read_text(), re.MULTILINE)
        if found:
            return int(found[1])
        time.sleep(0.02)
    raise AssertionError(f"the server did not start: {log.read_text()}")


def write_limits(path: Path, limits: Mapping[str, float]) -> Path:
    """A configuration file for `--config`."""
    path.write_text("[limits]\n" + "".join(f"{key} = {value}\n" for key, value in limits.items()))
    return path


def head(method: str, path: str, *headers: str, length: int | None = None) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "Host: localhost", *headers]
    if length is not None:
        lines.append(f"Content-Length: {length}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


def post(path: str, body: bytes, *headers: str) -> bytes:
    return head("POST", path, *headers, length=len(body)) + body


def infer(body: bytes, *headers: str) -> bytes:
    return post("/v2/models/mean/infer", body, *headers)


def classify(body: bytes, *headers: str) -> bytes:
    return post("/v1/classify", body, *headers)


def binary_infer(message: object, blob: bytes = b"") -> bytes:
    """With a JSON head, written as compactly as may be, and binary data behind it."""
    text = json.dumps(message, separators=(",", ":")).encode()
    return infer(text + blob, f"Inference-Header-Content-Length: {len(text)}")


def check_answer(answer: Answer, statuses: Sequence[int], *, has_body: bool = True) -> None:
    """The status is right, an error is one JSON object, and nothing of our inside is told."""
    assert answer.status in statuses, f"{answer.status} {answer.body[:300]!r}, expected {statuses}"
    assert not _INTERNAL.search(answer.body), answer.body[:500]
    if answer.status >= 400 and has_body:
        assert answer.headers["content-type"] == "application/json"
        assert 3 <= len(answer.error) < 600


def check_case(port: int, asked: Case, timeout_s: float = 5.0) -> None:
    """Sends a case and holds the answers and the connection's state against it."""
    has_body = not asked.data.startswith(b"HEAD ")
    with Connection(port, timeout_s) as connection:
        connection.send(asked.data)
        for statuses in asked.answers:
            answer = connection.answer(has_body=has_body)
            if answer is None and asked.may_end:
                return
            assert answer is not None, "closed without an answer"
            check_answer(answer, statuses, has_body=has_body)
        if asked.closes:
            assert (more := connection.answer()) is None, f"an answer too many: {more}"
        elif asked.closes is not None:
            assert connection.is_open(), "closed, expected to take another request"

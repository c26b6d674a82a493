"""The load generator of `load/`: compiled on the spot, told what to send, its report read."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Report = dict[str, Any]

_SOURCES = Path(__file__).resolve().parent / "load"
_SPARE_S = 60.0


@dataclass(frozen=True)
class Template:
    """A whole HTTP request, and what its answer must be to count as ok; the body is checked where `equals` or
    `contains` is given.
    """

    request: bytes
    weight: int = 1
    status: int = 200
    equals: bytes | None = None
    contains: bytes | None = None


@dataclass(frozen=True)
class Plan:
    """For `seconds`, or `requests` of them. `rate` in requests per second makes it an open loop, in which a request
    that finds no free connection waits `patience_s` and is then counted as unsent.
    """

    connections: int = 1
    seconds: float = 0.0
    requests: int = 0
    rate: float = 0.0
    poisson: bool = False
    timeout_s: float = 10.0
    patience_s: float | None = None


def post(path: str, body: bytes, headers: dict[str, str] | None = None) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: 127.0.0.1", f"Content-Length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    return "\r\n".join([*lines, "", ""]).encode() + body


def get(path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode()


class Running:
    """A run that goes on until its plan is over or `stop` ends it; the requests on their way are waited for."""

    def __init__(self, process: subprocess.Popen[str], limit_s: float) -> None:
        self._process = process
        self._limit_s = limit_s

    def stop(self) -> Report:
        self._process.send_signal(signal.SIGTERM)
        return self.report()

    def report(self) -> Report:
        said, _ = self._process.communicate(timeout=self._limit_s)
        if self._process.returncode:
            raise RuntimeError(f"the load generator ended with {self._process.returncode}")
        report: Report = json.loads(said)
        return report

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()


class LoadGenerator:
    """`folder` holds the compiled program and the request files."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._program = folder / "load"
        self._files = 0
        sources = sorted(str(path) for path in _SOURCES.glob("*.c"))
        subprocess.run(["cc", "-O2", "-std=c11", "-o", str(self._program), *sources, "-lm"], check=True)

    def run(self, port: int, templates: Sequence[Template], plan: Plan) -> Report:
        with self.running(port, templates, plan) as running:
            return running.report()

    @contextmanager
    def running(self, port: int, templates: Sequence[Template], plan: Plan) -> Iterator[Running]:
        command = [str(self._program), "--port", str(port), *_plan_words(plan)]
        for template in templates:
            command += self._template_words(template)
        # A plan of a number of requests ends when the slowest connection has timed out for each of its share.
        limit_s = plan.seconds + plan.timeout_s * (1 + plan.requests / plan.connections) + _SPARE_S
        running = Running(subprocess.Popen(command, stdout=subprocess.PIPE, text=True), limit_s)
        try:
            yield running
        finally:
            running.kill()

    def _template_words(self, template: Template) -> list[str]:
        words = ["--request", self._write(template.request)]
        words += ["--weight", str(template.weight), "--status", str(template.status)]
        if template.equals is not None:
            words += ["--equals", self._write(template.equals)]
        if template.contains is not None:
            words += ["--contains", self._write(template.contains)]
        return words

    def _write(self, data: bytes) -> str:
        self._files += 1
        path = self._folder / f"{self._files}.bin"
        path.write_bytes(data)
        return str(path)


@contextmanager
def load_generator() -> Iterator[LoadGenerator]:
    """Raises `FileNotFoundError` where there is no C compiler `cc`."""
    with tempfile.TemporaryDirectory(prefix="load-") as folder:
        yield LoadGenerator(Path(folder))


def has_compiler() -> bool:
    return shutil.which("cc") is not None


def _plan_words(plan: Plan) -> list[str]:
    words = ["--connections", str(plan.connections), "--timeout-ms", str(plan.timeout_s * 1e3)]
    words += ["--requests", str(plan.requests)] if plan.requests else ["--seconds", str(plan.seconds)]
    if plan.rate:
        words += ["--rate", str(plan.rate)]
    if plan.poisson:
        words += ["--poisson"]
    if plan.patience_s is not None:
        words += ["--patience-ms", str(plan.patience_s * 1e3)]
    return words

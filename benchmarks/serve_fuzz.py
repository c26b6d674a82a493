"""Fuzzes a running `edgetune serve` over raw sockets, and says what it did.

Good requests of every endpoint are flipped, cut, spliced, repeated and edited, and sent over many connections that are
kept as long as the server keeps them. A request may be answered, with any status but 500, or its connection be closed;
one that gets neither within 5 s hangs. Between them good requests go over connections of their own, and must get the
bundle's golden logits. The requests that led to a 500, a hang or an answer that is no HTTP are written to `--work`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.serve_fuzz_requests import Fuzzer, good_requests
from benchmarks.serve_processes import Server, ask, edgetune_server
from benchmarks.serve_requests import raw_call
from edgetune.core.bundle import load_bundle
from edgetune.core.golden import load_golden

HANG_S = 5.0
_GOOD_EVERY = 50
_STATUS = re.compile(rb"HTTP/1\.1 ([1-5]\d\d) [^\r\n]*\r\n")
# So short that requests which are not whole do not hold their connections for long.
_CONFIG = """[limits]
header_timeout_s = 0.5
body_timeout_s = 0.5
keep_alive_s = 2.0
max_json_bytes = 1000000
"""
_INTERNAL = re.compile(rb"Traceback|\.py\b|site-packages|/(tmp|home|root|usr)/|0x[0-9a-f]{8}")


@dataclass
class Findings:
    """`bad` are the kinds of what must not be, by the file that its bytes are in."""

    work: Path
    sent: int = 0
    statuses: Counter[int] = field(default_factory=Counter)
    closed: int = 0
    refused: int = 0
    good_right: int = 0
    good_busy: int = 0
    bad: dict[str, str] = field(default_factory=dict)

    def keep(self, kind: str, request: bytes, answer: bytes) -> None:
        name = f"{kind}-{len(self.bad)}"
        self.bad[name] = kind
        if len(self.bad) <= 100:
            (self.work / f"{name}.request").write_bytes(request)
            (self.work / f"{name}.answer").write_bytes(answer)


class Link(asyncio.Protocol):
    """One connection: what was sent on it, and the answers that have come."""

    def __init__(self, findings: Findings) -> None:
        self._findings = findings
        self._buffer = b""
        self.history = b""
        self.is_closed = False
        self.happened = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: Any = transport

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        if self._buffer and b"HEAD " not in self.history:
            self._findings.keep("half-answer", self.history, self._buffer)
        self.is_closed = True
        self.happened.set()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while (end := self._buffer.find(b"\r\n\r\n")) >= 0:
            head = self._buffer[: end + 2]
            status = _STATUS.match(head)
            if status is None:
                if b"HEAD " not in self.history:  # whose answers have a length and no body
                    self._findings.keep("no-http", self.history, self._buffer)
                self.transport.abort()
                return
            found = re.search(rb"\r\ncontent-length: (\d+)\r\n", head)
            length = int(found[1]) if found and b"HEAD " not in self.history else 0
            if len(self._buffer) < end + 4 + length:
                return
            self._take(int(status[1]), self._buffer[: end + 4 + length])
            self._buffer = self._buffer[end + 4 + length :]

    def send(self, data: bytes) -> None:
        self.history = (self.history + data)[-200_000:]
        self.happened.clear()
        self.transport.write(data)

    def _take(self, status: int, answer: bytes) -> None:
        self._findings.statuses[status] += 1
        if status == 500:
            self._findings.keep("500", self.history, answer)
        if status >= 400 and _INTERNAL.search(answer):
            self._findings.keep("leak", self.history, answer)
        if status >= 200:
            self.happened.set()


class Run:
    """`connections` workers share a number of requests and an end."""

    def __init__(self, server: Server, findings: Findings, fuzzer: Fuzzer, pixels: Any, logits: Any) -> None:
        self._server = server
        self._findings = findings
        self._fuzzer = fuzzer
        self._pixels = pixels
        self._logits = logits

    async def go(self, requests: int, connections: int, end_s: float) -> None:
        self._left, self._end_s = requests, end_s
        await asyncio.gather(*(self._work() for _ in range(connections)))

    async def _work(self) -> None:
        link: Link | None = None
        while self._left > 0 and time.monotonic() < self._end_s:
            self._left -= 1
            if self._left % _GOOD_EVERY == 0:
                await asyncio.get_running_loop().run_in_executor(None, self._check_good)
            link = await self._one(link)
        if link is not None:
            link.transport.abort()

    async def _one(self, link: Link | None) -> Link | None:
        """The connection, if another request may go over it."""
        if link is None or link.is_closed or b"HEAD " in link.history:
            if link is not None:
                link.transport.abort()
            try:
                _, link = await asyncio.get_running_loop().create_connection(
                    lambda: Link(self._findings), "127.0.0.1", self._server.port
                )
            except OSError:
                self._findings.refused += 1
                return None
        self._findings.sent += 1
        link.send(self._fuzzer.next() or b"\r\n")
        try:
            await asyncio.wait_for(link.happened.wait(), HANG_S)
        except asyncio.TimeoutError:
            self._findings.keep("hang", link.history, b"")
            link.transport.abort()
            return None
        self._findings.closed += link.is_closed
        return link

    def _check_good(self) -> None:
        call = raw_call(self._server.model, self._pixels)
        try:
            status, body, headers = ask(self._server.port, "POST", call.path, call.body, call.headers)
        except OSError as error:
            self._findings.keep("good-lost", call.body, str(error).encode())
            return
        if status == 503:
            self._findings.good_busy += 1
        elif status == 200 and np.allclose(call.parse(body, headers), self._logits, rtol=1e-3, atol=1e-3):
            self._findings.good_right += 1
        else:
            self._findings.keep("good-wrong", call.body, body)


def main() -> int:
    arguments = _parse_arguments()
    arguments.work.mkdir(parents=True, exist_ok=True)
    config, log = arguments.work / "limits.toml", arguments.work / "server.log"
    config.write_text(_CONFIG)
    bundle = load_bundle(arguments.bundle)
    golden, _ = load_golden(bundle)
    options = ("--artifact", arguments.artifact, "--config", str(config.absolute()))
    with edgetune_server(arguments.bundle.absolute(), log.absolute(), *options) as server:
        pixels, logits = golden.pixels[:1], golden.logits[arguments.artifact][:1]
        fuzzer = Fuzzer(good_requests(server.model, pixels), arguments.seed)
        findings = Findings(arguments.work)
        run = Run(server, findings, fuzzer, pixels, logits)
        report = _measure(server, run, findings, arguments)
    report["tracebacks_in_log"] = log.read_text(errors="replace").count("Traceback")
    (arguments.work / "fuzz.json").write_text(json.dumps(report, indent=2))
    print(json.dumps(report, indent=2))
    return 1 if report["bad"] or report["tracebacks_in_log"] or any(report["gauges_after"].values()) else 0


def _measure(server: Server, run: Run, findings: Findings, arguments: argparse.Namespace) -> dict[str, Any]:
    warm_up = min(2000, arguments.requests // 10)
    asyncio.run(run.go(warm_up, arguments.connections, time.monotonic() + arguments.seconds))
    before, started = server.rss_bytes(), time.monotonic()
    asyncio.run(run.go(arguments.requests - warm_up, arguments.connections, started + arguments.seconds))
    seconds = time.monotonic() - started
    time.sleep(4)  # what was left unfinished times out
    return {
        "seed": arguments.seed, "requests": findings.sent, "seconds": round(seconds, 1),
        "requests_per_s": round((findings.sent - warm_up) / seconds),
        "statuses": {str(status): count for status, count in sorted(findings.statuses.items())},
        "closed_connections": findings.closed, "refused_connections": findings.refused,
        "good_answered_right": findings.good_right,
        "good_told_busy": findings.good_busy, "bad": dict(Counter(findings.bad.values())),
        "rss_before_mb": round(before / 1e6, 1), "rss_after_mb": round(server.rss_bytes() / 1e6, 1),
        "gauges_after": _gauges(server),
    }  # fmt: skip


def _gauges(server: Server) -> dict[str, float]:
    """Without what the question itself counts for."""
    page = ask(server.port, "GET", "/metrics")[1].decode()
    found = dict(
        re.findall(r"^(edgetune_(?:queue_length|inflight_requests|open_connections)) (\S+)$", page, re.MULTILINE)
    )
    return {name: float(value) - (name != "edgetune_queue_length") for name, value in found.items()}


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, required=True, help="small images are best: each request holds one")
    parser.add_argument("--artifact", default="model.onnx")
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--connections", type=int, default=150)
    parser.add_argument("--seconds", type=float, default=300.0, help="at most")
    parser.add_argument("--work", type=Path, default=Path("build/serve-fuzz"))
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main())

"""The load generator against a server whose every answer is known."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.serve_load import LoadGenerator, Plan, Template, get, has_compiler, post

pytestmark = pytest.mark.skipif(not has_compiler(), reason="no C compiler cc, which builds the load generator")
_TIMEOUT = 0.3


class Server:
    """Answers by the path: `/ok`, `/busy` (503), `/slow` (50 ms), `/chunked`, `/closing`, `/silent` (never),
    `/hangup` (closes without an answer), `/early` (413 before the body has come), `/noise` (no HTTP).
    """

    def __init__(self) -> None:
        self.paths: Counter[str] = Counter()
        self.connections = 0
        self.port = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            while await self._answer_one(reader, writer):
                await writer.drain()
        writer.close()

    async def _answer_one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        path = head.split()[1]
        self.paths[path] += 1
        if path == "/early":
            writer.write(b"HTTP/1.1 413 Large\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            return False
        length = [line for line in head.splitlines() if line.startswith("Content-Length")]
        body = await reader.readexactly(int(length[0].split()[1])) if length else b""
        if path == "/slow":
            await asyncio.sleep(0.05)
        if path == "/silent":
            await asyncio.sleep(10 * _TIMEOUT)
        writer.write(_ANSWERS.get(path, b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body))
        return path not in {"/closing", "/hangup", "/noise"}


_ANSWERS = {
    "/busy": b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n",
    "/chunked": (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nabcd\r\n2;x=y\r\nef\r\n0\r\nTrailer: 1\r\n\r\n"
    ),
    "/closing": b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nuntil the end",
    "/hangup": b"",
    "/noise": b"SSH-2.0-OpenSSH_9.2 and so on\r\n\r\n",
}


@pytest.fixture
def server() -> Iterator[Server]:
    server, ready, loop = Server(), threading.Event(), asyncio.new_event_loop()

    async def listen() -> None:
        listener = await asyncio.start_server(server.serve, "127.0.0.1", 0)
        server.port = listener.sockets[0].getsockname()[1]
        ready.set()

    def run() -> None:
        loop.create_task(listen())
        loop.run_forever()
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run_until_complete(asyncio.sleep(0.01))
        loop.close()

    thread = threading.Thread(target=run)
    thread.start()
    assert ready.wait(5)
    yield server
    loop.call_soon_threadsafe(loop.stop)
    thread.join(5)


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> LoadGenerator:
    return LoadGenerator(tmp_path_factory.mktemp("load"))


def test_every_request_of_a_closed_loop_is_counted_once(load: LoadGenerator, server: Server) -> None:
    templates = [Template(post("/ok", b"one"), weight=2, equals=b"one"), Template(get("/busy"))]
    report = load.run(server.port, templates, Plan(connections=4, requests=300))
    assert server.paths == {"/ok": 200, "/busy": 100}
    assert (report["requests"], report["answers"], report["ok"]) == (300, 300, 200)
    assert report["statuses"] == {"200": 200, "503": 100}
    assert [template["requests"] for template in report["templates"]] == [200, 100]
    assert [template["ok"] for template in report["templates"]] == [200, 0]
    assert report["connections"] == server.connections == 4
    assert sum(ok for ok, _ in report["timeline"]) == 200
    assert sum(other for _, other in report["timeline"]) == 100
    assert report["goodput"] == pytest.approx(200 / report["seconds"], rel=0.01)
    assert report["latency_ms"]["count"] == 200


@pytest.mark.parametrize(
    ("path", "counted", "connections"),
    [("/hangup", "disconnects", 6), ("/noise", "no_http", 6), ("/silent", "timeouts", 6), ("/closing", "ok", 6),
     ("/chunked", "ok", 1)],
)  # fmt: skip
def test_each_way_an_answer_ends_has_its_own_count(
    load: LoadGenerator, server: Server, path: str, counted: str, connections: int
) -> None:
    report = load.run(server.port, [Template(get(path))], Plan(requests=6, timeout_s=_TIMEOUT))
    assert report[counted] == report["requests"] == 6
    assert sum(report[key] for key in ("answers", "connect_errors", "disconnects", "timeouts", "no_http")) == 6
    assert report["connections"] == connections


@pytest.mark.parametrize(
    ("template", "ok"),
    [
        (Template(get("/chunked"), equals=b"abcdef"), True),
        (Template(get("/chunked"), equals=b"abcde"), False),
        (Template(get("/closing"), contains=b"the end"), True),
        (Template(get("/closing"), contains=b"no such"), False),
        (Template(post("/ok", b"\0\1\2"), contains=b"\1\2"), True),
    ],
)
def test_a_wrong_body_is_no_ok(load: LoadGenerator, server: Server, template: Template, ok: bool) -> None:
    report = load.run(server.port, [template], Plan(requests=3))
    assert (report["ok"], report["wrong_body"]) == ((3, 0) if ok else (0, 3))
    assert report["statuses"] == {"200": 3}


def test_an_answer_before_the_body_is_sent_is_read(load: LoadGenerator, server: Server) -> None:
    large = Template(post("/early", b"x" * 40_000_000), status=413)
    report = load.run(server.port, [large], Plan(requests=3, timeout_s=5))
    assert (report["ok"], report["connections"]) == (3, 3)


def test_nobody_there_is_a_connect_error_each_time(load: LoadGenerator) -> None:
    report = load.run(1, [Template(get("/ok"))], Plan(connections=2, requests=6))
    assert (report["connect_errors"], report["answers"], report["latency_ms"]) == (6, 0, None)


def test_the_latency_is_the_servers(load: LoadGenerator, server: Server) -> None:
    latency = load.run(server.port, [Template(get("/slow"))], Plan(connections=2, requests=20))["latency_ms"]
    assert 50 <= latency["p50"] <= latency["p90"] <= latency["p99"] <= latency["max"]
    assert latency["p50"] < 70


def test_percentiles_are_those_of_all_ok_answers(load: LoadGenerator, server: Server) -> None:
    """One answer in ten takes 50 ms: nine tenths are below, and what is above them is not."""
    templates = [Template(get("/ok"), weight=9), Template(get("/slow")), Template(get("/busy"))]
    latency = load.run(server.port, templates, Plan(requests=110))["latency_ms"]
    assert latency["count"] == 100
    assert latency["p50"] <= latency["p90"] < 50 <= latency["p95"] <= latency["p99"] <= latency["max"]


def test_an_open_loop_keeps_its_rate(load: LoadGenerator, server: Server) -> None:
    for poisson, slack in ((False, 0), (True, 90)):  # three standard deviations of Poisson's 900
        plan = Plan(connections=8, seconds=1.5, rate=600, poisson=poisson)
        report = load.run(server.port, [Template(get("/ok"))], plan)
        assert abs(report["requests"] - 900) <= slack
        assert report["ok"] == report["requests"]
        assert report["unsent"] == 0
        assert max(ok for ok, _ in report["timeline"]) < 720


def test_waiting_for_a_connection_counts_as_latency(load: LoadGenerator, server: Server) -> None:
    """One connection answers 20 requests a second, 40 are due: the last of 20 is sent half a second late."""
    report = load.run(server.port, [Template(get("/slow"))], Plan(requests=20, rate=40))
    assert report["late"] >= 19
    assert report["service_ms"]["max"] < 150
    assert 480 <= report["latency_ms"]["max"] < 800


def test_without_patience_what_finds_no_connection_is_unsent(load: LoadGenerator, server: Server) -> None:
    report = load.run(server.port, [Template(get("/slow"))], Plan(requests=40, rate=100, patience_s=0))
    assert report["requests"] + report["unsent"] == 40
    assert server.paths["/slow"] == report["requests"] == report["ok"]
    assert 5 <= report["requests"] <= 9  # 390 ms at 50 ms each
    assert report["latency_ms"]["max"] < 150


def test_a_stopped_run_reports_what_it_did(load: LoadGenerator, server: Server) -> None:
    with load.running(server.port, [Template(get("/slow"))], Plan(connections=3, seconds=60)) as running:
        while server.paths["/slow"] < 9:
            threading.Event().wait(0.01)
        report = running.stop()
    assert report["requests"] == report["ok"] == server.paths["/slow"]
    assert report["seconds"] < 10


def test_request_files_that_are_missing_are_refused(load: LoadGenerator, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="ended with 2"):
        load.run(1, [], Plan(requests=1))

"""Clients that are slow, leave, or come in numbers, and the signals: what is given up, and what is still answered.

Work is made slow by images of 25 million pixels, which come as some kB and take a tenth of a second or more to decode.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.hostile_images import FORM, png
from tests.raw_http import (
    MEAN_COLOUR,
    SENTINEL,
    Connection,
    Server,
    check_answer,
    classify,
    head,
    infer,
    server_process,
    write_limits,
)
from tests.unit.runners.mean_bundle import FP32, mean_bundle

pytestmark = pytest.mark.e2e

_LIMITS = {
    "header_timeout_s": 0.5, "body_timeout_s": 0.5, "min_body_bytes_per_s": 2000, "keep_alive_s": 2.0,
    "max_connections": 12,
    "max_requests": 3, "admission_wait_s": 0.1, "deadline_s": 8.0,
}  # fmt: skip
_GOOD = infer(MEAN_COLOUR, "Inference-Header-Content-Length: 0")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return mean_bundle(tmp_path_factory.mktemp("bundles") / "mean", {FP32: "PASS"}).path


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_limits(tmp_path_factory.mktemp("config") / "limits.toml", _LIMITS)


@pytest.fixture(scope="module")
def server(bundle: Path, config: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    log = tmp_path_factory.mktemp("slow") / "log"
    with server_process(bundle, log, "--config", str(config), "--runs", "1") as server:
        yield server


@pytest.fixture(autouse=True)
def quiet(server: Server) -> Iterator[None]:
    """What a test leaves behind ends before the next begins."""
    yield
    server.wait_until_quiet(10)


def _slow_form(images: int) -> bytes:
    part = b"--frontier\r\n\r\n" + png(5000, 5000) + b"\r\n"
    return classify(part * images + b"--frontier--\r\n", FORM)


@pytest.fixture(scope="module")
def slow() -> bytes:
    """A request that is at work for a second or more."""
    return _slow_form(10)


def _seconds(act: Callable[[], object]) -> float:
    started = time.monotonic()
    act()
    return time.monotonic() - started


def _wait_for(is_so: Callable[[], bool], limit_s: float = 5.0) -> None:
    end_s = time.monotonic() + limit_s
    while not is_so():
        assert time.monotonic() < end_s, "it did not come to that"
        time.sleep(0.02)


def test_a_silent_connection_is_closed_without_a_word(server: Server) -> None:
    with Connection(server.port) as connection:
        assert 0.3 < _seconds(connection.expect_end) < 2


@pytest.mark.parametrize(
    "sent", [b"G", b"GET /v2 HTTP/1.1\r\n", SENTINEL[:-2], b"\r\n"], ids=["G", "line", "all but", "empty"]
)
def test_half_a_head_is_given_up(server: Server, sent: bytes) -> None:
    with Connection(server.port) as connection:
        connection.send(sent)
        started = time.monotonic()
        _expect_408(connection)
        assert 0.3 < time.monotonic() - started < 2


def _expect_408(connection: Connection) -> None:
    connection.expect(408)
    connection.expect_end()


def test_a_head_byte_by_byte_gets_no_more_time(server: Server) -> None:
    with Connection(server.port) as connection:
        started = time.monotonic()
        for byte in SENTINEL * 2:
            if not connection.send(bytes((byte,))) or connection.has_data():
                break
            time.sleep(0.05)
        assert time.monotonic() - started < 2
        _expect_408(connection)


def test_the_second_head_of_a_connection_has_its_time_too(server: Server) -> None:
    with Connection(server.port) as connection:
        assert connection.is_open()
        connection.send(SENTINEL[:20])
        assert _seconds(lambda: _expect_408(connection)) < 2


def test_a_half_head_behind_a_request_has_its_time_too(server: Server) -> None:
    """Both come in one packet."""
    with Connection(server.port) as connection:
        connection.send(SENTINEL + SENTINEL[:20])
        connection.expect(200)
        assert _seconds(lambda: _expect_408(connection)) < 1.5


@pytest.mark.parametrize("framing", ["Content-Length: 500", "Transfer-Encoding: chunked"])
def test_half_a_body_is_given_up(server: Server, framing: str) -> None:
    with Connection(server.port) as connection:
        connection.send(head("POST", "/v1/classify", framing) + b"3\r\nabc\r\n")
        assert 0.3 < _seconds(lambda: _expect_408(connection)) < 3


def test_a_body_below_the_least_rate_is_given_up(server: Server) -> None:
    with Connection(server.port) as connection:
        connection.send(head("POST", "/v1/classify", length=5000))
        started = time.monotonic()
        for _ in range(200):
            if not connection.send(b"x") or connection.has_data():
                break
            time.sleep(0.02)
        assert time.monotonic() - started < 3
        _expect_408(connection)


def test_a_slow_but_fair_body_is_taken(server: Server) -> None:
    body = MEAN_COLOUR * 200
    with Connection(server.port) as connection:
        connection.send(head("POST", "/v2/models/mean/infer", "Inference-Header-Content-Length: 0", length=len(body)))
        for start in range(0, len(body), 192):  # 50 parts, 4,800 bytes a second at most
            connection.send(body[start : start + 192])
            time.sleep(0.04)
        connection.expect(200)
        assert connection.is_open()


@pytest.mark.parametrize("path", ["/nothing", "/v1/classify", "/v2/models/other/infer"])
def test_a_refused_body_that_never_comes_gets_one_answer(server: Server, path: str) -> None:
    with Connection(server.port) as connection:
        connection.send(head("POST", path, length=1 << 33))
        connection.expect(404, 413)
        assert _seconds(connection.expect_end) < 3


def test_a_second_request_does_not_cost_the_first_its_answer(server: Server, slow: bytes) -> None:
    """The body of a request that waits behind a slow one is late only because it is not read."""
    with Connection(server.port, timeout_s=10) as connection:
        connection.send(slow + head("POST", "/v1/classify", length=1000) + bytes(500))
        time.sleep(0.2)
        connection.send(bytes(500))
        connection.expect(200)
        connection.expect(400)


def test_an_idle_connection_is_closed_after_the_keep_alive_time(server: Server) -> None:
    with Connection(server.port) as connection:
        assert connection.is_open()
        assert 1.5 < _seconds(connection.expect_end) < 4


def test_a_refused_body_that_comes_late_leaves_an_idle_connection(server: Server) -> None:
    """Which takes another request, or is closed after the keep-alive time."""
    with Connection(server.port) as connection:
        connection.send(head("POST", "/nothing", length=5))
        connection.expect(404)
        connection.send(b"abcde")
        assert _seconds(connection.expect_end) < 4


def test_a_client_that_never_reads_is_given_up(server: Server) -> None:
    with Connection(server.port, buffer=4096) as connection:
        connection.send(head("GET", "/openapi.json") * 400)
        _wait_for(lambda: server.gauges() == (0, 0, 0), 10)


def test_idle_connections_give_way_the_oldest_first(server: Server) -> None:
    with contextlib.ExitStack() as stack:
        connections = [stack.enter_context(Connection(server.port)) for _ in range(12)]
        for connection in connections:
            assert connection.is_open()
            time.sleep(0.01)
        assert connections[0].is_open()  # so that the second is the one that was idle longest
        with Connection(server.port) as fresh:
            assert fresh.is_open()
            time.sleep(0.1)
            closed = [index for index, connection in enumerate(connections) if connection.has_data()]
        assert closed == [1]


def test_connections_at_work_do_not_give_way(server: Server) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(12):
            stack.enter_context(Connection(server.port)).send(head("POST", "/v1/classify", length=10))
        time.sleep(0.1)
        answer = server.ask(SENTINEL)
        check_answer(answer, (503,))
        assert answer.headers["retry-after"] == "1"
    server.wait_until_quiet()
    assert server.ask(SENTINEL).status == 200


def test_work_for_a_client_that_left_is_dropped(server: Server) -> None:
    """Of one request of 100 images, some are begun; another's waits behind it and is never begun."""
    before = server.rejected("disconnected")
    runs = server.metrics()["edgetune_inference_duration_seconds_count"]
    with Connection(server.port) as first, Connection(server.port) as second:
        first.send(_slow_form(100))
        second.send(_slow_form(100))
        _wait_for(lambda: server.gauges()[1] == 2)
    assert _seconds(lambda: server.wait_until_quiet(10)) < 3
    assert server.rejected("disconnected") == before + 2
    assert server.metrics()["edgetune_inference_duration_seconds_count"] - runs < 20


def test_the_deadline_is_kept(server: Server) -> None:
    """The server's own for images, and the client's for tensors."""
    started = time.monotonic()
    answer = server.ask(_slow_form(256), timeout_s=12)
    check_answer(answer, (504,))
    assert 7.5 < time.monotonic() - started < 9.5
    assert server.ask(_GOOD).status == 200


def test_a_full_server_says_so_and_is_good_again(server: Server) -> None:
    slow = _slow_form(4)
    with contextlib.ExitStack() as stack:
        busy = [stack.enter_context(Connection(server.port, timeout_s=15)) for _ in range(3)]
        for connection in busy:
            connection.send(slow)
        _wait_for(lambda: server.gauges()[1] == 3)
        refusals = [server.ask(_GOOD) for _ in range(3)]
        for answer in refusals:
            check_answer(answer, (503,))
            assert answer.headers["retry-after"] == "1"
        assert server.ask(SENTINEL).status == 200
        for connection in busy:
            connection.expect(200)
    assert server.ask(_GOOD).status == 200


def test_after_all_of_it_the_server_is_as_it_was(server: Server) -> None:
    server.wait_until_quiet(10)
    assert server.ask(_GOOD).status == 200
    assert server.ask(head("GET", "/v2/health/ready")).status == 200
    text = server.log.read_text()
    assert "Traceback" not in text, text[-3000:]

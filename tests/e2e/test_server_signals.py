"""How a server ends and changes its model: signals with requests in work, and the admin socket."""

from __future__ import annotations

import json
import shutil
import signal
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from tests.hostile_images import FORM, png
from tests.raw_http import MEAN_COLOUR, SENTINEL, Connection, Server, classify, head, infer, server_process
from tests.unit.runners.mean_bundle import FP32, LOGITS, mean_bundle

pytestmark = pytest.mark.e2e

_GOOD = infer(MEAN_COLOUR, "Inference-Header-Content-Length: 0")


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return mean_bundle(tmp_path / "mean", {FP32: "PASS"}).path


@contextmanager
def _server(bundle: Path, *options: str) -> Iterator[Server]:
    with server_process(bundle, bundle.parent / "log", *options) as server:
        yield server


@pytest.fixture(scope="module")
def slow() -> bytes:
    """A request that is at work for a second or more."""
    part = b"--frontier\r\n\r\n" + png(5000, 5000) + b"\r\n"
    return classify(part * 12 + b"--frontier--\r\n", FORM)


def _begun(server: Server, request: bytes) -> Connection:
    """A connection whose request is in work."""
    connection = Connection(server.port, timeout_s=15)
    connection.send(request)
    end_s = time.monotonic() + 5
    while server.gauges()[1] < 1:
        assert time.monotonic() < end_s
        time.sleep(0.02)
    return connection


def _is_refused(server: Server) -> bool:
    try:
        with Connection(server.port) as connection:
            return not connection.is_open()
    except ConnectionRefusedError:
        return True


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_requests_in_work_are_answered_before_the_end(bundle: Path, slow: bytes, number: signal.Signals) -> None:
    with _server(bundle, "--runs", "1") as server, _begun(server, slow) as busy, Connection(server.port) as idle:
        assert idle.is_open()
        server.process.send_signal(number)
        idle.expect_end()
        time.sleep(0.3)
        assert _is_refused(server)
        answer = busy.expect(200)
        assert len(json.loads(answer.body)["images"]) == 12
        assert server.process.wait(timeout=10) == 0
        assert "Traceback" not in server.log.read_text()


def test_a_drain_says_not_ready_and_serves(bundle: Path) -> None:
    with _server(bundle, "--drain", "1.5") as server:
        server.process.send_signal(signal.SIGTERM)
        started = time.monotonic()
        time.sleep(0.3)
        ready = server.ask(head("GET", "/v2/health/ready"))
        assert ready.status == 503
        assert ready.headers["retry-after"] == "1"
        assert server.ask(head("GET", "/v2/health/live")).status == 200
        assert server.ask(_GOOD).status == 200
        assert server.process.wait(timeout=10) == 0
        assert 1.3 < time.monotonic() - started < 4


def test_a_second_signal_ends_it_at_once(bundle: Path, slow: bytes) -> None:
    with _server(bundle, "--runs", "1", "--drain", "30") as server, _begun(server, slow):
        server.process.send_signal(signal.SIGTERM)
        time.sleep(0.2)
        started = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(timeout=10) == 1
        assert time.monotonic() - started < 1


def test_the_end_waits_for_no_client_that_does_not_read_or_send(bundle: Path) -> None:
    """Beyond its 10 s for requests in work."""
    with _server(bundle) as server:
        with Connection(server.port, buffer=4096) as deaf, Connection(server.port) as mute:
            deaf.send(head("GET", "/openapi.json") * 400)
            mute.send(SENTINEL[:20])
            time.sleep(0.3)
            started = time.monotonic()
            server.process.send_signal(signal.SIGTERM)
            assert server.process.wait(timeout=20) == 0
            assert time.monotonic() - started < 12
        assert "Traceback" not in server.log.read_text()


def _logits(server: Server) -> np.ndarray:
    answer = server.ask(_GOOD)
    assert answer.status == 200
    return np.frombuffer(answer.body[int(answer.headers["inference-header-content-length"]) :], "<f4")


def _model_loads(server: Server, result: str) -> float:
    return server.metrics().get(f'edgetune_model_loads_total{{result="{result}"}}', 0)


def test_a_broken_bundle_is_not_taken_up(bundle: Path) -> None:
    """The link leads to a good one, then to broken ones, then to nothing, then to a good one again."""
    good = bundle.rename(bundle.parent / "good")
    bundle.symlink_to(good)
    with _server(bundle) as server:
        for number, name in enumerate(("cut", "no manifest", "none", "wrong golden"), 1):
            _turn(bundle, _broken(good, name))
            server.process.send_signal(signal.SIGHUP)
            end_s = time.monotonic() + 10
            while _model_loads(server, "failed") < number:
                assert time.monotonic() < end_s, name
                time.sleep(0.02)
            np.testing.assert_allclose(_logits(server), LOGITS[0], atol=1e-4)
            assert server.ask(head("GET", "/v2/health/ready")).status == 200
        _turn(bundle, good)
        server.process.send_signal(signal.SIGHUP)
        time.sleep(1)
        assert _model_loads(server, "ok") == 2
        np.testing.assert_allclose(_logits(server), LOGITS[0], atol=1e-4)
        assert "Traceback" not in server.log.read_text()
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(timeout=10) == 0


def _turn(link: Path, target: Path) -> None:
    fresh = link.with_suffix(".new")
    fresh.symlink_to(target)
    fresh.replace(link)


def _broken(good: Path, name: str) -> Path:
    copy = good.parent / name
    if name == "wrong golden":
        return mean_bundle(copy, {FP32: "PASS"}, np.array([[9.0, 9.0]], np.float32)).path
    if name != "none":
        shutil.copytree(good, copy)
    if name == "cut":
        (copy / FP32).write_bytes((good / FP32).read_bytes()[:-50])
    if name == "no manifest":
        (copy / "manifest.json").unlink()
    return copy


def _ask_admin(path: Path, request: bytes, status: int) -> None:
    with Connection(path, timeout_s=10) as connection:
        connection.send(request)
        answer = connection.answer()
    assert answer is not None
    assert answer.status == status, answer


def test_the_admin_socket_is_its_owners_and_outlives_nonsense(bundle: Path) -> None:
    path = bundle.parent / "admin"
    with _server(bundle, "--admin", str(path)) as server:
        mode = path.stat().st_mode
        assert stat.S_ISSOCK(mode)
        assert stat.S_IMODE(mode) == 0o600
        for body in (
            b"{",
            b"[]",
            b'{"bundle": 1}',
            b'{"bundle": ""}',
            b'{"bundle": "\\u0000"}',
            b'{"other": "x"}',
            b"\xff",
        ):
            _ask_admin(path, head("POST", "/swap", length=len(body)) + body, 400)
        _ask_admin(path, head("POST", "/swap", length=1 << 20), 413)
        for body in (b'{"bundle": "/nowhere"}', b'{"bundle": "' + b"x" * 5000 + b'"}', b'{"bundle": "/etc/passwd"}'):
            _ask_admin(path, head("POST", "/swap", length=len(body)) + body, 409)
        _ask_admin(path, head("GET", "/v2"), 404)
        _ask_admin(path, head("GET", "/status"), 200)
        _ask_admin(path, b"nonsense\r\n\r\n", 400)
        np.testing.assert_allclose(_logits(server), LOGITS[0], atol=1e-4)
        assert "Traceback" not in server.log.read_text()
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(timeout=10) == 0
    assert not path.exists()


def test_the_data_port_has_no_admin(bundle: Path) -> None:
    with _server(bundle) as server:
        for method, target in (("POST", "/swap"), ("POST", "/drain"), ("GET", "/status")):
            assert server.ask(head(method, target)).status == 404

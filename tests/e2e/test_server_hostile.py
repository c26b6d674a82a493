"""Everything that a hostile client may send: each gets the right answer, at once, and the server stays as it was."""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest

from tests.hostile_framing import (
    CHUNKS,
    CONTENT_LENGTHS,
    HEADER_LENGTHS,
    LINES,
    METHODS,
    PATHS,
    PIPELINES,
    SIZES,
)
from tests.hostile_images import BOMBS, COMPRESSED, CUTS, FORMS, ODD_IMAGES, OTHER_KINDS, scans
from tests.hostile_tensors import BINARY, NAMES, SHAPES, TEXTS, TYPES, VALUES
from tests.raw_http import (
    MEAN_COLOUR,
    SENTINEL,
    Case,
    Connection,
    Server,
    check_answer,
    check_case,
    classify,
    head,
    infer,
    server_process,
    write_limits,
)
from tests.unit.runners.mean_bundle import FP32, LOGITS, mean_bundle

pytestmark = pytest.mark.e2e

MIB = 1 << 20
_LIMITS = {
    "header_timeout_s": 1.0, "body_timeout_s": 1.0, "max_body_bytes": 2 * MIB, "max_json_bytes": 512 << 10,
    "max_request_bytes": 16 * MIB, "deadline_s": 5.0,
}  # fmt: skip
_CASES = (
    *HEADER_LENGTHS, *CONTENT_LENGTHS, *CHUNKS, *LINES, *METHODS, *PATHS, *SIZES, *PIPELINES, *TEXTS, *TYPES, *VALUES,
    *SHAPES,
    *NAMES, *BINARY, *BOMBS, *OTHER_KINDS, *CUTS, *ODD_IMAGES, *FORMS, *COMPRESSED,
)  # fmt: skip
_GOOD = infer(MEAN_COLOUR, "Inference-Header-Content-Length: 0")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("hostile")
    bundle = mean_bundle(folder / "mean", {FP32: "PASS"}).path
    config = write_limits(folder / "limits.toml", _LIMITS)
    with server_process(bundle, folder / "log", "--config", str(config)) as server:
        for _ in range(20):
            check_good(server)
        yield server


def check_good(server: Server) -> None:
    answer = server.ask(_GOOD)
    assert answer.status == 200
    start = int(answer.headers["inference-header-content-length"])
    np.testing.assert_allclose(np.frombuffer(answer.body[start:], "<f4"), LOGITS[0], atol=1e-4)


@pytest.mark.parametrize("asked", _CASES, ids=lambda asked: asked.name)
def test_each_gets_its_answer(server: Server, asked: Case) -> None:
    check_case(server.port, asked)


def test_names_tell_the_cases_apart() -> None:
    names = [asked.name for asked in _CASES]
    assert len(set(names)) == len(names) > 400


def test_endless_chunks_end(server: Server) -> None:
    """Told so while it still sends; what it sends then is not read for ever."""
    with Connection(server.port) as connection:
        connection.send(head("POST", "/v1/classify", "Transfer-Encoding: chunked"))
        block, sent = b"10000\r\n" + bytes(65536) + b"\r\n", 0
        while sent < 64 * MIB and not connection.has_data() and connection.send(block):
            sent += 65536
        connection.expect(413)
        while sent < 64 * MIB and connection.send(block):
            sent += 65536
    assert sent < 16 * MIB


@pytest.mark.parametrize("text", [b"X: y\r\n" * 10_000, b"y" * 60_000], ids=["headers", "one header"])
def test_endless_trailers_end(server: Server, text: bytes) -> None:
    server.forget_peak()
    before = server.memory_bytes("VmHWM")
    with Connection(server.port) as connection:
        connection.send(head("POST", "/v1/classify", "Transfer-Encoding: chunked") + b"3\r\nabc\r\n0\r\nX: ")
        sent, started = 0, time.monotonic()
        while sent < 32 * MIB and time.monotonic() - started < 3 and connection.send(text):
            sent += len(text)
    assert server.memory_bytes("VmHWM") - before < 40 * MIB
    assert sent < 8 * MIB


def test_endless_empty_lines_end(server: Server) -> None:
    with Connection(server.port) as connection:
        sent = 0
        while sent < 8 * MIB and connection.send(b"\r\n" * 5000):
            sent += 10_000
        assert sent < 8 * MIB


def test_a_flood_of_pipelined_requests_keeps_within_bounds(server: Server) -> None:
    """Half a million requests of 49 bytes on one connection, whose answers are read."""
    server.forget_peak()
    before = server.memory_bytes("VmHWM")
    block = SENTINEL * 2000
    with Connection(server.port) as connection:
        reader = threading.Thread(target=_drop_answers, args=(connection.socket,), daemon=True)
        reader.start()
        sent, started, worst_s = 0, time.monotonic(), 0.0
        connection.socket.settimeout(0.5)
        while sent < 24 * MIB and time.monotonic() - started < 3:
            try:
                if not connection.send(block):
                    break
            except TimeoutError:
                break
            sent += len(block)
            asked = time.monotonic()
            server.ask(SENTINEL, timeout_s=20)
            worst_s = max(worst_s, time.monotonic() - asked)
    peak = server.memory_bytes("VmHWM") - before
    assert peak < 100 * MIB, f"{peak >> 20} MiB for {sent} bytes of one connection"
    assert worst_s < 1, f"another client waited {worst_s:.1f} s"


def _drop_answers(connection: socket.socket) -> None:
    try:
        while connection.recv(1 << 20):
            pass
    except OSError:
        pass


def test_scans_without_end_do_not_hold_a_run(server: Server) -> None:
    """A small progressive JPEG may ask for hours of decoding: each scan of some bytes goes over all its pixels."""
    bomb = scans(3000)
    assert len(bomb) < 300_000
    answer = server.ask(classify(bomb), timeout_s=20)
    check_answer(answer, (400,))
    assert server.ask(classify(scans(0)), timeout_s=20).status == 200  # a normal one, with its six scans


def test_a_client_that_leaves_in_the_middle_is_forgotten(server: Server) -> None:
    """After each byte count of a good request, the connection is reset."""
    for size in range(1, len(_GOOD)):
        with Connection(server.port) as connection:
            connection.send(_GOOD[:size])
            connection.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    check_good(server)


def test_a_client_that_resets_before_its_answers_is_forgotten(server: Server) -> None:
    for count in range(1, 60):
        with Connection(server.port, buffer=4096) as connection:
            connection.send(head("GET", "/openapi.json") * count)
            connection.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    check_good(server)


def test_after_all_of_it_the_server_is_as_it_was(server: Server) -> None:
    check_answer(server.ask(head("GET", "/v2/health/ready")), (200,))
    server.wait_until_quiet()
    assert server.metrics()['edgetune_rejected_total{reason="internal"}'] == 0
    for _ in range(20):
        check_good(server)
    text = server.log.read_text()
    assert "Traceback" not in text, text[-3000:]
    assert len(text) < 20_000, "clients fill the log"
    # Two decoders of 25 million pixels leave what the allocator keeps.
    assert server.memory_bytes() < 350 * MIB

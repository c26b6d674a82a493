"""Who may ask: names of the host, tokens, and TLS, with whatever a stranger sends instead."""

from __future__ import annotations

import shutil
import socket
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.raw_http import SENTINEL, Connection, Server, check_answer, head, server_process, write_limits
from tests.unit.runners.mean_bundle import FP32, mean_bundle

pytestmark = pytest.mark.e2e

TOKEN = "a-token-of-more-than-16-letters"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return mean_bundle(tmp_path_factory.mktemp("bundles") / "mean", {FP32: "PASS"}).path


@pytest.fixture(scope="module")
def plain(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with server_process(bundle, tmp_path_factory.mktemp("plain") / "log") as server:
        yield server


@pytest.mark.parametrize("host", [
    "evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "localhost@evil.example", "[::1].evil.example",
    "0.0.0.0",
    "2130706433", "127.1", "", ".", "localhost.", "evil.example:8000", "\xff", "[", "]", "localhost,evil.example",
    "x" * 5000,
])  # fmt: skip
def test_a_name_that_is_not_ours_is_refused(plain: Server, host: str) -> None:
    answer = plain.ask(f"GET /v2/health/live HTTP/1.1\r\nHost: {host}\r\n\r\n".encode("latin-1"))
    check_answer(answer, (400, 421))


@pytest.mark.parametrize("host", ["localhost", "LocalHost:1", "127.0.0.1:8000", "[::1]:8000", "[::1]"])
def test_our_own_names_are_taken(plain: Server, host: str) -> None:
    assert plain.ask(f"GET /v2/health/live HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()).status == 200


@pytest.fixture(scope="module")
def guarded(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that asks for a token."""
    folder = tmp_path_factory.mktemp("guarded")
    (folder / "token").write_text(TOKEN + "\n")
    with server_process(bundle, folder / "log", "--token-file", str(folder / "token")) as server:
        yield server


@pytest.mark.parametrize("credentials", [
    "", "Bearer", "Bearer ", f"Bearer {TOKEN[:-1]}", f"Bearer {TOKEN}x", f"Bearer {TOKEN.upper()}", f"Basic {TOKEN}",
    TOKEN,
    f"Bearer {TOKEN} {TOKEN}", f"Bearer {TOKEN}, Bearer x", "Bearer \xe9\xff", f"Bearer {TOKEN}\xa0x",
    "Bearer " + "x" * 50_000,
    f'Bearer "{TOKEN}"', "Bearer null", "Bearer *", f"BearerX {TOKEN}", "Digest username=x",
])  # fmt: skip
def test_a_wrong_token_is_refused(guarded: Server, credentials: str) -> None:
    for target in (
        "/v2",
        "/metrics",
        "/v2/models/mean",
        "/openapi.json",
        "/nothing",
        "/v2/health/live/",
        "//v2/health/live",
    ):
        answer = guarded.ask(head("GET", target, f"Authorization: {credentials}"))
        check_answer(answer, (401,))
        assert answer.headers["www-authenticate"] == "Bearer"


def test_the_token_is_no_part_of_the_target(guarded: Server) -> None:
    check_answer(guarded.ask(head("GET", f"/v2?token={TOKEN}&access_token={TOKEN}")), (401,))


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
def test_the_right_token_is_taken(guarded: Server, scheme: str) -> None:
    assert guarded.ask(head("GET", "/v2", f"Authorization: {scheme} {TOKEN}")).status == 200
    assert guarded.ask(head("GET", "/v2/health/ready")).status == 200


def test_two_tokens_are_none(guarded: Server) -> None:
    good, bad = f"Authorization: Bearer {TOKEN}", "Authorization: Bearer wrong"
    for pair in ((good, bad), (bad, good)):
        check_answer(guarded.ask(head("GET", "/v2", *pair)), (400, 401))


@pytest.fixture(scope="module")
def secure(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Path]]:
    """A server that speaks TLS only, and its certificate."""
    if shutil.which("openssl") is None:
        pytest.skip("no openssl to make a certificate with")
    folder = tmp_path_factory.mktemp("secure")
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days",
        "2", "-subj",
         "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-keyout", str(key), "-out", str(certificate)],
        check=True, capture_output=True,
    )  # fmt: skip
    config = write_limits(folder / "limits.toml", {"header_timeout_s": 0.5, "max_connections": 16})
    options = ("--tls-certificate", str(certificate), "--tls-key", str(key), "--config", str(config))
    with server_process(bundle, folder / "log", *options) as server:
        yield server, certificate


def test_tls_with_whatever_comes(secure: tuple[Server, Path]) -> None:
    server, certificate = secure
    for nonsense in (
        SENTINEL,
        b"\x16\x03\x01\x02\x00\x01",
        b"\x16\x03\x01" + b"\xff" * 5000,
        b"\x80\x2e\x01\x00\x02",
        b"x" * 100_000,
    ):
        with Connection(server.port) as connection:
            connection.send(nonsense)
            connection.socket.shutdown(socket.SHUT_WR)
            connection.seconds_until_closed()
    context = ssl.create_default_context(cafile=str(certificate))
    with Connection(server.port, tls=context) as connection:
        assert connection.is_open()
    with pytest.raises(ssl.SSLError), Connection(server.port, tls=_old_tls()):
        pass
    assert "Traceback" not in server.log.read_text()


def _old_tls() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.minimum_version, context.maximum_version = ssl.TLSVersion.MINIMUM_SUPPORTED, ssl.TLSVersion.TLSv1_1
    return context


def test_tls_that_is_never_begun_is_closed_in_time(secure: tuple[Server, Path]) -> None:
    """A handshake is before any of a request's own times."""
    server, certificate = secure
    silent = [Connection(server.port, timeout_s=10) for _ in range(40)]
    closed_s = [connection.seconds_until_closed() for connection in silent]
    assert max(closed_s) < 7
    with Connection(server.port, tls=ssl.create_default_context(cafile=str(certificate))) as connection:
        assert connection.is_open()

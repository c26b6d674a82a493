"""Who may ask: host names, tokens, public addresses, TLS files."""

from __future__ import annotations

import ssl
import subprocess
from pathlib import Path
from typing import Any

import pytest

from edgetune.core.errors import ConfigError, UsageError
from edgetune.serve.errors import RequestError
from edgetune.serve.guard import Guard, check_access, tls_context
from edgetune.serve.settings import Access, ServeSettings
from tests.unit.serve.stand_ins import Client

TOKEN = "0123456789abcdef0123"


def _status(guard: Guard, headers: dict[str, str], path: str = "/v2") -> int:
    try:
        guard.check(Client(headers=headers, path=path).request)
    except RequestError as error:
        assert error.reason == {421: "host", 401: "auth", 400: ""}[error.status]
        return error.status
    return 200


@pytest.fixture
def token_file(tmp_path: Path) -> Path:
    path = tmp_path / "token"
    path.write_text(TOKEN + "\n")
    return path


HOSTS = [
    ("127.0.0.1", 200), ("127.0.0.1:8000", 200), ("localhost", 200), ("LocalHost:1", 200), ("[::1]", 200),
    ("[::1]:8000", 200), ("127.0.0.2", 421), ("evil.example", 421), ("evil.example:8000", 421), ("", 421),
    ("localhost.evil.example", 421), ("127.0.0.1.evil.example", 421), ("evil.example:127.0.0.1", 421), ("[::2]", 421),
    ("[::1", 421), ("::1", 421), ("[]", 421), ("localhost@evil.example", 421), ("user@localhost", 421),
]  # fmt: skip


@pytest.mark.parametrize(("host", "status"), HOSTS)
@pytest.mark.parametrize("bound", ["127.0.0.1", "::1", "localhost"])
def test_a_loopback_server_answers_for_loopback_names_only(bound: str, host: str, status: int) -> None:
    assert _status(Guard(ServeSettings(host=bound)), {"host": host}) == status


def test_a_request_without_a_host_or_with_two_is_refused() -> None:
    guard = Guard(ServeSettings())
    assert _status(guard, {}) == 421
    twice = Client(headers={"host": "localhost"})
    twice.scope["headers"].append((b"host", b"localhost"))
    with pytest.raises(RequestError, match="more than once") as caught:
        guard.check(twice.request)
    assert caught.value.status == 400


def test_further_names_may_be_allowed() -> None:
    guard = Guard(ServeSettings(access=Access(hosts=("Camera.local", "10.0.0.7"))))
    for host, status in {"camera.LOCAL:8000": 200, "10.0.0.7": 200, "localhost": 200, "camera": 421}.items():
        assert _status(guard, {"host": host}) == status


def test_a_public_server_with_names_answers_for_these_its_own_and_loopback() -> None:
    guard = Guard(ServeSettings(host="10.0.0.7", access=Access(hosts=("camera",), insecure=True)))
    for host, status in {"camera": 200, "10.0.0.7:80": 200, "localhost": 200, "other": 421}.items():
        assert _status(guard, {"host": host}) == status


def test_a_public_server_without_names_or_one_with_a_token_answers_for_any_name(token_file: Path) -> None:
    assert _status(Guard(ServeSettings(host="0.0.0.0", access=Access(insecure=True))), {"host": "x"}) == 200
    guarded = Guard(ServeSettings(access=Access(token_file=token_file)))
    assert _status(guarded, {"host": "x", "authorization": f"Bearer {TOKEN}"}) == 200


AUTHORIZATIONS = [
    (f"Bearer {TOKEN}", 200), (f"bearer {TOKEN}", 200), (f"Bearer   {TOKEN}  ", 200), (f"Bearer {TOKEN}x", 401),
    (f"Bearer {TOKEN[:-1]}", 401), ("Bearer", 401), ("", 401), (TOKEN, 401), (f"Basic {TOKEN}", 401),
    (f"Bearer {TOKEN.upper()}", 401), ("Bearer \xff\xfe", 401), (f"Bearer {TOKEN} {TOKEN}", 401),
]  # fmt: skip


@pytest.mark.parametrize(("given", "status"), AUTHORIZATIONS)
def test_the_token_is_compared_whole(token_file: Path, given: str, status: int) -> None:
    guard = Guard(ServeSettings(access=Access(token_file=token_file)))
    assert guard.has_token
    assert _status(guard, {"authorization": given}) == status


def test_without_the_header_there_is_no_access_but_to_the_probes(token_file: Path) -> None:
    guard = Guard(ServeSettings(access=Access(token_file=token_file)))
    open_paths = {"/v2/health/live", "/v2/health/ready"}
    others = {"/v2", "/metrics", "/openapi.json", "/v1/classify", "/v2/health/ready/", "/V2/health/ready", "/"}
    for path in open_paths | others:
        assert _status(guard, {}, path) == (200 if path in open_paths else 401)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "has 0 characters"),
        (b"short", "has 5 characters"),
        (b"0123456789abcde", "has 15 characters"),
        (b"two words of a token", "expected one word of 16 or more"),
        ("schlüssel-schlüssel".encode(), "in ASCII"),
        (b"\xff" * 20, "in ASCII"),
    ],
)
def test_a_token_that_is_no_good_is_told_at_start(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "token"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=words) as caught:
        Guard(ServeSettings(access=Access(token_file=path)))
    assert content == b"" or content.decode("latin-1") not in caught.value.message
    assert "openssl rand" in caught.value.hint


def test_a_token_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no-token cannot be read: No such file"):
        Guard(ServeSettings(access=Access(token_file=tmp_path / "no-token")))
    with pytest.raises(ConfigError, match="cannot be read"):
        Guard(ServeSettings(access=Access(token_file=tmp_path)))


ANY = Path("file.pem")


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.4", "camera.local", ""])
def test_a_public_address_needs_a_word(host: str) -> None:
    with pytest.raises(UsageError, match="reachable from the network") as caught:
        check_access(ServeSettings(host=host))
    assert "--insecure" in caught.value.hint
    for access in (Access(token_file=ANY), Access(insecure=True), Access(None, ANY, ANY, ANY)):
        check_access(ServeSettings(host=host, access=access))


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost", "LOCALHOST", "127.0.0.2"])
def test_a_loopback_address_needs_none(host: str) -> None:
    check_access(ServeSettings(host=host))


@pytest.mark.parametrize("access", [Access(None, ANY), Access(None, None, ANY), Access(None, None, None, ANY)])
def test_half_of_tls_is_refused(access: Access) -> None:
    with pytest.raises(UsageError, match="TLS needs a certificate and its key"):
        check_access(ServeSettings(access=access))


def _openssl(folder: Path, *arguments: str) -> None:
    try:
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True, timeout=60)
    except FileNotFoundError:
        pytest.skip("no openssl here to make certificates")


@pytest.fixture(scope="module")
def pems(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate with its key, once plain and once encrypted, and another key."""
    folder = tmp_path_factory.mktemp("pems")
    curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
    _openssl(folder, "req", "-x509", *curve, "-keyout", "key.pem", "-out", "cert.pem", "-subj", "/CN=localhost")
    _openssl(folder, "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", "other.pem")
    _openssl(folder, "ec", "-in", "key.pem", "-aes128", "-passout", "pass:secret", "-out", "locked.pem")
    (folder / "text.pem").write_text("no certificate")
    return folder


def test_tls_is_of_1_2_or_newer_and_asks_clients_only_where_a_ca_is_given(pems: Path) -> None:
    assert tls_context(Access()) is None
    context = tls_context(Access(None, pems / "cert.pem", pems / "key.pem"))
    assert context is not None
    assert context.minimum_version == ssl.TLSVersion.TLSv1_2
    assert context.verify_mode == ssl.CERT_NONE
    mutual = tls_context(Access(None, pems / "cert.pem", pems / "key.pem", pems / "cert.pem"))
    assert mutual is not None
    assert mutual.verify_mode == ssl.CERT_REQUIRED


UNFIT = [
    ("missing.pem", "key.pem", None), ("cert.pem", "missing.pem", None), ("cert.pem", "other.pem", None),
    ("text.pem", "key.pem", None), ("cert.pem", "key.pem", "missing.pem"), ("cert.pem", "key.pem", "text.pem"),
]  # fmt: skip


@pytest.mark.parametrize(("certificate", "key", "ca"), UNFIT)
def test_unfit_tls_files_are_told(pems: Path, certificate: str, key: str, ca: str | None) -> None:
    access = Access(None, pems / certificate, pems / key, None if ca is None else pems / ca)
    with pytest.raises(ConfigError, match="cannot be used") as caught:
        tls_context(access)
    assert certificate in caught.value.message


def test_a_key_with_a_passphrase_is_refused_and_nobody_is_asked_for_it(
    pems: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a passphrase of ours OpenSSL asks on the terminal, and a server waits there for ever."""
    given: list[object] = []

    load = ssl.SSLContext.load_cert_chain

    def watched(self: ssl.SSLContext, certfile: Any, keyfile: Any = None, password: Any = None) -> None:
        given.append(password)
        load(self, certfile, keyfile, password or "")

    monkeypatch.setattr(ssl.SSLContext, "load_cert_chain", watched)
    with pytest.raises(ConfigError, match="cannot be used"):
        tls_context(Access(None, pems / "cert.pem", pems / "locked.pem"))
    assert given != [None]

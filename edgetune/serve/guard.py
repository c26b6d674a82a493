"""Who may ask: the token, and the names that requests may be sent to."""

from __future__ import annotations

import hmac
import ipaddress
import re
import ssl
from pathlib import Path

from edgetune.core.errors import ConfigError, UsageError
from edgetune.serve.errors import RequestError
from edgetune.serve.http.request import Request
from edgetune.serve.settings import Access, ServeSettings

LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})

# Probes carry no token, and learn nothing here but that the server is well.
_OPEN_PATHS = frozenset({"/v2/health/live", "/v2/health/ready"})
_LEAST_TOKEN_CHARACTERS = 16
_MOST_SEEN = 64
_HOST = re.compile(r"(?:\[([0-9a-f:.]+)\]|([^:\[\]]+))(?::[0-9]*)?")


class Guard:
    """Checks each request before anything of it is read.

    A page of another site, open in a browser on the device, can reach a loopback server under a name of its own that
    resolves to 127.0.0.1; so without a token the Host header must name the loopback, or one of `Access.hosts`.
    """

    def __init__(self, settings: ServeSettings) -> None:
        access = settings.access
        self._token = b"" if access.token_file is None else _read_token(access.token_file)
        names = {host.lower() for host in access.hosts}
        if names or (is_loopback(settings.host) and not self._token):
            names |= LOOPBACK | {settings.host.lower()}
        self._hosts = names
        self._seen: set[str] = set()  # headers that were good, as they came

    @property
    def has_token(self) -> bool:
        return bool(self._token)

    def _is_ours(self, header: str) -> bool:
        if header in self._seen:
            return True
        is_ours = _host_name(header) in self._hosts
        if is_ours and len(self._seen) < _MOST_SEEN:
            self._seen.add(header)
        return is_ours

    def check(self, request: Request) -> None:
        """Raises `RequestError` 421 or 401."""
        if self._hosts and not self._is_ours(request.single("host") or ""):
            raise RequestError(421, "this server does not answer for the host of the request", reason="host")
        if self._token and request.path not in _OPEN_PATHS:
            scheme, _, given = (request.single("authorization") or "").partition(" ")
            good = hmac.compare_digest(given.strip().encode("latin-1"), self._token)
            if scheme.lower() != "bearer" or not good:
                raise RequestError(401, "this server asks for a bearer token", reason="auth")


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach what listens there."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def check_access(settings: ServeSettings) -> None:
    """Raises `UsageError` when a public address would be open to everybody without a word."""
    access = settings.access
    if not is_loopback(settings.host) and access.token_file is None and access.tls_ca is None and not access.insecure:
        raise UsageError(
            f"{settings.host} is reachable from the network, and anybody there could use this server.",
            hint="give --token-file or --tls-ca, or --insecure if the network is trusted",
        )
    if (access.tls_certificate is None) != (access.tls_key is None) or (access.tls_ca and not access.tls_certificate):
        raise UsageError("TLS needs a certificate and its key.", hint="give --tls-certificate and --tls-key")


def tls_context(access: Access) -> ssl.SSLContext | None:
    """TLS 1.2 or newer, with client certificates where a CA is given. Raises `ConfigError` for a file that is unfit."""
    if access.tls_certificate is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        # An empty passphrase: without one OpenSSL would ask for it on the terminal, and wait.
        context.load_cert_chain(access.tls_certificate, access.tls_key, password="")
        if access.tls_ca is not None:
            context.load_verify_locations(access.tls_ca)
            context.verify_mode = ssl.CERT_REQUIRED
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(
            f"the TLS files {access.tls_certificate}, {access.tls_key} and {access.tls_ca} cannot be used: {error}.",
            hint="they must be PEM files that this user can read, and the key must be the certificate's",
        ) from error
    return context


def _read_token(path: Path) -> bytes:
    try:
        token = path.read_bytes().strip()
    except OSError as error:
        raise ConfigError(f"the token file {path} cannot be read: {error.strerror or error}.") from error
    if len(token) < _LEAST_TOKEN_CHARACTERS or not token.isascii() or len(token.split()) != 1:
        raise ConfigError(
            f"the token in {path} has {len(token)} characters, expected one word of {_LEAST_TOKEN_CHARACTERS} or more "
            "in ASCII.",
            hint="make one with: openssl rand -hex 32",
        )
    return token


def _host_name(header: str) -> str:
    """The name without the port, and an IPv6 address without its brackets; empty for what is neither."""
    found = _HOST.fullmatch(header.lower())
    return (found[1] or found[2]) if found else ""

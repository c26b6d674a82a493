"""Uvicorn as a part of this process: it frames HTTP, and everything else about its life is decided elsewhere."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import socket
import ssl
from collections.abc import Callable, Iterator
from typing import Any

import uvicorn

from edgetune.core.errors import AddressError
from edgetune.serve.http.protocol import GuardedProtocol
from edgetune.serve.settings import Limits

_BACKLOG = 128
_HANDSHAKE_S = 5.0


class HttpServer(uvicorn.Server):
    """A uvicorn server that leaves the process's signals alone."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.servers: list[asyncio.base_events.Server] = []

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn's, with a bound on the time of a TLS handshake, which is before any protocol of ours."""
        loop = asyncio.get_running_loop()
        tls: dict[str, Any] = {"ssl": self.config.ssl}
        if self.config.ssl is not None:
            tls["ssl_handshake_timeout"] = _HANDSHAKE_S
        for listener in sockets or []:
            create: Any = loop.create_unix_server if listener.family == socket.AF_UNIX else loop.create_server
            self.servers.append(await create(self._protocol, sock=listener, backlog=_BACKLOG, **tls))
        self.started = True

    def _protocol(self) -> asyncio.Protocol:
        make: Any = self.config.http_protocol_class
        protocol: asyncio.Protocol = make(config=self.config, server_state=self.server_state, app_state={})
        return protocol

    @property
    def connection_count(self) -> int:
        return len(self.server_state.connections)

    def stop(self, *, at_once: bool = False) -> None:
        """Takes no new connections, lets the running requests end unless `at_once`, and returns from `serve`."""
        self.should_exit = True
        self.force_exit = self.force_exit or at_once


def make_server(
    app: Any, limits: Limits, rejected: Callable[[str], None], tls: ssl.SSLContext | None, shutdown_timeout_s: int
) -> HttpServer:
    """`rejected` is told the reason of each request that is refused before the application sees it."""
    # Both are taken as they are: what makes a protocol when it is called, and a number of seconds.
    protocol: Any = functools.partial(GuardedProtocol, limits, rejected)
    keep_alive_s: Any = limits.keep_alive_s
    config = uvicorn.Config(
        app,
        http=protocol,
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        date_header=False,
        lifespan="off",
        ws="none",
        backlog=_BACKLOG,
        timeout_keep_alive=keep_alive_s,
        timeout_graceful_shutdown=shutdown_timeout_s,
    )
    config.load()
    config.ssl = tls
    return HttpServer(config)


def bind(host: str, port: int) -> socket.socket:
    """A listening socket. Raises `AddressError`."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except OSError as error:
        raise AddressError(
            f"{host}:{port} cannot be bound: {error.strerror or error}.", hint="choose another --host or --port"
        ) from error

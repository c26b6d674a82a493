"""The listening socket, and uvicorn as a part of this process."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import threading
from typing import Any

import pytest

from edgetune.core.errors import AddressError
from edgetune.serve.http.listener import HttpServer, bind, make_server
from edgetune.serve.http.request import Receive, Scope, Send
from edgetune.serve.settings import Limits
from tests.unit.serve.stand_ins import WAIT_S, in_loop, until


def test_a_free_port_is_taken_and_may_be_taken_again_at_once() -> None:
    with bind("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)) as client:
            accepted, _ = listener.accept()
            accepted.close()  # this side closes first, and keeps the port in TIME_WAIT
            assert client.recv(1) == b""
    bind("127.0.0.1", port).close()


@pytest.mark.parametrize("host", ["no-such-host.invalid", "256.1.1.1", "192.0.2.1", "x" * 64, "1:2:3", "a..b"])
def test_an_address_that_cannot_be_bound_is_told(host: str) -> None:
    with pytest.raises(AddressError, match="cannot be bound") as caught:
        bind(host, 0)
    assert caught.value.hint == "choose another --host or --port"


def test_a_port_in_use_is_told() -> None:
    with bind("127.0.0.1", 0) as listener, pytest.raises(AddressError, match="Address already in use"):
        bind("127.0.0.1", listener.getsockname()[1])


class Slow:
    """Answers when the test says so."""

    def __init__(self) -> None:
        self.begun, self.go = asyncio.Event(), asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.begun.set()
        await self.go.wait()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})


@contextlib.asynccontextmanager
async def _serving(app: Any, timeout_s: int = 10) -> Any:
    listener = bind("127.0.0.1", 0)
    server = make_server(app, Limits(), lambda _: None, None, timeout_s)
    task = asyncio.ensure_future(server.serve(sockets=[listener]))
    await until(lambda: server.started)
    try:
        yield server, task, listener.getsockname()
    finally:
        server.stop(at_once=True)
        await asyncio.wait_for(task, WAIT_S)


async def _request(address: Any) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection(*address[:2])
    writer.write(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
    return reader, writer


def test_stopping_lets_the_running_request_end_and_takes_no_other() -> None:
    async def work() -> None:
        app = Slow()
        async with _serving(app) as (server, task, address):
            reader, writer = await _request(address)
            await app.begun.wait()
            assert server.connection_count == 1
            server.stop()
            await asyncio.sleep(0.3)
            with pytest.raises(OSError):
                await asyncio.open_connection(*address[:2])
            assert not task.done()
            app.go.set()
            assert (await reader.read()).endswith(b"ok")
            await asyncio.wait_for(asyncio.shield(task), WAIT_S)
            assert server.connection_count == 0
            writer.close()

    in_loop(work)


@pytest.mark.parametrize(("timeout_s", "at_once"), [(1, False), (60, True)])
def test_a_request_that_never_ends_does_not_hold_the_server(timeout_s: int, at_once: bool) -> None:
    async def work() -> None:
        app = Slow()
        async with _serving(app, timeout_s) as (server, task, address):
            _, writer = await _request(address)
            await app.begun.wait()
            server.stop(at_once=at_once)
            await asyncio.wait_for(asyncio.shield(task), 5)
            app.go.set()
            writer.close()

    in_loop(work)


def test_signals_are_left_alone() -> None:
    before = signal.getsignal(signal.SIGTERM)

    async def work() -> None:
        async with _serving(Slow()):
            assert signal.getsignal(signal.SIGTERM) is before

    in_loop(work)


def test_nothing_is_told_of_what_serves() -> None:
    async def work() -> None:
        app = Slow()
        app.go.set()
        async with _serving(app) as (_, _, address):
            reader, writer = await _request(address)
            head = await reader.readuntil(b"\r\n\r\n")
            assert head == b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n"
            writer.close()

    in_loop(work)


def test_the_server_is_uvicorn_s_without_threads_of_its_own() -> None:
    before = threading.active_count()
    assert isinstance(make_server(Slow(), Limits(), lambda _: None, None, 3), HttpServer)
    assert threading.active_count() == before

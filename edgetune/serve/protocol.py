"""HTTP/1.1 on uvicorn's httptools protocol, with the deadlines and bounds that it lacks."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Any

import orjson
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from edgetune.serve.body import Body
from edgetune.serve.request import BODY, WHEN_GONE
from edgetune.serve.settings import Limits

_REASONS = {400: "bad_request", 408: "timeout", 431: "too_large", 503: "connections"}


class GuardedProtocol(HttpToolsProtocol):
    """Adds to uvicorn's protocol: the head of a request must come whole within `header_timeout_s` and bounds, its body
    within `body_timeout_s` and at a least rate; connections are bounded; errors are JSON; and whoever asked to know is
    told at once that a client has left.
    """

    def __init__(self, limits: Limits, rejected: Callable[[str], None], **arguments: Any) -> None:
        super().__init__(**arguments)
        self._limits = limits
        self._rejected = rejected
        self._when_gone: list[Callable[[], None]] = []
        self._body: Body | None = None
        self._alarm: asyncio.TimerHandle | None = None
        self._steps = 0  # heads and bodies that have come to their end
        self._head_bytes = 0
        self._body_bytes = 0
        self._in_head = True
        self._in_body = False
        self._body_started_s = 0.0

    @property
    def is_idle(self) -> bool:
        """Between two requests, or before the first."""
        return self._in_head and self._head_bytes == 0 and (self.cycle is None or self.cycle.response_complete)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        _send_at_once(transport)
        if len(self.connections) > self._limits.max_connections and not self._close_another():
            self._refuse(503, "the server has no connection left; try again")
            return
        self._set_alarm(self._limits.header_timeout_s, self._head_is_late)

    def connection_lost(self, exc: Exception | None) -> None:
        self._clear_alarm()
        super().connection_lost(exc)
        if self._body is not None:
            self._body.lose()
        callbacks, self._when_gone = self._when_gone, []
        for callback in callbacks:
            callback()

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        steps = self._steps
        super().data_received(data)
        if self._in_body and self._alarm is None:
            self._set_alarm(self._limits.body_timeout_s, self._body_is_late)
        elif self._in_head and steps == self._steps:
            self._head_grew(len(data))

    def on_headers_complete(self) -> None:
        self._steps += 1
        self._in_head, self._head_bytes = False, 0
        self._in_body, self._body_bytes = True, 0
        self._body_started_s = self.loop.time()
        self._clear_alarm()
        if sum(len(name) + len(value) for name, value in self.headers) + len(self.url) > self._limits.max_header_bytes:
            self._refuse(431, f"the request's head is over the limit of {self._limits.max_header_bytes} bytes")
            return
        self.scope[WHEN_GONE] = self._when_gone.append  # type: ignore[literal-required]
        # Who says "Expect: 100-continue" sends no body before it is asked for by uvicorn's own way of reading.
        self._body = None if self.expect_100_continue else Body(self.flow)
        self.scope[BODY] = self._body  # type: ignore[literal-required]
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        if self.transport.is_closing():
            return
        self._body_bytes += len(body)
        if self._body_bytes > 2 * self._limits.max_body_bytes:
            self.transport.abort()  # it was told 413 long ago
        elif self._body is not None:
            self._body.add(body)
        else:
            super().on_body(body)

    def on_message_complete(self) -> None:
        self._steps += 1
        self._in_head, self._in_body = True, False
        self._clear_alarm()
        if self.transport.is_closing():
            return
        super().on_message_complete()
        if self._body is not None:
            self._body.complete()

    def on_response_complete(self) -> None:
        self._when_gone.clear()
        super().on_response_complete()

    def send_400_response(self, msg: str) -> None:
        self._refuse(400, msg)

    def _head_grew(self, count: int) -> None:
        if self._alarm is None:
            self._set_alarm(self._limits.header_timeout_s, self._head_is_late)
        self._head_bytes += count
        if self._head_bytes > self._limits.max_header_bytes:
            self._refuse(431, f"the request's head is over the limit of {self._limits.max_header_bytes} bytes")

    def _head_is_late(self) -> None:
        if self._head_bytes:
            self._refuse(408, f"the request's head did not arrive within {self._limits.header_timeout_s:g} s")
        else:
            self.transport.close()

    def _body_is_late(self) -> None:
        """Gives a body more time as long as it keeps up a rate that a slow line has, and a slow attacker has not."""
        limits = self._limits
        elapsed = self.loop.time() - self._body_started_s
        if self._body_bytes >= limits.min_body_bytes_per_s * elapsed and elapsed < 6 * limits.body_timeout_s:
            self._set_alarm(limits.body_timeout_s, self._body_is_late)
            return
        self._refuse(
            408,
            f"the body did not arrive within {elapsed:.0f} s at {limits.min_body_bytes_per_s} bytes a second or more",
        )

    def _close_another(self) -> bool:
        """Makes room for a new connection at the cost of the one that has been idle longest."""
        for other in self.connections:
            if other is not self and isinstance(other, GuardedProtocol) and other.is_idle:
                other.transport.close()
                return True
        return False

    def _refuse(self, status: int, message: str) -> None:
        """Answers in the place of the application, unless that has begun to, and closes."""
        self._clear_alarm()
        if self.transport.is_closing():
            return
        self._rejected(_REASONS[status])
        if self.cycle is None or self.cycle.response_complete or not self.cycle.response_started:
            body = orjson.dumps({"error": message})
            retry = b"retry-after: 1\r\n" if status == 503 else b""
            head = b"content-type: application/json\r\nconnection: close\r\ncontent-length: %d\r\n\r\n" % len(body)
            self.transport.write(STATUS_LINE[status] + retry + head + body)
        self.transport.close()

    def _set_alarm(self, seconds: float, act: Callable[[], None]) -> None:
        self._clear_alarm()
        self._alarm = self.loop.call_later(seconds, act)

    def _clear_alarm(self) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None


def _send_at_once(transport: asyncio.BaseTransport) -> None:
    """An answer is a head and a body, two writes; Nagle's algorithm would hold the second back for 40 ms. asyncio turns
    it off only for sockets that name their protocol, which accepted ones do not.
    """
    connection = transport.get_extra_info("socket")
    if connection is not None and connection.family in (socket.AF_INET, socket.AF_INET6):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

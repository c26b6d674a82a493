"""HTTP/1.1 on uvicorn's httptools protocol, with the deadlines and bounds that it lacks."""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from collections.abc import Callable
from typing import Any

import orjson
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from edgetune.serve.http.body import Body
from edgetune.serve.http.request import ANSWER, BODY, WHEN_GONE
from edgetune.serve.settings import Limits

_REASONS = {400: "bad_request", 408: "timeout", 431: "too_large", 503: "connections"}

# Requests of one connection that are answered or wait for it; no client in use sends so many ahead.
_MOST_PIPELINED = 64
# What may come beside a body's own bytes: sizes of chunks, and trailers, which nobody here reads.
_FRAMING_BYTES = 1 << 20
# An answer that is not read must shrink by so much in so long.
_WRITE_TIMEOUT_S = 10.0
_LEAST_WRITTEN_BYTES = 1 << 14
# A connection too many gets so long to ask, and is then told that it is one.
_SURPLUS_S = 1.0


class GuardedProtocol(HttpToolsProtocol):
    """Adds to uvicorn's protocol: the head of a request must come whole within `header_timeout_s` and bounds, its body
    within `body_timeout_s` and at a least rate, and answers must be read; connections and what they send ahead are
    bounded; errors are JSON; and whoever asked to know is told at once that a client has left.
    """

    def __init__(self, limits: Limits, rejected: Callable[[str], None], **arguments: Any) -> None:
        super().__init__(**arguments)
        self.idle_since_s = self.loop.time()
        self._limits = limits
        self._rejected = rejected
        self._when_gone: list[Callable[[], None]] = []
        self._unanswered: deque[RequestResponseCycle] = deque()
        self._body: Body | None = None
        self._alarm: asyncio.TimerHandle | None = None
        self._write_alarm: asyncio.TimerHandle | None = None
        self._in_head = False
        self._in_body = False
        self._is_deaf = False  # what still comes is not looked at
        self._is_surplus = False  # one connection too many
        self._is_lost = False
        self._head_bytes = 0
        self._bodies = 0  # that came to their end
        self._body_bytes = 0
        self._new_body_bytes = 0  # in the data that is being read
        self._framing_bytes = 0
        self._body_started_s = 0.0

    @property
    def is_idle(self) -> bool:
        """Between two requests, or before the first."""
        return not (self._in_head or self._in_body or self._unanswered)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        _send_at_once(transport)
        too_many = len(self.connections) - self._limits.max_connections
        self._is_surplus = too_many > 0 and not self._close_another()
        if self._is_surplus and too_many > self._limits.max_connections:
            self._close()
            return
        patience_s = (
            min(_SURPLUS_S, self._limits.header_timeout_s) if self._is_surplus else self._limits.header_timeout_s
        )
        self._set_alarm(patience_s, self._head_is_late)

    def connection_lost(self, exc: Exception | None) -> None:
        self._is_lost = True
        self._clear_alarm()
        self._clear_write_alarm()
        for cycle in self._unanswered:
            cycle.disconnected = True
            cycle.message_event.set()
        super().connection_lost(exc)
        if self._body is not None:
            self._body.lose()
        callbacks, self._when_gone = self._when_gone, []
        for callback in callbacks:
            callback()
        # A closed connection is freed now, and not by a garbage collection some time: this and its requests are rings.
        self._unanswered.clear()
        self._body = self.cycle = self.scope = None  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        if self._is_deaf or self.transport.is_closing():
            return
        was_in_head, bodies = self._in_head, self._bodies
        self._new_body_bytes = 0
        super().data_received(data)
        if self._in_body:
            self._framing_bytes += len(data) - self._new_body_bytes
            if self._alarm is None:
                self._set_alarm(self._limits.body_timeout_s, self._body_is_late)
            if self._framing_bytes > _FRAMING_BYTES:
                self._refuse(431, f"the body has over {_FRAMING_BYTES} bytes of chunk sizes and trailers")
        elif self._in_head or self._bodies == bodies:  # the latter for empty lines before a head
            self._head_grew(len(data) if was_in_head or self._bodies == bodies else 1)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch_writing()

    def resume_writing(self) -> None:
        self._clear_write_alarm()
        super().resume_writing()

    def timeout_keep_alive_handler(self) -> None:
        self._close()

    def shutdown(self) -> None:
        if self.is_idle:
            self._close()
        else:
            super().shutdown()

    def on_message_begin(self) -> None:
        self._in_head = True
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._in_body:  # else it is a trailer
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        head_bytes = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
        if head_bytes > self._limits.max_header_bytes:
            self._refuse(431, f"the request's head is over the limit of {self._limits.max_header_bytes} bytes")
            return
        if self._is_surplus:  # an answer before the request would be lost with the connection's reset
            self._refuse(503, "the server has no connection left; try again")
            return
        if self._is_deaf or len(self._unanswered) >= _MOST_PIPELINED:
            self._end_after_answers()
            return
        self.scope[WHEN_GONE] = self._register  # type: ignore[literal-required]
        # Who says "Expect: 100-continue" sends no body before it is asked for by uvicorn's own way of reading.
        self._body = None if self.expect_100_continue else Body(self.flow)
        self.scope[BODY] = self._body  # type: ignore[literal-required]
        super().on_headers_complete()  # raises for a target that is no path
        self._unanswered.append(self.cycle)
        self.scope[ANSWER] = self._answer  # type: ignore[literal-required]
        if self.parser.should_upgrade():
            self.cycle.keep_alive = False  # the parser takes nothing more for HTTP
        self._in_head, self._in_body = False, True
        self._head_bytes = self._body_bytes = self._framing_bytes = 0
        self._body_started_s = self.loop.time()
        self._clear_alarm()

    def on_body(self, body: bytes) -> None:
        self._body_bytes += len(body)
        self._new_body_bytes += len(body)
        if self._is_deaf or self.transport.is_closing() or not self._in_body:
            return
        if self._body_bytes > 2 * self._limits.max_body_bytes:
            self._close()  # it was told 413 long ago
        elif self._body is not None:
            self._body.add(body)
        else:
            super().on_body(body)

    def on_message_complete(self) -> None:
        if self._is_deaf or self.transport.is_closing() or not self._in_body:
            return
        self._in_body = False
        self._bodies += 1
        self._clear_alarm()
        super().on_message_complete()
        if self._body is not None:
            self._body.complete()
        if not self._unanswered:
            self._rest()

    def on_response_complete(self) -> None:
        self._when_gone.clear()
        self._unanswered.popleft()
        super().on_response_complete()
        if self.transport.is_closing():
            self._watch_writing()
        elif self.pipeline:
            self.flow.pause_reading()
        elif not self._in_body:
            self._rest()

    def send_400_response(self, msg: str) -> None:
        self._refuse(400, msg)

    async def _answer(self, status: int, head: bytes, body: bytes) -> None:
        """Writes the whole answer to the oldest unanswered request at once: head and body by ASGI are two writes, which
        cost two system calls and wake the client twice. `head` holds all headers but the length.
        """
        if self.flow.write_paused and not self._is_lost:
            await self.flow.drain()
        if self._is_lost or self._unanswered[0].disconnected:
            return
        cycle = self._unanswered[0]
        cycle.response_started = cycle.response_complete = True
        close = b"" if cycle.keep_alive else b"connection: close\r\n"
        length = b"content-length: %d\r\n\r\n" % len(body)
        sent = b"" if cycle.scope["method"] == "HEAD" else body
        self.transport.write(b"".join((STATUS_LINE[status], head, close, length, sent)))
        cycle.message_event.set()
        if not cycle.keep_alive:
            self.transport.close()
        cycle.on_response()

    def _rest(self) -> None:
        """Both the request and its answer are complete."""
        self.idle_since_s = self.loop.time()
        self._unset_keepalive_if_required()
        if not self._head_bytes and not self.transport.is_closing():
            self._set_alarm(self._limits.keep_alive_s, self._head_is_late)

    def _head_grew(self, count: int) -> None:
        if self._head_bytes == 0:
            self._set_alarm(self._limits.header_timeout_s, self._head_is_late)
        self._head_bytes += count
        if self._head_bytes > self._limits.max_header_bytes:
            self._refuse(431, f"the request's head is over the limit of {self._limits.max_header_bytes} bytes")

    def _head_is_late(self) -> None:
        if self._head_bytes:
            self._refuse(408, f"the request's head did not arrive within {self._limits.header_timeout_s:g} s")
        else:
            self._close()

    def _body_is_late(self) -> None:
        """Gives a body more time as long as it keeps up a rate that a slow line has, and a slow attacker has not."""
        limits = self._limits
        elapsed = self.loop.time() - self._body_started_s
        if self.flow.read_paused:  # by this server, not by the client
            self._body_started_s += limits.body_timeout_s
        elif self._body_bytes < limits.min_body_bytes_per_s * elapsed or elapsed > 6 * limits.body_timeout_s:
            rate = f"{limits.min_body_bytes_per_s} bytes a second or more"
            self._refuse(408, f"the body did not arrive within {elapsed:.1f} s at {rate}")
            return
        self._set_alarm(limits.body_timeout_s, self._body_is_late)

    def _set_alarm(self, seconds: float, act: Callable[[], None]) -> None:
        self._clear_alarm()
        self._alarm = self.loop.call_later(seconds, act)

    def _clear_alarm(self) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None

    def _watch_writing(self) -> None:
        """Ends the connection of a client that does not read what was written for it."""
        self._clear_write_alarm()
        left = self.transport.get_write_buffer_size()
        self._write_alarm = self.loop.call_later(_WRITE_TIMEOUT_S, self._check_writing, left)

    def _check_writing(self, left: int) -> None:
        if left - self.transport.get_write_buffer_size() >= _LEAST_WRITTEN_BYTES:
            self._watch_writing()
        else:
            self.transport.abort()

    def _clear_write_alarm(self) -> None:
        if self._write_alarm is not None:
            self._write_alarm.cancel()
            self._write_alarm = None

    def _close_another(self) -> bool:
        """Makes room for a new connection at the cost of the one that has been idle longest."""
        idle = [
            other for other in self.connections
            if isinstance(other, GuardedProtocol) and other is not self and other.is_idle
        ]  # fmt: skip
        if not idle:
            return False
        min(idle, key=lambda other: other.idle_since_s)._close()
        return True

    def _register(self, leave: Callable[[], None]) -> None:
        """Calls `leave` when the client leaves, or soon, if it has."""
        if self._is_lost:
            self.loop.call_soon(leave)
        else:
            self._when_gone.append(leave)

    def _refuse(self, status: int, message: str) -> None:
        """Answers in the place of the application and closes: without a word where the request has been answered, and
        after the answers where earlier ones are still to come.
        """
        self._clear_alarm()
        if self._is_deaf or self.transport.is_closing():
            return
        self._rejected(_REASONS[status])
        is_answered = self._in_body and (not self._unanswered or self._unanswered[-1].response_started)
        earlier = len(self._unanswered) - self._in_body
        if earlier > 0 and not self._in_body:
            self._end_after_answers()
            return
        if earlier <= 0 and not is_answered:
            body = orjson.dumps({"error": message})
            retry = b"retry-after: 1\r\n" if status == 503 else b""
            head = b"content-type: application/json\r\nconnection: close\r\ncontent-length: %d\r\n\r\n" % len(body)
            self.transport.write(STATUS_LINE[status] + retry + head + body)
        self._close()

    def _end_after_answers(self) -> None:
        """Nothing more is read, and the connection ends with the last answer to what was."""
        self._is_deaf = True
        self._clear_alarm()
        self.flow.pause_reading()
        if self._unanswered:
            self._unanswered[-1].keep_alive = False
        else:
            self._close()

    def _close(self) -> None:
        """Closes when what was written has left, and not much later."""
        if self.transport.is_closing():
            return
        for cycle in self._unanswered:
            cycle.disconnected = True
            cycle.message_event.set()
        self.transport.close()
        self._watch_writing()


def _send_at_once(transport: asyncio.BaseTransport) -> None:
    """Turns Nagle's algorithm off, which holds the end of an answer back for 40 ms. asyncio does so only for sockets
    that name their protocol, which accepted ones do not.
    """
    connection = transport.get_extra_info("socket")
    if connection is not None and connection.family in (socket.AF_INET, socket.AF_INET6):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

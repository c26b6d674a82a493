"""How many requests may be here with their bodies; the others wait a little outside, unread."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from enum import Enum, auto

from edgetune.serve.errors import ClientGone, RequestError
from edgetune.serve.http.request import Request
from edgetune.serve.settings import Limits


class _Turn(Enum):
    """How waiting ends. No error is kept for it: see `as_request_error`."""

    ADMITTED = auto()
    REFUSED = auto()
    GONE = auto()


class Admission:
    """Bounds requests and the bytes of their bodies; first come, first served.

    A request that has to wait has not been read: its bytes stay in the network's buffers, which cost this process
    nothing, and a short wait turns a burst into a queue instead of errors. Under lasting overload the wait also keeps
    refused clients from coming back at once.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._requests = 0
        self._bytes = 0
        self._outside: deque[tuple[int, asyncio.Future[_Turn]]] = deque()

    @property
    def admitted(self) -> int:
        return self._requests

    @asynccontextmanager
    async def place(self, request: Request) -> AsyncIterator[None]:
        """Held from before the body is read to the answer. Raises `RequestError` 503 or 413, and `ClientGone`."""
        limit = self._limits.max_body_bytes
        # What comes in chunks or compressed may become as large as a body may be.
        may_grow = request.is_chunked or "content-encoding" in request.headers
        weight = max(request.announced_bytes(), limit if may_grow else 0)
        if weight > limit:
            raise RequestError(413, f"the body is over the limit of {limit} bytes", reason="too_large")
        if self._outside or not self._fits(weight):
            await self._wait(weight, request)
        else:
            self._take(weight)
        try:
            yield
        finally:
            self._give_back(weight)

    def _fits(self, weight: int) -> bool:
        within = self._bytes + weight <= self._limits.max_request_bytes
        return self._requests < self._limits.max_requests and within

    def _take(self, weight: int) -> None:
        self._requests += 1
        self._bytes += weight

    def _give_back(self, weight: int) -> None:
        self._requests -= 1
        self._bytes -= weight
        self._let_in()

    async def _wait(self, weight: int, request: Request) -> None:
        turn: asyncio.Future[_Turn] = asyncio.get_running_loop().create_future()
        self._outside.append((weight, turn))
        request.when_gone(lambda: self._end(turn, _Turn.GONE))
        alarm = asyncio.get_running_loop().call_later(self._limits.admission_wait_s, self._end, turn, _Turn.REFUSED)
        try:
            verdict = await turn
        except asyncio.CancelledError:
            if turn.cancelled():
                self._let_in()
            elif turn.result() is _Turn.ADMITTED:
                self._give_back(weight)
            raise
        finally:
            alarm.cancel()
        if verdict is _Turn.GONE:
            raise ClientGone
        if verdict is _Turn.REFUSED:
            message = f"the server is busy with {self._requests} requests; try again"
            raise RequestError(503, message, reason="queue_full")

    def _end(self, turn: asyncio.Future[_Turn], verdict: _Turn) -> None:
        if not turn.done():
            turn.set_result(verdict)
            self._let_in()

    def _let_in(self) -> None:
        while self._outside:
            weight, turn = self._outside[0]
            if turn.done():
                self._outside.popleft()
            elif self._fits(weight):
                self._outside.popleft()
                self._take(weight)
                turn.set_result(_Turn.ADMITTED)
            else:
                return

"""A request's body on its way in."""

from __future__ import annotations

import asyncio
from typing import Protocol

from edgetune.serve.errors import ClientGone, RequestError

# What may come before somebody reads; the rest then stays in the network's buffers.
_UNREAD_BYTES = 1 << 16


class Flow(Protocol):
    """Stops and starts the bytes of a connection."""

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...


class Body:
    """Keeps the pieces as they come, and joins them once: a body of one piece is never copied."""

    __slots__ = ("_flow", "_is_complete", "_is_dropped", "_is_lost", "_is_wanted", "_max_bytes", "_pieces", "_size",
                 "_waiting")  # fmt: skip

    def __init__(self, flow: Flow) -> None:
        self._flow = flow
        self._pieces: list[bytes] = []
        self._size = 0
        self._max_bytes = 1 << 62
        self._is_complete = self._is_dropped = self._is_lost = self._is_wanted = False
        self._waiting: asyncio.Future[None] | None = None

    def add(self, piece: bytes) -> None:
        self._size += len(piece)
        if self._size > self._max_bytes:
            self._pieces.clear()
            if self._is_dropped:
                return
            self._flow.pause_reading()  # until the refusal has left
            self._wake()
            return
        self._pieces.append(piece)
        if self._size > _UNREAD_BYTES and not self._is_wanted:
            self._flow.pause_reading()

    def complete(self) -> None:
        self._is_complete = True
        self._wake()

    def lose(self) -> None:
        """The connection has ended."""
        self._is_lost = True
        self._wake()

    def drop(self) -> None:
        """Nobody will read it: what came is forgotten, and so is what still comes."""
        self._pieces.clear()
        self._max_bytes, self._is_dropped = -1, True
        self._flow.resume_reading()

    async def read(self, max_bytes: int) -> bytes:
        """The whole body, once. Raises `RequestError` 413 over the limit, and `ClientGone`."""
        self._is_wanted, self._max_bytes = True, max_bytes
        if not self._is_complete and self._size <= max_bytes and not self._is_lost:
            self._flow.resume_reading()
            self._waiting = asyncio.get_running_loop().create_future()
            await self._waiting
        pieces, self._pieces = self._pieces, []
        if self._size > max_bytes:
            raise RequestError(413, f"the body is over the limit of {max_bytes} bytes", reason="too_large")
        if not self._is_complete:
            raise ClientGone
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _wake(self) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)

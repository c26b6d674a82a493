"""An answer leaves as one write, at once."""

from __future__ import annotations

import asyncio
import socket
from enum import Enum, auto
from typing import Any


class _Stage(Enum):
    BEFORE_HEAD = auto()
    HEAD_HELD = auto()
    HEAD_WRITTEN = auto()


class OneWrite:
    """Stands before a transport and holds the head of an answer back until its body comes: two small writes cost two
    system calls, and wake the client twice. Whatever is no part of this is the transport's.
    """

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._stage = _Stage.BEFORE_HEAD
        self._head = b""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        if self._stage is _Stage.HEAD_WRITTEN:
            self._transport.write(data)
        elif self._stage is _Stage.HEAD_HELD:
            self._transport.write(self._head + data)
            self._stage = _Stage.HEAD_WRITTEN
        elif data.startswith(b"HTTP/1.1 100 "):
            self._transport.write(data)
        else:
            self._head, self._stage = data, _Stage.HEAD_HELD

    def end_answer(self) -> None:
        """The next write begins another answer; a head without a body leaves now."""
        if self._stage is _Stage.HEAD_HELD:
            self._transport.write(self._head)
        self._head, self._stage = b"", _Stage.BEFORE_HEAD

    def close(self) -> None:
        self.end_answer()
        self._transport.close()


def send_at_once(transport: asyncio.BaseTransport) -> None:
    """Turns Nagle's algorithm off, which holds the end of an answer back for 40 ms. asyncio does so only for sockets
    that name their protocol, which accepted ones do not.
    """
    connection = transport.get_extra_info("socket")
    if connection is not None and connection.family in (socket.AF_INET, socket.AF_INET6):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

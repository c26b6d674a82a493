"""Who waits for whom: a bounded number of requests, decoding beside inference, inference one at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

from edgetune.core.machine import usable_cpus
from edgetune.serve.schemas import RequestError

T = TypeVar("T")


class Scheduler:
    """Admits up to `max_requests` at a time; the session's own threads already use all CPUs, so one inference
    runs at a time and the others wait in order.
    """

    def __init__(self, max_requests: int) -> None:
        self._max_requests = max_requests
        self._admitted = 0
        # An image at the pixel limit takes a few hundred MB while it is decoded; two at a time fit a small device.
        self._decoding = ThreadPoolExecutor(min(2, usable_cpus()), thread_name_prefix="decode")
        self._inference = ThreadPoolExecutor(1, thread_name_prefix="infer")

    @contextmanager
    def admit(self) -> Iterator[None]:
        """Raises `RequestError` 503 when the server is full; held from before the body is read to the answer."""
        if self._admitted >= self._max_requests:
            raise RequestError(503, f"the server is busy with {self._admitted} requests; try again")
        self._admitted += 1
        try:
            yield
        finally:
            self._admitted -= 1

    async def decode(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._decoding, work)

    async def infer(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._inference, work)

    def close(self) -> None:
        self._decoding.shutdown(cancel_futures=True)
        self._inference.shutdown(cancel_futures=True)

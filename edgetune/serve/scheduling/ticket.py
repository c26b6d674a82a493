"""One request's items on their way through the runner threads."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from enum import Enum, auto

from edgetune.serve.errors import ClientGone, RequestError
from edgetune.serve.scheduling.batches import Item, Outcome
from edgetune.serve.slot import Serving


class _End(Enum):
    """How a ticket ends. No error is kept for it: see `as_request_error`."""

    DONE = auto()
    LATE = auto()
    GONE = auto()


class Ticket:
    """`wait` gives the items' outcomes in order. Made and touched on the loop's thread; `pending` are the indices of
    the items that no thread has been given. `forget` is told once when nobody waits for it any more.
    """

    def __init__(
        self, serving: Serving, items: Sequence[Item], deadline_s: float, forget: Callable[[Ticket], None]
    ) -> None:
        loop = asyncio.get_running_loop()
        self.serving = serving
        self.items = items
        self.pending = deque(range(len(items)))
        self.undecoded: deque[Item] = deque()
        self.decoding = 0  # how many of those are not done
        self._forget = forget
        self._outcomes: list[Outcome | None] = [None] * len(items)
        self._missing = len(items)
        self._end: asyncio.Future[_End] = loop.create_future()
        self._deadline_s = deadline_s
        self._alarm = loop.call_later(deadline_s, self._finish, _End.LATE)

    @property
    def is_over(self) -> bool:
        """Nobody waits for it any more; what is still queued of it is dropped."""
        return self._end.done()

    async def wait(self) -> list[Outcome]:
        """Raises `RequestError` 504 at the deadline, and `ClientGone` when the client has left."""
        try:
            end = await self._end
        finally:
            self._alarm.cancel()
            if self._end.cancel():
                self._forget(self)
        if end is _End.GONE:
            raise ClientGone
        if end is _End.LATE:
            raise RequestError(504, f"the answer was not ready within {self._deadline_s:g} s", reason="deadline")
        return [outcome for outcome in self._outcomes if outcome is not None]

    def take(self, index: int, outcome: Outcome) -> None:
        """One item's outcome."""
        self._outcomes[index] = outcome
        self._missing -= 1
        if self._missing == 0:
            self._finish(_End.DONE)

    def leave(self) -> None:
        """The client has gone: nothing more is done for it."""
        self._finish(_End.GONE)

    def _finish(self, end: _End) -> None:
        if not self.is_over:
            self._end.set_result(end)
            self._forget(self)

"""Who waits for whom: a bounded number of requests, their items in turn, and a few threads that run them."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from enum import Enum, auto
from typing import Protocol

from edgetune.core.tensors import Feed
from edgetune.serve.batches import Item, Outcome, run_items, signature
from edgetune.serve.errors import ClientGone, RequestError, as_request_error
from edgetune.serve.plan import ThreadPlan
from edgetune.serve.slot import Serving
from edgetune.serve.work import WorkQueue


class Listener(Protocol):
    """Is told of each run of the session, on the event loop's thread."""

    def __call__(self, items: Sequence[Item], outcomes: Sequence[Outcome]) -> None: ...


class _End(Enum):
    """How a ticket ends. No error is kept for it: see `as_request_error`."""

    DONE = auto()
    LATE = auto()
    GONE = auto()


class Ticket:
    """One request's items on their way; `wait` gives their outcomes in order. Made and touched on the loop's thread."""

    def __init__(self, serving: Serving, items: Sequence[Item], deadline_s: float) -> None:
        loop = asyncio.get_running_loop()
        self.serving = serving
        self.items = items
        self.pending = deque(range(len(items)))
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
            self._end.cancel()
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


class Scheduler:
    """Hands items to runner threads, a request's turn after another's, so that a large one does not starve a small one.

    All methods belong to the event loop's thread. Without batching each thread holds one item in work and one in hand,
    so that it never waits for the loop; with it, a batch is made of what is there when a thread is free.
    """

    def __init__(self, plan: ThreadPlan, listener: Listener, batch_delay_s: float = 0.0) -> None:
        self._plan = plan
        self._listener = listener
        self._batch_delay_s = batch_delay_s if plan.batch > 1 else 0.0
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[Ticket] = deque()
        self._work: WorkQueue[_Job] = WorkQueue()
        self._handed = 0
        self._running: dict[int, int] = {}
        self._decoding = ThreadPoolExecutor(plan.decoders, thread_name_prefix="decode") if plan.batch > 1 else None
        self._delay: asyncio.TimerHandle | None = None
        self._is_late = False
        self._threads = [threading.Thread(target=self._run, name=f"run-{n}", daemon=True) for n in range(plan.runs)]
        for thread in self._threads:
            thread.start()

    @property
    def queue_length(self) -> int:
        """Items that no thread has begun."""
        return sum(len(ticket.pending) for ticket in self._waiting) + len(self._work)

    @property
    def oldest_run_s(self) -> float:
        """How long the run that has been going longest has been going; 0 where none is."""
        started = min(self._running.copy().values(), default=0)
        return (time.perf_counter_ns() - started) / 1e9 if started else 0.0

    def submit(self, serving: Serving, items: Sequence[Item], deadline_s: float) -> Ticket:
        ticket = Ticket(serving, items, deadline_s)
        if self._decoding is None or all(item.feed is not None for item in items):
            self._waiting.append(ticket)
            self._dispatch()
        else:
            self._decode_first(ticket, self._decoding)
        return ticket

    def close(self) -> None:
        """Ends the threads after what they have in hand; what waits is never begun."""
        self._waiting.clear()
        self._work.close()
        if self._decoding is not None:
            self._decoding.shutdown(wait=False, cancel_futures=True)

    def _decode_first(self, ticket: Ticket, pool: ThreadPoolExecutor) -> None:
        """Joins the queue when all its images are decoded, well or not."""
        left = len(ticket.items)

        def one_done() -> None:
            nonlocal left
            left -= 1
            if left == 0:
                self._waiting.append(ticket)
                self._dispatch()

        for item in ticket.items:
            pool.submit(_decode, item, lambda: self._loop.call_soon_threadsafe(one_done))

    def _dispatch(self) -> None:
        spare = len(self._threads) * (1 if self._plan.batch > 1 else 2) - self._handed
        while spare > 0 and self._waiting:
            parts = self._next_parts()
            if parts:
                if self._is_worth_waiting(parts):
                    return
                self._hand_over(parts)
                spare -= 1

    def _next_parts(self) -> list[tuple[Ticket, int]]:
        """The next item, and with batching those that may run with it, each taken off the queue."""
        parts: list[tuple[Ticket, int]] = []
        images, kind = 0, None
        for _ in range(len(self._waiting)):
            ticket = self._waiting.popleft()
            if ticket.is_over:
                continue
            while ticket.pending:
                item = ticket.items[ticket.pending[0]]
                same = (ticket.serving, signature(item.feed)) if item.feed is not None else None
                if parts and (same != kind or same is None or images + item.count > self._plan.batch):
                    break
                parts.append((ticket, ticket.pending.popleft()))
                images, kind = images + item.count, same
                if self._plan.batch == 1:
                    break
            if ticket.pending:
                self._waiting.append(ticket)
            if parts and (self._plan.batch == 1 or images >= self._plan.batch):
                break
        return parts

    def _is_worth_waiting(self, parts: Sequence[tuple[Ticket, int]]) -> bool:
        """With a delay set, a batch that is not full goes back to the queue until it is, or the delay is over."""
        images = sum(ticket.items[index].count for ticket, index in parts)
        if not self._batch_delay_s or self._is_late or images >= self._plan.batch:
            return False
        for ticket, index in reversed(parts):
            ticket.pending.appendleft(index)
            if ticket not in self._waiting:
                self._waiting.appendleft(ticket)
        if self._delay is None:
            self._delay = self._loop.call_later(self._batch_delay_s, self._delay_over)
        return True

    def _delay_over(self) -> None:
        self._delay, self._is_late = None, True
        self._dispatch()
        self._is_late = False

    def _hand_over(self, parts: list[tuple[Ticket, int]]) -> None:
        self._handed += 1
        serving = parts[0][0].serving
        serving.acquire()
        self._work.put(_Job(serving, parts))

    def _run(self) -> None:
        """A runner thread's life."""
        name = threading.get_ident()
        while (job := self._work.get()) is not None:
            if all(ticket.is_over for ticket, _ in job.parts):
                outcomes = [Outcome() for _ in job.parts]
            else:
                self._running[name] = time.perf_counter_ns()
                outcomes = run_items(job.serving.model, [ticket.items[index] for ticket, index in job.parts])
                self._running.pop(name, None)
            try:
                self._loop.call_soon_threadsafe(self._finish, job, outcomes)
            except RuntimeError:
                return  # the loop has been closed: the process ends

    def _finish(self, job: _Job, outcomes: list[Outcome]) -> None:
        self._handed -= 1
        job.serving.release()
        self._dispatch()
        items = [ticket.items[index] for ticket, index in job.parts]
        if outcomes[0].started_ns:
            self._listener(items, outcomes)
        for (ticket, index), outcome in zip(job.parts, outcomes, strict=True):
            ticket.take(index, outcome)


class _Job:
    """A batch on its way to a thread."""

    def __init__(self, serving: Serving, parts: list[tuple[Ticket, int]]) -> None:
        self.serving = serving
        self.parts = parts


def _decode(item: Item, done: Callable[[], object]) -> None:
    """In a decoding thread. An item that cannot be decoded fails again, with the same words, when it is run."""
    try:
        item.ready_feed()
    except Exception as error:  # noqa: BLE001 - kept for the item's own answer
        item.prepare = _raising(as_request_error(error))
    finally:
        done()


def _raising(error: RequestError) -> Callable[[], Feed]:
    def again() -> Feed:
        raise as_request_error(error)

    return again

"""Who waits for whom: a bounded number of requests, their items in turn, and a few threads that run them."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

from edgetune.core.tensors import Feed
from edgetune.serve.errors import RequestError, as_request_error
from edgetune.serve.scheduling.batches import Item, Outcome, run_items
from edgetune.serve.scheduling.plan import ThreadPlan
from edgetune.serve.scheduling.ticket import Ticket
from edgetune.serve.scheduling.turns import Part, Turns
from edgetune.serve.scheduling.work import WorkQueue
from edgetune.serve.slot import Serving


class Listener(Protocol):
    """Is told of each run of the session, on the event loop's thread."""

    def __call__(self, items: Sequence[Item], outcomes: Sequence[Outcome]) -> None: ...


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
        self._turns = Turns()
        self._work: WorkQueue[_Job] = WorkQueue()
        self._handed = 0
        self._running: dict[int, int] = {}
        self._open: set[Ticket] = set()
        self._undecoded: deque[Ticket] = deque()
        self._decoders = ThreadPoolExecutor(plan.decoders, thread_name_prefix="decode") if plan.batch > 1 else None
        self._decoding = 0
        self._delay: asyncio.TimerHandle | None = None
        self._threads = [threading.Thread(target=self._run, name=f"run-{n}", daemon=True) for n in range(plan.runs)]
        for thread in self._threads:
            thread.start()

    @property
    def queue_length(self) -> int:
        """Items that no runner thread has begun, those that wait to be decoded among them."""
        return sum(len(ticket.pending) for ticket in self._open) + len(self._work)

    @property
    def oldest_run_s(self) -> float:
        """How long the run that has been going longest has been going; 0 where none is."""
        started = min(self._running.copy().values(), default=0)
        return (time.perf_counter_ns() - started) / 1e9 if started else 0.0

    def submit(self, serving: Serving, items: Sequence[Item], deadline_s: float) -> Ticket:
        ticket = Ticket(serving, items, deadline_s, self._forget)
        self._open.add(ticket)
        if self._decoders is not None:
            ticket.undecoded.extend(item for item in items if item.feed is None)
            ticket.decoding = len(ticket.undecoded)
        if ticket.undecoded:
            self._undecoded.append(ticket)
            self._decode_next()
        else:
            self._turns.add(ticket)
            self._dispatch()
        return ticket

    def close(self) -> None:
        """Ends the threads after what they have in hand; what waits is never begun."""
        self._turns.clear()
        self._undecoded.clear()
        self._work.close()
        if self._decoders is not None:
            self._decoders.shutdown(wait=False, cancel_futures=True)

    def _forget(self, ticket: Ticket) -> None:
        """Drops what is queued of a ticket that is over: admission no longer counts its body."""
        self._open.discard(ticket)
        if ticket.pending:
            self._turns.remove(ticket)
            with contextlib.suppress(ValueError):
                self._undecoded.remove(ticket)

    def _decode_next(self) -> None:
        """Gives each decoder an image in work and one in hand, a request's turn after another's."""
        while self._decoders is not None and self._decoding < 2 * self._plan.decoders and self._undecoded:
            ticket = self._undecoded.popleft()
            item = ticket.undecoded.popleft()
            if ticket.undecoded:
                self._undecoded.append(ticket)
            self._decoding += 1
            self._decoders.submit(self._decode, ticket, item)

    def _decode(self, ticket: Ticket, item: Item) -> None:
        """In a decoding thread."""
        if not ticket.is_over:
            _decode(item)
        with contextlib.suppress(RuntimeError):  # the loop has been closed: the process ends
            self._loop.call_soon_threadsafe(self._decoded, ticket)

    def _decoded(self, ticket: Ticket) -> None:
        """A ticket joins the queue when all its images are decoded, well or not."""
        self._decoding -= 1
        self._decode_next()
        ticket.decoding -= 1
        if ticket.decoding == 0 and not ticket.is_over:
            self._turns.add(ticket)
            self._dispatch()

    def _dispatch(self) -> None:
        batch = self._plan.batch
        spare = len(self._threads) * (1 if batch > 1 else 2) - self._handed
        while spare > 0:
            parts = self._turns.next_batch(batch) if batch > 1 else self._turns.next_item()
            if not parts or self._is_worth_waiting(parts):
                return
            self._hand_over(parts)
            spare -= 1

    def _is_worth_waiting(self, parts: list[Part]) -> bool:
        """With a delay set, a batch that is not full goes back to the queue until it is, or the delay is over."""
        waited_s = (time.perf_counter_ns() - min(part.item.queued_ns for part in parts)) / 1e9
        if waited_s >= self._batch_delay_s or sum(part.item.count for part in parts) >= self._plan.batch:
            return False
        self._turns.put_back(parts)
        if self._delay is None:
            self._delay = self._loop.call_later(self._batch_delay_s - waited_s, self._delay_over)
        return True

    def _delay_over(self) -> None:
        self._delay = None
        self._dispatch()

    def _hand_over(self, parts: list[Part]) -> None:
        self._handed += 1
        job = _Job(parts[0].ticket.serving, parts)
        job.serving.acquire()
        self._work.put(job)

    def _run(self) -> None:
        """A runner thread's life."""
        name = threading.get_ident()
        while (job := self._work.get()) is not None:
            if all(part.ticket.is_over for part in job.parts):
                outcomes = [Outcome() for _ in job.parts]
            else:
                self._running[name] = time.perf_counter_ns()
                outcomes = run_items(job.serving.model, [part.item for part in job.parts])
                self._running.pop(name, None)
            try:
                self._loop.call_soon_threadsafe(self._finish, job, outcomes)
            except RuntimeError:
                return  # the loop has been closed: the process ends
            del job, outcomes  # an idle thread holds no request

    def _finish(self, job: _Job, outcomes: list[Outcome]) -> None:
        self._handed -= 1
        job.serving.release()
        self._dispatch()
        for part, outcome in zip(job.parts, outcomes, strict=True):
            part.ticket.take(part.index, outcome)
        if outcomes[0].started_ns:  # counted when the answers have left
            self._loop.call_soon(self._listener, [part.item for part in job.parts], outcomes)


@dataclass(frozen=True)
class _Job:
    """A batch on its way to a thread."""

    serving: Serving
    parts: list[Part]


def _decode(item: Item) -> None:
    """An item that cannot be decoded fails again, with the same words, when it is run."""
    try:
        item.ready_feed()
    except Exception as error:  # noqa: BLE001 - kept for the item's own answer
        item.prepare = _raising(as_request_error(error))


def _raising(error: RequestError) -> Callable[[], Feed]:
    def again() -> Feed:
        raise as_request_error(error)

    return again

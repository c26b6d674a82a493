"""Whose item is next: requests take turns, so that a large one does not starve a small one."""

from __future__ import annotations

import contextlib
from collections import deque
from dataclasses import dataclass

from edgetune.serve.scheduling.batches import Item, signature
from edgetune.serve.scheduling.ticket import Ticket


@dataclass(frozen=True)
class Part:
    """One item of a ticket, to be run."""

    ticket: Ticket
    index: int

    @property
    def item(self) -> Item:
        return self.ticket.items[self.index]


class Turns:
    """Tickets in turn. One that is over leaves when its turn comes."""

    def __init__(self) -> None:
        self._tickets: deque[Ticket] = deque()

    def add(self, ticket: Ticket) -> None:
        self._tickets.append(ticket)

    def remove(self, ticket: Ticket) -> None:
        with contextlib.suppress(ValueError):
            self._tickets.remove(ticket)

    def clear(self) -> None:
        self._tickets.clear()

    def next_item(self) -> list[Part]:
        """The next ticket's next item; empty when nothing waits."""
        while self._tickets:
            ticket = self._tickets.popleft()
            if not ticket.is_over and ticket.pending:
                part = Part(ticket, ticket.pending.popleft())
                if ticket.pending:
                    self._tickets.append(ticket)
                return [part]
        return []

    def next_batch(self, most: int) -> list[Part]:
        """The next item with those behind it that may run with it, `most` images at most; an item that holds more, or
        that could not be decoded, is alone.
        """
        batch: list[Part] = self.next_item()
        kind = _kind(batch[0].ticket, batch[0].item) if batch else None
        if kind is None:
            return batch
        first = batch[0]
        images = first.item.count
        for _ in range(len(self._tickets)):
            ticket = self._tickets.popleft()
            while not ticket.is_over and ticket.pending:
                item = ticket.items[ticket.pending[0]]
                if images + item.count > most or _kind(ticket, item) != kind:
                    break
                batch.append(Part(ticket, ticket.pending.popleft()))
                images += item.count
            if ticket.pending and not ticket.is_over:
                self._tickets.append(ticket)
        return batch

    def put_back(self, batch: list[Part]) -> None:
        """As if the batch had not been taken."""
        for part in reversed(batch):
            part.ticket.pending.appendleft(part.index)
            if part.ticket in self._tickets:
                self._tickets.remove(part.ticket)
            self._tickets.appendleft(part.ticket)


def _kind(ticket: Ticket, item: Item) -> object:
    """What items must share to be run as one batch; None for one that is run alone, or could not be decoded."""
    return None if item.feed is None or item.is_alone else (ticket.serving, signature(item.feed))

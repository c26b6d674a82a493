"""A scheduler for a test, and what goes into it and comes out of it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence

from edgetune.core.errors import ImageError
from edgetune.core.tensors import Feed
from edgetune.serve.scheduling.batches import Item, Outcome
from edgetune.serve.scheduling.plan import ThreadPlan
from edgetune.serve.scheduling.scheduler import Scheduler
from tests.unit.serve.stand_ins import WAIT_S, Ear, Held, Opened, rows

LONG_S = WAIT_S


@contextlib.asynccontextmanager
async def scheduling(made: ThreadPlan, delay_s: float = 0.0, ear: Ear | None = None) -> AsyncIterator[Scheduler]:
    """Ends the threads, and looks that they do end."""
    scheduler = Scheduler(made, ear or Ear(), delay_s)
    try:
        yield scheduler
    finally:
        scheduler.close()
        for thread in scheduler._threads:
            await asyncio.to_thread(thread.join, WAIT_S)
            assert not thread.is_alive()


def values_of(outcomes: Sequence[Outcome]) -> list[list[float]]:
    return [[] if one.outputs is None else [float(value) for value in one.outputs["y"][:, 0]] for one in outcomes]


def items_of(*values: float) -> list[Item]:
    return [Item(1, rows(value)) for value in values]


def broken() -> Feed:
    raise ImageError("no image")


def held_model(opened: Opened) -> Held:
    model = opened.model.infer.__self__  # type: ignore[attr-defined]
    assert isinstance(model, Held)
    return model

"""How requests leave the scheduler: too late, gone, cancelled, closed; and that nothing of them stays."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import weakref
from typing import Any

import numpy as np
import pytest

from edgetune.core.tensors import Feed
from edgetune.serve.errors import ClientGone, RequestError
from edgetune.serve.scheduling.batches import Item
from edgetune.serve.scheduling.scheduler import Scheduler
from tests.unit.serve.scheduling.scheduling import LONG_S, items_of, scheduling, values_of
from tests.unit.serve.stand_ins import INPUT, WAIT_S, Doubling, Ear, Held, Opened, in_loop, plan, rows


def test_at_the_deadline_the_answer_is_504_though_the_run_goes_on() -> None:
    async def work() -> None:
        model = Held()
        opened = Opened(model)
        async with scheduling(plan()) as scheduler:
            running = scheduler.submit(opened.serving, items_of(1), 0.05)
            await model.has_begun()
            in_hand = scheduler.submit(opened.serving, items_of(2), 0.05)
            queued = scheduler.submit(opened.serving, items_of(3, 4), 0.05)
            for ticket in (running, in_hand, queued):
                with pytest.raises(RequestError, match=r"not ready within 0\.05 s") as caught:
                    await ticket.wait()
                assert (caught.value.status, caught.value.reason) == (504, "deadline")
            assert model.active == 1
            patient = scheduler.submit(opened.serving, items_of(5), LONG_S)
            model.go.release(2)
            assert values_of(await patient.wait()) == [[10]]
            assert opened.users == 0
        assert model.order == [1, 5]

    in_loop(work)


def test_who_has_left_is_not_served() -> None:
    async def work() -> None:
        model = Held()
        opened = Opened(model)
        async with scheduling(plan()) as scheduler:
            running = scheduler.submit(opened.serving, items_of(1), LONG_S)
            await model.has_begun()
            left = scheduler.submit(opened.serving, items_of(*range(10, 20)), LONG_S)
            stays = scheduler.submit(opened.serving, items_of(2), LONG_S)
            left.leave()
            left.leave()
            with pytest.raises(ClientGone):
                await left.wait()
            assert left.is_over
            model.go.release(100)
            assert values_of(await running.wait() + await stays.wait()) == [[2], [4]]
        assert model.order == [1, 2]

    in_loop(work)


def test_leaving_after_the_answer_changes_nothing() -> None:
    async def work() -> None:
        opened = Opened()
        async with scheduling(plan()) as scheduler:
            ticket = scheduler.submit(opened.serving, items_of(1), 0.05)
            assert values_of(await ticket.wait()) == [[2]]
            ticket.leave()
            await asyncio.sleep(0.06)  # past the deadline: its alarm is off
            assert ticket.is_over

    in_loop(work)


def test_a_request_that_is_cancelled_leaves_the_queue() -> None:
    async def work() -> None:
        model = Held()
        opened = Opened(model)
        async with scheduling(plan()) as scheduler:
            first = scheduler.submit(opened.serving, items_of(1), LONG_S)
            await model.has_begun()
            task = asyncio.ensure_future(scheduler.submit(opened.serving, items_of(2, 3, 4), LONG_S).wait())
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            model.go.release(10)
            await first.wait()
        assert model.order == [1]
        assert opened.users == 0

    in_loop(work)


@pytest.mark.parametrize("how", ["leaves", "is too late"])
def test_what_nobody_waits_for_is_not_kept_while_the_threads_hang(how: str) -> None:
    """Its body has left the bound of admission, so that a hanging run would fill the memory with dead requests."""

    async def work() -> None:
        model = Held()
        opened = Opened(model)
        async with scheduling(plan()) as scheduler:
            held = [scheduler.submit(opened.serving, items_of(number), LONG_S) for number in range(2)]
            await model.has_begun()
            item = Item(1, rows(7))
            trace = weakref.ref(item)
            ticket = scheduler.submit(opened.serving, [item], LONG_S if how == "leaves" else 0.02)
            if how == "leaves":
                ticket.leave()
            with pytest.raises((ClientGone, RequestError)):
                await ticket.wait()
            await asyncio.sleep(0)
            assert scheduler.queue_length == 1  # the second, which is in the thread's hand
            del item, ticket
            gc.collect()
            assert trace() is None
            model.go.release(10)
            for other in held:
                await other.wait()

    in_loop(work)


@pytest.mark.parametrize("batch", [1, 4])
def test_a_thread_outlives_whatever_it_meets(batch: int) -> None:
    class Vile(Doubling):
        def infer(self, feed: Feed) -> dict[str, Any]:
            if len(feed[INPUT]) > 1:
                return {"y": np.float32(0).reshape(())}  # no rows to give to anybody
            return super().infer(feed)

    async def work() -> None:
        opened = Opened(Vile())
        async with scheduling(plan(batch=batch), 0.05 if batch > 1 else 0.0) as scheduler:
            ticket = scheduler.submit(opened.serving, items_of(1, 2), 2.0)
            assert values_of(await ticket.wait()) == [[2], [4]]
            assert (scheduler.oldest_run_s, opened.users) == (0, 0)
            assert all(thread.is_alive() for thread in scheduler._threads)

    in_loop(work)


@pytest.mark.parametrize("batch", [1, 4])
def test_closing_ends_what_is_in_work_and_begins_nothing(batch: int) -> None:
    async def work() -> None:
        model = Held()
        opened = Opened(model)
        async with scheduling(plan(batch=batch)) as scheduler:
            running = scheduler.submit(opened.serving, items_of(1), LONG_S)
            await model.has_begun()
            waiting = scheduler.submit(opened.serving, items_of(*range(2, 9)), 0.3)
            scheduler.close()
            model.go.release(100)
            assert values_of(await running.wait()) == [[2]]
            with pytest.raises(RequestError, match="not ready"):
                await waiting.wait()
        assert model.order[0] == 1
        assert len(model.order) <= 2
        assert opened.users == 0

    in_loop(work)


def test_a_run_that_outlives_its_loop_ends_its_thread_quietly() -> None:
    model = Held()
    made: list[Scheduler] = []

    async def work() -> None:
        made.append(Scheduler(plan(), Ear()))
        made[0].submit(Opened(model).serving, items_of(1), LONG_S).leave()
        ticket = made[0].submit(Opened(model).serving, items_of(2), LONG_S)
        await model.has_begun()
        ticket.leave()
        with contextlib.suppress(ClientGone):
            await ticket.wait()

    in_loop(work)
    model.go.release(10)
    made[0]._threads[0].join(WAIT_S)
    assert not made[0]._threads[0].is_alive()

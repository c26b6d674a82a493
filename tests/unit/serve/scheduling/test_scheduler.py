"""The scheduler with real threads and a real loop: whose outcome is whose, and whose turn it is."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgetune.core.tensors import Feed
from edgetune.serve.scheduling.batches import Item
from tests.unit.serve.scheduling.scheduling import LONG_S, broken, held_model, items_of, scheduling, values_of
from tests.unit.serve.stand_ins import INPUT, Doubling, Ear, Held, Opened, in_loop, plan, rows


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("runs", [1, 3])
def test_outcomes_come_in_order_and_the_model_has_no_user_left(runs: int, batch: int) -> None:
    async def work() -> None:
        opened, ear = Opened(), Ear()
        async with scheduling(plan(runs, batch), ear=ear) as scheduler:
            tickets = [scheduler.submit(opened.serving, items_of(n, n + 0.5), LONG_S) for n in range(20)]
            for number, ticket in enumerate(tickets):
                assert values_of(await ticket.wait()) == [[2 * number], [2 * number + 1]]
            assert (opened.users, scheduler.queue_length, scheduler.oldest_run_s) == (0, 0, 0)
        assert sum(len(items) for items, _ in ear.told) == 40

    in_loop(work)


class _Slow(Doubling):
    """Every third run takes a moment, so that runs overtake each other."""

    def infer(self, feed: Feed) -> dict[str, Any]:
        if len(self.runs) % 3 == 0:
            time.sleep(0.002)
        return super().infer(feed)


TICKETS = st.lists(
    st.lists(st.tuples(st.integers(1, 3), st.sampled_from("gggfwpu")), min_size=1, max_size=5), min_size=1, max_size=6
)


def _item(number: int, count: int, kind: str) -> Item:
    """g: a feed; f: an image file; w: another signature; p: cannot be prepared; u: fails in any run that it is in."""
    feed = rows(*([1e6] if kind == "u" else []), *(number * 10 + row for row in range(count - (kind == "u"))))
    if kind == "w":
        return Item(count, {INPUT: np.hstack([feed[INPUT], feed[INPUT]])})
    if kind in "fp":
        return Item(count, prepare=broken if kind == "p" else lambda: feed)
    return Item(count, feed)


@settings(max_examples=40, deadline=None)
@given(TICKETS, st.integers(1, 3), st.integers(1, 6), st.sampled_from([0.0, 0.002]), st.integers(1, 3))
def test_batched_is_unbatched_for_every_item(
    described: list[list[tuple[int, str]]], runs: int, batch: int, delay_s: float, decoders: int
) -> None:
    async def work() -> None:
        opened = Opened(_Slow(poison=[1e6]))
        async with scheduling(plan(runs, batch, decoders), delay_s) as scheduler:
            tickets, expected, number = [], [], 0
            for ticket in described:
                items = []
                for count, kind in ticket:
                    items.append(_item(number, count, kind))
                    expected.append((number, count, kind))
                    number += 1
                tickets.append(scheduler.submit(opened.serving, items, LONG_S))
            outcomes = [outcome for ticket in tickets for outcome in await ticket.wait()]
            assert (opened.users, scheduler.queue_length) == (0, 0)
        for outcome, (number, count, kind) in zip(outcomes, expected, strict=True):
            assert (outcome.error is None) == (kind not in "pu")
            if kind not in "pu":
                assert values_of([outcome]) == [[2 * (number * 10 + row) for row in range(count)]]
            else:
                assert str(outcome.error).startswith("no image" if kind == "p" else "poisoned")

    in_loop(work)


def test_what_never_ends_holds_one_thread_only() -> None:
    async def work() -> None:
        held, quick = Opened(Held()), Opened()
        async with scheduling(plan(runs=2)) as scheduler:
            stuck = scheduler.submit(held.serving, items_of(1), LONG_S)
            await held_model(held).has_begun()
            for number in range(5):
                assert values_of(await scheduler.submit(quick.serving, items_of(number), LONG_S).wait()) == [
                    [2 * number]
                ]
            held_model(held).go.release()
            assert values_of(await stuck.wait()) == [[2]]

    in_loop(work)


def test_as_many_runs_go_side_by_side_as_planned() -> None:
    async def work() -> None:
        model = Held()
        opened = Opened(model)
        async with scheduling(plan(runs=3)) as scheduler:
            tickets = [scheduler.submit(opened.serving, items_of(number), LONG_S) for number in range(10)]
            for _ in range(3):
                await model.has_begun()
            assert (scheduler.queue_length, model.active) == (7, 3)
            model.go.release(10)
            for ticket in tickets:
                await ticket.wait()
        assert model.most_active == 3

    in_loop(work)


def test_a_large_request_does_not_starve_a_small_one() -> None:
    """One item of each in turn; two of the first were in a thread's hands before the second came."""

    async def work() -> None:
        model = Held()
        opened = Opened(model)
        async with scheduling(plan()) as scheduler:
            large = scheduler.submit(opened.serving, items_of(*range(100)), LONG_S)
            await model.has_begun()
            small = scheduler.submit(opened.serving, items_of(1000), LONG_S)
            later = scheduler.submit(opened.serving, items_of(2000, 2001), LONG_S)
            model.go.release(1000)
            await asyncio.gather(large.wait(), small.wait(), later.wait())
        place = {value: place for place, value in enumerate(model.order)}
        assert place[1000] <= 3
        assert place[2001] <= 6
        assert [value for value in model.order if value < 1000] == list(range(100))

    in_loop(work)


def test_the_queue_is_counted_and_a_run_is_timed() -> None:
    async def work() -> None:
        model = Held()
        opened = Opened(model)
        async with scheduling(plan()) as scheduler:
            assert (scheduler.queue_length, scheduler.oldest_run_s) == (0, 0)
            ticket = scheduler.submit(opened.serving, items_of(*range(5)), LONG_S)
            await model.has_begun()
            begun = time.perf_counter()
            assert scheduler.queue_length == 4
            await asyncio.sleep(0.02)
            assert 0.02 <= scheduler.oldest_run_s <= time.perf_counter() - begun + 0.02
            model.go.release()
            await model.has_begun()
            assert scheduler.queue_length == 3
            assert scheduler.oldest_run_s < 0.02
            model.go.release(5)
            await ticket.wait()
            assert (scheduler.queue_length, scheduler.oldest_run_s) == (0, 0)

    in_loop(work)

"""Batches of what may run together, and images that are decoded before."""

from __future__ import annotations

import asyncio
import threading
import time

import numpy as np
import pytest

from edgetune.core.tensors import Feed
from edgetune.serve.errors import ClientGone, RequestError
from edgetune.serve.scheduling.batches import Item
from edgetune.serve.scheduling.ticket import Ticket
from tests.unit.serve.scheduling.scheduling import LONG_S, broken, items_of, scheduling, values_of
from tests.unit.serve.stand_ins import INPUT, WAIT_S, Doubling, Ear, Held, Opened, in_loop, plan, rows, until


def test_full_batches_take_turns_too() -> None:
    async def work() -> None:
        model = Held()
        opened = Opened(model)
        async with scheduling(plan(batch=4)) as scheduler:
            large = scheduler.submit(opened.serving, items_of(*range(40)), LONG_S)
            await model.has_begun()
            small = scheduler.submit(opened.serving, items_of(1000), LONG_S)
            model.go.release(1000)
            await asyncio.gather(large.wait(), small.wait())
        assert model.order.index(1000) <= 8
        assert model.runs[0] == 4

    in_loop(work)


def test_a_request_of_broken_images_does_not_starve_a_good_one() -> None:
    async def work() -> None:
        model = Held()
        opened = Opened(model)
        ended: list[str] = []
        async with scheduling(plan(batch=4)) as scheduler:
            first = scheduler.submit(opened.serving, items_of(1), LONG_S)
            await model.has_begun()  # the thread is busy until all others are in the queue
            large = scheduler.submit(opened.serving, [Item(1, prepare=broken) for _ in range(50)], LONG_S)
            await until(lambda: scheduler.queue_length == 50)
            small = scheduler.submit(opened.serving, items_of(1000), LONG_S)
            model.go.release(1000)

            async def note(ticket: Ticket, name: str) -> None:
                await ticket.wait()
                ended.append(name)

            await asyncio.gather(first.wait(), note(large, "large"), note(small, "small"))
        assert ended == ["small", "large"]

    in_loop(work)


def test_a_large_request_of_images_does_not_hold_up_the_decoding_of_a_small_one() -> None:
    async def work() -> None:
        opened, order, go = Opened(), list[int](), threading.Semaphore(0)

        def decode(number: int) -> Feed:
            go.acquire(timeout=WAIT_S)
            order.append(number)
            return rows(number)

        def files(*numbers: int) -> list[Item]:
            return [Item(1, prepare=lambda number=number: decode(number)) for number in numbers]  # type: ignore[misc]

        async with scheduling(plan(batch=4)) as scheduler:
            large = scheduler.submit(opened.serving, files(*range(20)), LONG_S)
            small = scheduler.submit(opened.serving, files(1000), LONG_S)
            go.release(100)
            await asyncio.gather(large.wait(), small.wait())
        assert order.index(1000) < 15

    in_loop(work)


def test_images_of_who_has_left_are_not_decoded() -> None:
    async def work() -> None:
        opened, go, begun, decoded = Opened(), threading.Event(), threading.Event(), list[int]()

        def decode() -> Feed:
            decoded.append(1)
            begun.set()
            go.wait(WAIT_S)
            return rows(1)

        async with scheduling(plan(batch=4)) as scheduler:
            ticket = scheduler.submit(opened.serving, [Item(1, prepare=decode) for _ in range(50)], LONG_S)
            await until(begun.is_set)
            ticket.leave()
            with pytest.raises(ClientGone):
                await ticket.wait()
            go.set()
            after = scheduler.submit(opened.serving, [Item(1, prepare=lambda: rows(3))], LONG_S)
            assert values_of(await after.wait()) == [[6]]
        assert len(decoded) <= 2
        assert opened.users == 0

    in_loop(work)


def test_images_that_wait_to_be_decoded_are_in_the_queue() -> None:
    async def work() -> None:
        opened, go, begun = Opened(), threading.Event(), threading.Event()

        def decode() -> Feed:
            begun.set()
            go.wait(WAIT_S)
            return rows(1)

        async with scheduling(plan(batch=4)) as scheduler:
            ticket = scheduler.submit(opened.serving, [Item(1, prepare=decode) for _ in range(6)], LONG_S)
            await until(begun.is_set)
            length = scheduler.queue_length
            go.set()
            await ticket.wait()
            assert length >= 5
            assert scheduler.queue_length == 0

    in_loop(work)


def test_a_fault_in_a_batch_is_its_own_item_s() -> None:
    async def work() -> None:
        model = Held(poison=[13])
        opened, ear = Opened(model), Ear()
        async with scheduling(plan(batch=8), ear=ear) as scheduler:
            first = scheduler.submit(opened.serving, items_of(0), LONG_S)
            await model.has_begun()
            tickets = [scheduler.submit(opened.serving, items_of(value), LONG_S) for value in (1, 13, 2)]
            unfit = scheduler.submit(opened.serving, [Item(1, prepare=broken)], LONG_S)
            model.go.release(100)
            await first.wait()
            outcomes = [(await ticket.wait())[0] for ticket in (*tickets, unfit)]
            assert [type(outcome.error) for outcome in outcomes] == [type(None), RequestError, type(None), RequestError]
            assert values_of([outcomes[0], outcomes[2]]) == [[2], [4]]
            assert opened.users == 0

    in_loop(work)


class TestBatching:
    def test_what_waits_while_a_run_goes_on_is_one_batch(self) -> None:
        async def work() -> None:
            model = Held()
            opened = Opened(model)
            async with scheduling(plan(batch=4)) as scheduler:
                tickets = [scheduler.submit(opened.serving, items_of(number), LONG_S) for number in range(8)]
                model.go.release(100)
                for ticket in tickets:
                    await ticket.wait()
            assert model.runs == [1, 4, 3]
            assert model.order == list(range(8))

        in_loop(work)

    def test_a_batch_never_has_more_images_than_planned(self) -> None:
        async def work() -> None:
            model = Held()
            opened = Opened(model)
            async with scheduling(plan(batch=4)) as scheduler:
                counts = [1, 3, 2, 3, 1, 4, 9, 1]
                tickets = [
                    scheduler.submit(opened.serving, [Item(count, rows(*[number] * count))], LONG_S)
                    for number, count in enumerate(counts)
                ]
                model.go.release(100)
                for number, ticket in enumerate(tickets):
                    assert values_of(await ticket.wait()) == [[2 * number] * counts[number]]
            assert all(run <= 4 or run == 9 for run in model.runs)  # an item is never cut; 9 came as one
            assert sum(model.runs) == sum(counts)

        in_loop(work)

    def test_signatures_and_models_are_never_mixed(self) -> None:
        async def work() -> None:
            model, other = Held(), Doubling()
            opened, second = Opened(model), Opened(other)
            wide = {INPUT: np.ones((1, 3), np.float32)}
            async with scheduling(plan(batch=8)) as scheduler:
                tickets = [scheduler.submit(opened.serving, items_of(0), LONG_S)]
                for number in range(6):
                    feed = wide if number % 3 == 1 else rows(number)
                    into = second if number % 3 == 2 else opened
                    tickets.append(scheduler.submit(into.serving, [Item(1, feed)], LONG_S))
                model.go.release(100)
                outcomes = [(await ticket.wait())[0] for ticket in tickets]
            assert all(outcome.error is None for outcome in outcomes)
            assert (model.runs, other.runs) == ([1, 2, 2], [2])

        in_loop(work)

    def test_a_full_batch_goes_at_once(self) -> None:
        async def work() -> None:
            opened = Opened()
            async with scheduling(plan(batch=4), delay_s=LONG_S) as scheduler:
                tickets = [scheduler.submit(opened.serving, items_of(number), 2.0) for number in range(4)]
                assert [values_of(await ticket.wait()) for ticket in tickets] == [[[0]], [[2]], [[4]], [[6]]]

        in_loop(work)

    def test_a_batch_that_is_not_full_waits_for_the_delay_and_then_goes(self) -> None:
        async def work() -> None:
            model = Doubling()
            opened = Opened(model)
            async with scheduling(plan(batch=4), delay_s=0.1) as scheduler:
                begun = time.perf_counter()
                tickets = [scheduler.submit(opened.serving, items_of(1), LONG_S)]
                await asyncio.sleep(0.06)
                tickets.append(scheduler.submit(opened.serving, items_of(2), LONG_S))  # does not prolong it
                for ticket in tickets:
                    await ticket.wait()
                assert 0.09 <= time.perf_counter() - begun < 0.155
            assert model.runs == [2]

        in_loop(work)

    def test_what_has_waited_for_a_thread_longer_than_the_delay_goes_at_once(self) -> None:
        async def work() -> None:
            model = Held()
            opened = Opened(model)
            async with scheduling(plan(batch=2), delay_s=0.3) as scheduler:
                full = scheduler.submit(opened.serving, items_of(1, 2), LONG_S)
                await model.has_begun()
                ticket = scheduler.submit(opened.serving, items_of(3), LONG_S)
                await asyncio.sleep(0.35)
                freed = time.perf_counter()
                model.go.release(10)
                await asyncio.gather(full.wait(), ticket.wait())
                assert time.perf_counter() - freed < 0.2

        in_loop(work)

    def test_the_delay_of_a_batch_that_has_gone_does_not_cut_the_next_one_short(self) -> None:
        async def work() -> None:
            model = Doubling()
            opened = Opened(model)
            async with scheduling(plan(batch=2), delay_s=0.2) as scheduler:
                full = [scheduler.submit(opened.serving, items_of(number), LONG_S) for number in (1, 2)]
                for ticket in full:
                    await ticket.wait()
                await asyncio.sleep(0.15)
                begun = time.perf_counter()
                await scheduler.submit(opened.serving, items_of(3), LONG_S).wait()
                assert time.perf_counter() - begun > 0.18
            assert model.runs == [2, 1]

        in_loop(work)

    def test_items_that_were_put_back_keep_their_order(self) -> None:
        async def work() -> None:
            model = Doubling()
            opened = Opened(model)
            async with scheduling(plan(batch=4), delay_s=0.05) as scheduler:
                tickets = [scheduler.submit(opened.serving, items_of(*numbers), LONG_S) for numbers in ([1, 2], [3])]
                tickets.append(scheduler.submit(opened.serving, items_of(4, 5), LONG_S))
                for ticket in tickets:
                    await ticket.wait()
            assert model.runs == [4, 1]
            assert model.order[0] == 1
            for first, second in ((1, 2), (4, 5)):
                assert model.order.index(first) < model.order.index(second)

        in_loop(work)

    def test_without_batching_a_delay_means_nothing(self) -> None:
        async def work() -> None:
            opened = Opened()
            async with scheduling(plan(), delay_s=LONG_S) as scheduler:
                assert values_of(await scheduler.submit(opened.serving, items_of(1), 2.0).wait()) == [[2]]

        in_loop(work)


def test_images_are_decoded_side_by_side_before_their_batch() -> None:
    async def work() -> None:
        both = threading.Barrier(2)

        def decode() -> Feed:
            both.wait(WAIT_S)  # passes only with two decoders at once
            return rows(3)

        model = Doubling()
        opened = Opened(model)
        async with scheduling(plan(batch=4, decoders=2)) as scheduler:
            ticket = scheduler.submit(opened.serving, [Item(1, prepare=decode), Item(1, prepare=decode)], LONG_S)
            assert values_of(await ticket.wait()) == [[6], [6]]
        assert model.runs == [2]

    in_loop(work)


def test_a_broken_image_among_good_ones_is_told_apart() -> None:
    async def work() -> None:
        opened = Opened()
        items = [Item(1, prepare=lambda: rows(1)), Item(1, prepare=broken), Item(1, rows(3))]
        async with scheduling(plan(batch=8, decoders=2)) as scheduler:
            outcomes = await scheduler.submit(opened.serving, items, LONG_S).wait()
            assert values_of(outcomes) == [[2], [], [6]]
            assert str(outcomes[1].error) == "no image"
            assert opened.users == 0

    in_loop(work)

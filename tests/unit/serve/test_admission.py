"""Places for requests and their bytes: bounds, turns, waiting, and that every place comes back."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgetune.serve.admission import Admission
from edgetune.serve.errors import ClientGone, RequestError
from edgetune.serve.settings import Limits
from tests.unit.serve.stand_ins import Client, in_loop

LONG_S = 20.0


def _limits(requests: int = 2, total: int = 100, body: int = 60, wait_s: float = LONG_S) -> Limits:
    return Limits(max_requests=requests, max_request_bytes=total, max_body_bytes=body, admission_wait_s=wait_s)


class Guest:
    """A request that asks for a place and keeps it until it is told to go."""

    def __init__(self, admission: Admission, weight: int = 0, headers: Mapping[str, str] | None = None) -> None:
        self.client = Client(headers={"content-length": str(weight), **(headers or {})})
        self._admission = admission
        self._go = asyncio.Event()
        self.is_in = False
        self.task = asyncio.ensure_future(self._stay())

    async def _stay(self) -> None:
        async with self._admission.place(self.client.request):
            self.is_in = True
            try:
                await self._go.wait()
            finally:
                self.is_in = False

    async def go(self) -> None:
        self._go.set()
        await self.task


async def settle() -> None:
    """Lets every callback run that is due."""
    for _ in range(10):
        await asyncio.sleep(0)


async def guests(admission: Admission, *weights: int) -> list[Guest]:
    made = [Guest(admission, weight) for weight in weights]
    await settle()
    return made


def test_as_many_requests_as_places() -> None:
    async def work() -> None:
        admission = Admission(_limits(requests=2))
        one, two, three = await guests(admission, 0, 0, 0)
        assert [one.is_in, two.is_in, three.is_in] == [True, True, False]
        assert admission.admitted == 2
        await two.go()
        await settle()
        assert three.is_in
        await one.go()
        await three.go()
        assert admission.admitted == 0

    in_loop(work)


def test_as_many_bytes_as_places() -> None:
    async def work() -> None:
        admission = Admission(_limits(requests=9, total=100))
        heavy, light, exact, over = await guests(admission, 60, 30, 10, 1)
        assert [heavy.is_in, light.is_in, exact.is_in, over.is_in] == [True, True, True, False]
        await light.go()
        await settle()
        assert over.is_in
        for guest in (heavy, exact, over):
            await guest.go()
        assert admission.admitted == 0

    in_loop(work)


def test_first_come_first_served_even_where_the_second_would_fit() -> None:
    async def work() -> None:
        admission = Admission(_limits(requests=9, total=100))
        inside, heavy, light = await guests(admission, 50, 60, 1)
        assert [inside.is_in, heavy.is_in, light.is_in] == [True, False, False]
        await inside.go()
        await settle()
        assert [heavy.is_in, light.is_in] == [True, True]
        await heavy.go()
        await light.go()

    in_loop(work)


def test_who_waits_too_long_is_told_to_come_back() -> None:
    async def work() -> None:
        admission = Admission(_limits(requests=1, wait_s=0.05))
        (inside,) = await guests(admission, 0)
        begun = time.perf_counter()
        late = Guest(admission)
        with pytest.raises(RequestError, match="the server is busy with 1 requests; try again") as caught:
            await late.task
        assert (caught.value.status, caught.value.reason) == (503, "queue_full")
        assert 0.04 < time.perf_counter() - begun < 1
        assert inside.is_in
        await inside.go()
        assert admission.admitted == 0

    in_loop(work)


def test_a_refused_one_lets_the_next_in() -> None:
    async def work() -> None:
        admission = Admission(_limits(requests=9, total=100, wait_s=0.1))
        (inside,) = await guests(admission, 50)
        heavy = Guest(admission, 60)
        await asyncio.sleep(0.07)
        light = Guest(admission, 1)
        with pytest.raises(RequestError):
            await heavy.task
        await settle()
        assert light.is_in
        await light.go()
        await inside.go()

    in_loop(work)


def test_one_that_leaves_while_it_waits_lets_the_next_in() -> None:
    async def work() -> None:
        admission = Admission(_limits(requests=9, total=100))
        inside, heavy, light = await guests(admission, 50, 60, 1)
        heavy.client.leave()
        with pytest.raises(ClientGone):
            await heavy.task
        await settle()
        assert light.is_in
        await light.go()
        await inside.go()
        assert admission.admitted == 0

    in_loop(work)


def test_one_that_is_cancelled_while_it_waits_lets_the_next_in() -> None:
    async def work() -> None:
        admission = Admission(_limits(requests=9, total=100))
        inside, heavy, light = await guests(admission, 50, 60, 1)
        heavy.task.cancel()
        await settle()
        assert light.is_in
        await light.go()
        await inside.go()

    in_loop(work)


def test_one_that_is_cancelled_as_its_turn_comes_gives_the_place_back() -> None:
    async def work() -> None:
        admission = Admission(_limits(requests=1))
        inside = admission.place(Client().request)
        await inside.__aenter__()
        (waiting,) = await guests(admission, 0)
        await inside.__aexit__(None, None, None)  # the turn is given, and its task has not run yet
        waiting.task.cancel()
        await asyncio.gather(waiting.task, return_exceptions=True)
        assert admission.admitted == 0
        (next_one,) = await guests(admission, 0)
        assert next_one.is_in
        await next_one.go()

    in_loop(work)


def test_leaving_as_the_turn_comes_changes_nothing() -> None:
    async def work() -> None:
        admission = Admission(_limits(requests=1))
        inside = admission.place(Client().request)
        await inside.__aenter__()
        (waiting,) = await guests(admission, 0)
        await inside.__aexit__(None, None, None)
        waiting.client.leave()
        await settle()
        assert waiting.is_in  # reading its body will tell that it has left
        await waiting.go()
        assert admission.admitted == 0

    in_loop(work)


def test_an_error_inside_gives_the_place_back() -> None:
    async def work() -> None:
        admission = Admission(_limits(requests=1))
        for _ in range(3):
            with pytest.raises(ZeroDivisionError):
                async with admission.place(Client().request):
                    raise ZeroDivisionError
        assert admission.admitted == 0

    in_loop(work)


@pytest.mark.parametrize(
    "headers",
    [{"transfer-encoding": "chunked"}, {"content-encoding": "gzip", "content-length": "10"}],
    ids=["chunked", "compressed"],
)
def test_a_body_that_may_grow_weighs_as_much_as_it_may(headers: dict[str, str]) -> None:
    async def work() -> None:
        admission = Admission(_limits(requests=9, total=100, body=60))
        unknown = Guest(admission, headers=headers)
        await settle()
        fits, over = await guests(admission, 40, 1)
        assert [unknown.is_in, fits.is_in, over.is_in] == [True, True, False]
        for guest in (unknown, fits, over):
            await guest.go()
        assert admission.admitted == 0

    in_loop(work)


@pytest.mark.parametrize("length", ["61", "9" * 18, "9" * 19, "9" * 20, "1" + "0" * 40])
def test_more_than_a_body_may_weigh_is_refused_unread_and_at_once(length: str) -> None:
    async def work() -> None:
        admission = Admission(_limits(requests=1))
        (inside,) = await guests(admission, 0)
        heavy = Guest(admission, headers={"content-length": length})
        with pytest.raises(RequestError, match="over the limit of 60 bytes") as caught:
            await asyncio.wait_for(heavy.task, 2)
        assert (caught.value.status, caught.value.reason) == (413, "too_large")
        await inside.go()
        assert admission.admitted == 0

    in_loop(work)


# What happens to the guest of that number, of those that came so far: g goes, l leaves, c is cancelled, s lets the loop
# run, t is time for whoever waits to be refused; a number is a new guest of so many bytes.
EVENTS = st.lists(
    st.one_of(st.integers(0, 60), st.tuples(st.sampled_from("glc"), st.integers(0, 20)), st.sampled_from("st")),
    max_size=30,
)


@settings(max_examples=120, deadline=None)
@given(EVENTS, st.integers(1, 3))
def test_whatever_happens_the_bounds_hold_and_all_places_come_back(
    events: list[int | tuple[str, int] | str], places: int
) -> None:
    async def work() -> None:
        limits = _limits(requests=places, total=100, wait_s=0.002)
        admission = Admission(limits)
        present: list[Guest] = []

        def check() -> None:
            assert 0 <= admission.admitted <= places
            assert 0 <= admission._bytes <= limits.max_request_bytes
            assert sum(guest.is_in for guest in present) <= places

        for event in events:
            if isinstance(event, int):
                present.append(Guest(admission, event))
            elif isinstance(event, tuple) and present:
                _befall(present[event[1] % len(present)], event[0])
            else:
                await (asyncio.sleep(0.003) if event == "t" else settle())
            check()
        for guest in present:
            guest._go.set()
        await asyncio.gather(*(guest.task for guest in present), return_exceptions=True)
        check()
        assert (admission.admitted, admission._bytes) == (0, 0)
        (last,) = await guests(admission, 60)
        assert last.is_in
        await last.go()

    in_loop(work)


def _befall(guest: Guest, what: str) -> None:
    if what == "g":
        guest._go.set()
    elif what == "l":
        guest.client.leave()
    else:
        guest.task.cancel()

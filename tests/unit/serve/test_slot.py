"""The change of the model: old and new side by side, each closed once and only when nobody uses it."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from edgetune.core.errors import BundleError, SelfTestError
from edgetune.core.tensors import TensorSpec
from edgetune.serve.model import ServedModel
from edgetune.serve.settings import Limits
from edgetune.serve.slot import Slot
from tests.unit.serve.stand_ins import WAIT_S, Doubling, Opened, in_loop, stand_in, until


class Bundles:
    """Opens models by the name of their path; notes in `events` what was opened and closed, in order."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.threads: set[str] = set()
        self.faults: dict[str, Exception] = {}
        self.close_faults: dict[str, Exception] = {}
        self.go = threading.Event()
        self.go.set()
        self.active = 0

    @contextlib.contextmanager
    def open(self, path: Path) -> Iterator[ServedModel]:
        self.threads.add(threading.current_thread().name.partition("_")[0])
        self.active += 1
        assert self.active == 1
        assert self.go.wait(WAIT_S)
        self.active -= 1
        if path.name in self.faults:
            raise self.faults[path.name]
        self.events.append(f"open {path.name}")
        try:
            model = stand_in(Doubling())
            model.bundle.path = path  # type: ignore[misc]
            yield model
        finally:
            self.threads.add(threading.current_thread().name.partition("_")[0])
            self.events.append(f"close {path.name}")
            if path.name in self.close_faults:
                raise self.close_faults[path.name]


@contextlib.asynccontextmanager
async def filled(bundles: Bundles, first: str = "first") -> AsyncIterator[Slot]:
    """A slot with a model, and its end, by which every model is closed once."""
    slot = Slot(bundles.open, Limits())
    opened = contextlib.ExitStack()
    slot.fill(opened.enter_context(bundles.open(Path(first))), opened.close)
    try:
        yield slot
    finally:
        slot.empty()
        await until(lambda: len(bundles.events) == 2 * sum(event.startswith("open") for event in bundles.events))
    assert len(set(bundles.events)) == len(bundles.events)


def test_an_empty_slot_has_no_model() -> None:
    async def work() -> None:
        slot = Slot(Bundles().open, Limits())
        with pytest.raises(RuntimeError, match="no model is open"):
            _ = slot.current
        slot.empty()

    in_loop(work)


def test_the_new_model_is_open_before_the_old_one_closes() -> None:
    async def work() -> None:
        bundles = Bundles()
        async with filled(bundles) as slot:
            old = slot.current
            swap = await slot.change(Path("second"))
            assert (swap.bundle, swap.ok, swap.error) == ("second", True, "")
            assert 0 <= swap.seconds < WAIT_S
            assert slot.last_swap == swap
            assert slot.current is not old
            assert slot.current.model.bundle.path == Path("second")
            await until(lambda: "close first" in bundles.events)
            assert "close second" not in bundles.events
        assert bundles.events[:2] == ["open first", "open second"]
        assert bundles.threads == {"MainThread", "model"}

    in_loop(work)


def test_while_the_new_model_is_opened_the_old_one_serves_and_the_loop_goes_on() -> None:
    async def work() -> None:
        bundles = Bundles()
        async with filled(bundles) as slot:
            old = slot.current
            bundles.go.clear()
            changing = asyncio.ensure_future(slot.change(Path("second")))
            await until(lambda: bundles.active == 1)
            assert slot.current is old
            bundles.go.set()
            assert (await changing).ok
            assert slot.current is not old

    in_loop(work)


def test_the_old_model_closes_when_its_last_user_leaves() -> None:
    async def work() -> None:
        bundles = Bundles()
        async with filled(bundles) as slot:
            with slot.current.in_use():
                inner = slot.current
                with slot.current.in_use():
                    await slot.change(Path("second"))
                    await asyncio.sleep(0.01)
                assert "close first" not in bundles.events
                assert slot.current is not inner
            await until(lambda: "close first" in bundles.events)
            assert "close second" not in bundles.events

    in_loop(work)


def test_a_model_in_use_outlives_the_slot_s_emptying_only_as_long_as_it_is_used() -> None:
    opened = Opened()
    opened.serving.acquire()
    opened.serving.acquire()
    opened.serving.retire()
    opened.serving.release()
    assert opened.closed == 0
    opened.serving.release()
    assert opened.closed == 1


def test_an_error_gives_the_model_back() -> None:
    opened = Opened()
    with pytest.raises(ZeroDivisionError), opened.serving.in_use():
        raise ZeroDivisionError
    assert opened.users == 0
    opened.serving.retire()
    assert opened.closed == 1


@pytest.mark.parametrize(
    "fault",
    [
        BundleError("it was changed after it was written."),
        SelfTestError("other answers."),
        OSError(13, "Permission denied"),
        RuntimeError("Symlink loop from 'current'"),
        MemoryError("no memory on the GPU"),
        KeyError("what no one foresaw"),
    ],
    ids=lambda fault: type(fault).__name__,
)
def test_whatever_is_wrong_with_the_new_model_the_old_one_goes_on(fault: Exception) -> None:
    async def work() -> None:
        bundles = Bundles()
        bundles.faults["second"] = fault
        async with filled(bundles) as slot:
            old = slot.current
            swap = await slot.change(Path("second"))
            assert (swap.bundle, swap.ok) == ("second", False)
            assert swap.error
            if isinstance(fault, (BundleError, SelfTestError)):
                assert swap.error == fault.message
            assert slot.last_swap == swap
            assert slot.current is old
            assert (await slot.change(Path("third"))).ok
            await until(lambda: "close first" in bundles.events)
            assert bundles.events == ["open first", "open third", "close first"]

    in_loop(work)


def test_two_changes_at_once_are_made_one_after_the_other() -> None:
    async def work() -> None:
        bundles = Bundles()
        async with filled(bundles) as slot:
            swaps = await asyncio.gather(*(slot.change(Path(name)) for name in ("second", "third", "fourth")))
            assert [swap.bundle for swap in swaps if swap.ok] == ["second", "third", "fourth"]
            assert slot.current.model.bundle.path == Path("fourth")
        opened = [event for event in bundles.events if event.startswith("open")]
        assert opened == ["open first", "open second", "open third", "open fourth"]
        steps = [1 if event.startswith("open") else -1 for event in bundles.events]
        assert max(itertools.accumulate(steps)) == 2  # never three models in memory

    in_loop(work)


def test_a_model_that_does_not_close_is_told_to_the_log(caplog: pytest.LogCaptureFixture) -> None:
    async def work() -> None:
        bundles = Bundles()
        bundles.close_faults["first"] = RuntimeError("the device is lost")
        async with filled(bundles) as slot:
            assert (await slot.change(Path("second"))).ok
            await until(lambda: "did not close" in caplog.text)
            assert (await slot.change(Path("third"))).ok

    with caplog.at_level(logging.ERROR):
        in_loop(work)
    assert "the previous model did not close" in caplog.text
    assert "the device is lost" in caplog.text


def test_a_model_whose_tensors_cannot_be_served_is_closed_again() -> None:
    class Odd(Bundles):
        @contextlib.contextmanager
        def open(self, path: Path) -> Iterator[ServedModel]:
            with super().open(path) as model:
                if path.name == "odd":
                    model.runner.input_specs = None  # type: ignore[misc, assignment]
                yield model

    async def work() -> None:
        bundles = Odd()
        async with filled(bundles) as slot:
            assert not (await slot.change(Path("odd"))).ok
            assert slot.current.model.bundle.path == Path("first")
            await until(lambda: "close odd" in bundles.events)

    in_loop(work)


def test_a_link_s_swap_is_named_by_what_is_served_though_the_link_turns_meanwhile(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    link = tmp_path / "current"
    link.symlink_to("a")

    class Turning(Bundles):
        @contextlib.contextmanager
        def open(self, path: Path) -> Iterator[ServedModel]:
            with super().open(path.resolve()) as model:
                if path == link:
                    link.unlink()
                    link.symlink_to("b")
                yield model

    async def work() -> None:
        async with filled(Turning()) as slot:
            swap = await slot.change(link)
            assert slot.current.model.bundle.path == tmp_path / "a"
            assert (swap.bundle, swap.ok) == ("a", True)

    in_loop(work)


def test_the_contract_is_the_model_s_own() -> None:
    limits = Limits(max_images=7, max_json_bytes=99)
    contract = Opened().serving.contract
    assert (contract.image_input, contract.classes, contract.max_batch) == (None, ("a", "b"), Limits().max_images)
    model = stand_in(Doubling())
    specs = (TensorSpec("image", "uint8", (None, 4, 4, 3)), TensorSpec("size", "int64", (None,)))
    model.runner.input_specs = specs  # type: ignore[misc]
    slot = None

    async def work() -> None:
        nonlocal slot
        slot = Slot(Bundles().open, limits)
        slot.fill(model, lambda: None)
        contract = slot.current.contract
        assert (contract.image_input, contract.inputs, contract.max_batch) == ("image", specs, 7)
        assert contract.max_json_bytes == 99
        slot.empty()

    in_loop(work)


_HANGING = """
import asyncio, contextlib, threading
from pathlib import Path
from edgetune.serve.settings import Limits
from edgetune.serve.slot import Slot

begun = threading.Event()

@contextlib.contextmanager
def opener(path):
    begun.set()
    threading.Event().wait(60)
    yield None

async def main():
    slot = Slot(opener, Limits())
    change = asyncio.ensure_future(slot.change(Path("slow")))
    while not begun.is_set():
        await asyncio.sleep(0.01)
    slot.empty()
    change.cancel()

asyncio.run(main())
"""


def test_a_model_that_takes_minutes_to_open_does_not_hold_up_the_end() -> None:
    """An engine may be built while it is opened, and a server that is told to stop must not wait for that."""
    try:
        subprocess.run([sys.executable, "-c", _HANGING], check=True, timeout=8)
    except subprocess.TimeoutExpired:
        pytest.fail("the process did not end while a model was being opened")

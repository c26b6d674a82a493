"""The life of a started server: its signals, its changes of the model, what systemd is told, and its end."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import shutil
import signal
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import pytest

from edgetune.serve.http.listener import bind
from edgetune.serve.model import open_model
from edgetune.serve.observe.notify import Notifier
from edgetune.serve.process import Process, Start
from edgetune.serve.settings import ServeSettings
from tests.unit.runners.mean_bundle import FP32, LOGITS, mean_bundle
from tests.unit.serve.stand_ins import WAIT_S, in_loop, until


class Running:
    """A process room that serves `current`, a link to `one`, and the manager that it tells of its state."""

    def __init__(self, folder: Path, settings: ServeSettings) -> None:
        self.folder, self.settings = folder, settings
        self.closed: list[str] = []
        self.manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.manager.bind(str(folder / "notify"))
        self.manager.setblocking(False)
        self.told: list[str] = []
        self.room = Process(folder / "current", settings, Notifier({"NOTIFY_SOCKET": str(folder / "notify")}))

    def hear(self) -> list[str]:
        with contextlib.suppress(BlockingIOError):
            while True:
                self.told.append(self.manager.recv(4096).decode())
        return self.told

    def turn(self, name: str) -> None:
        (self.folder / "fresh").symlink_to(name)
        os.replace(self.folder / "fresh", self.folder / "current")

    async def get(self, path: str) -> httpx.Response:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{self.port}", timeout=WAIT_S) as client:
            return await client.get(path)

    port = 0
    task: asyncio.Task[None]


@contextlib.asynccontextmanager
async def running(folder: Path, settings: ServeSettings | None = None) -> AsyncIterator[Running]:
    made = Running(folder, settings or ServeSettings())
    stack = contextlib.ExitStack()
    model = stack.enter_context(open_model(folder / "current", made.settings))
    stack.callback(made.closed.append, "one")
    listener = bind("127.0.0.1", 0)
    made.port = listener.getsockname()[1]
    started = asyncio.Event()
    start = Start("m", model, stack.close, listener, None, None)
    made.task = asyncio.ensure_future(made.room.run(start, started.set))
    await until(lambda: started.is_set() or made.task.done())
    try:
        yield made
    finally:
        if not made.task.done():
            os.kill(os.getpid(), signal.SIGINT)
        await asyncio.wait_for(made.task, WAIT_S)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            asyncio.get_running_loop().remove_signal_handler(number)
        made.manager.close()


@pytest.fixture(autouse=True)
def own_collector() -> Iterator[None]:
    """A server sets the garbage collector for itself, and the tests after it are not to notice."""
    before = gc.get_threshold()
    yield
    gc.unfreeze()
    gc.set_threshold(*before)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    mean_bundle(tmp_path / "one", {FP32: "PASS"})
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    mean_bundle(tmp_path / "bad", {FP32: "PASS"}, logits=LOGITS + 9)
    (tmp_path / "current").symlink_to("one")
    return tmp_path


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_and_the_model_is_closed(folder: Path, number: int) -> None:
    async def work() -> None:
        async with running(folder) as made:
            assert (await made.get("/v2/health/ready")).status_code == 200
            os.kill(os.getpid(), number)
            await asyncio.wait_for(asyncio.shield(made.task), WAIT_S)
            await until(lambda: made.closed == ["one"])
            told = made.hear()
            assert told[0].startswith("READY=1\nSTATUS=serving m, model.onnx")
            assert told[-1] == "STOPPING=1"
            with pytest.raises(httpx.ConnectError):
                await made.get("/v2/health/live")

    in_loop(work, 60)


def test_sigterm_says_not_ready_for_a_while_and_then_ends(folder: Path) -> None:
    async def work() -> None:
        async with running(folder, ServeSettings(drain_s=0.4)) as made:
            os.kill(os.getpid(), signal.SIGTERM)
            await until(lambda: "STOPPING=1" in made.hear())
            ready, live = await made.get("/v2/health/ready"), await made.get("/v2/health/live")
            assert (ready.status_code, live.status_code) == (503, 200)
            assert not made.task.done()
            await asyncio.wait_for(asyncio.shield(made.task), WAIT_S)

    in_loop(work, 60)


def test_sigint_does_not_wait_for_load_balancers(folder: Path) -> None:
    async def work() -> None:
        async with running(folder, ServeSettings(drain_s=600)) as made:
            os.kill(os.getpid(), signal.SIGINT)
            await asyncio.wait_for(asyncio.shield(made.task), WAIT_S)

    in_loop(work, 60)


def test_sighup_takes_up_what_the_link_leads_to(folder: Path) -> None:
    async def work() -> None:
        async with running(folder) as made:
            made.turn("two")
            os.kill(os.getpid(), signal.SIGHUP)
            await until(lambda: made.closed == ["one"])
            await until(lambda: "READY=1\nSTATUS=serving two" in made.hear())
            assert [line.partition("\n")[0] for line in made.told] == ["READY=1", "RELOADING=1", "READY=1"]
            assert made.room._service.stats.loads == {"ok": 2, "failed": 0}
            assert (await made.get("/v2/health/ready")).status_code == 200

    in_loop(work, 60)


@pytest.mark.parametrize("name", ["bad", "nothing", "current"])
def test_a_change_that_fails_leaves_the_old_model_and_tells_systemd_that_it_goes_on(folder: Path, name: str) -> None:
    async def work() -> None:
        async with running(folder) as made:
            made.turn(name)
            os.kill(os.getpid(), signal.SIGHUP)
            await until(lambda: any(line.startswith("READY=1\nSTATUS=serving one") for line in made.hear()[1:]))
            assert made.room._service.stats.loads == {"ok": 1, "failed": 1}
            assert made.closed == []
            assert (await made.get("/v2/health/ready")).status_code == 200

    in_loop(work, 60)


def test_a_change_to_another_path_is_told_as_it_went(folder: Path) -> None:
    async def work() -> None:
        async with running(folder) as made:
            swap = await made.room.change(folder / "two")
            assert (swap.bundle, swap.ok) == ("two", True)
            swap = await made.room.change(folder / "bad")
            assert (swap.bundle, swap.ok) == ("bad", False)
            swap = await made.room.change()
            assert (swap.bundle, swap.ok) == ("one", True)  # the path that it was started with

    in_loop(work, 60)


def test_the_watchdog_is_told_while_all_is_well_and_no_longer(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def work() -> None:
        async with running(folder) as made:
            await until(lambda: "WATCHDOG=1" in made.hear())
            with monkeypatch.context() as patch:
                patch.setattr("edgetune.serve.service.Service.is_live", property(lambda _: False))
                made.hear().clear()
                await asyncio.sleep(0.1)
                assert "WATCHDOG=1" not in made.hear()
            await until(lambda: "WATCHDOG=1" in made.hear())

    monkeypatch.setattr("edgetune.serve.process._LOOK_EVERY_S", 0.02)
    in_loop(work, 60)

"""The life of a started server: signals, changes of the model, systemd's watchdog, and the end."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import signal
import socket
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from edgetune.serve.admin import AdminApp
from edgetune.serve.app import App
from edgetune.serve.http.listener import HttpServer, make_server
from edgetune.serve.model import ServedModel, open_model
from edgetune.serve.observe.notify import Notifier
from edgetune.serve.scheduling.plan import plan_threads
from edgetune.serve.service import Service
from edgetune.serve.settings import ServeSettings
from edgetune.serve.slot import Slot, Swap

logger = logging.getLogger(__name__)

_LOOK_EVERY_S = 5.0


@dataclass(frozen=True)
class Start:
    """What was opened before there was an event loop. `close_model` ends the model, and the sockets end with it."""

    name: str
    model: ServedModel
    close_model: Callable[[], None]
    listener: socket.socket
    admin: socket.socket | None
    tls: ssl.SSLContext | None


class Process:
    """SIGTERM and SIGINT end it when the requests in work are answered, SIGTERM after `drain_s` of saying "not ready";
    a second one ends it at once. SIGHUP takes up the bundle that the path, perhaps a link, now leads to.
    """

    def __init__(self, bundle_path: Path, settings: ServeSettings, notifier: Notifier) -> None:
        self._bundle_path = bundle_path
        self._settings = settings
        self._notifier = notifier
        self._is_stopping = False
        self._tasks: set[asyncio.Task[object]] = set()

    async def run(self, start: Start, started: Callable[[], None]) -> None:
        """Serves until it is told to stop; `started` is called when the first request would be answered."""
        service = self._service = self._make_service(start)
        self._runner = start.model.choice.runner
        server, admin = self._servers(start, service)
        self._server = server
        service.count_connections = lambda: server.connection_count
        self._take_signals()
        serving = asyncio.ensure_future(server.serve(sockets=[start.listener]))
        admin_serving = None
        if admin is not None and start.admin is not None:
            admin_serving = asyncio.ensure_future(admin.serve(sockets=[start.admin]))
        watching = asyncio.ensure_future(self._watch())
        _spare_the_collector()
        started()
        self._notifier.ready(f"serving {start.name}, {start.model.choice.artifact.name}")
        try:
            await serving
        finally:
            watching.cancel()
            if admin is not None and admin_serving is not None:
                admin.stop(at_once=True)
                await asyncio.gather(admin_serving, return_exceptions=True)
            service.close()

    async def change(self, path: Path | None = None) -> Swap:
        """Serves the bundle at `path`, or the one that the first path leads to now, if it passes its self-test."""
        self._notifier.reloading()
        swap = await self._service.slot.change(path or self._bundle_path)
        self._service.stats.model_loaded(swap.ok)
        if swap.ok and self._service.slot.current.model.choice.runner != self._runner:
            logger.warning("the new model runs on another device; start the server anew for threads that suit it")
        if swap.ok:
            logger.info("model changed", extra={"bundle": swap.bundle, "seconds": swap.seconds})
        else:
            logger.error(
                "the model stays: the other cannot be served", extra={"bundle": swap.bundle, "why": swap.error}
            )
        self._notifier.ready(f"serving {self._service.slot.current.model.bundle.path.name}")
        return swap

    def _make_service(self, start: Start) -> Service:
        settings = self._settings
        slot = Slot(lambda path: open_model(path, settings), settings.limits)
        slot.fill(start.model, start.close_model)
        service = Service(start.name, settings, slot, plan_threads(settings, start.model.choice.runner))
        service.stats.model_loaded(ok=True)
        return service

    def _servers(self, start: Start, service: Service) -> tuple[HttpServer, HttpServer | None]:
        limits, timeout_s = self._settings.limits, self._settings.shutdown_timeout_s
        server = make_server(App(service), limits, service.stats.rejected, start.tls, timeout_s)
        if start.admin is None:
            return server, None
        return server, make_server(AdminApp(service, self.change), limits, lambda _: None, None, 1)

    def _take_signals(self) -> None:
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self._stop, self._settings.drain_s)
        loop.add_signal_handler(signal.SIGINT, self._stop, 0.0)
        loop.add_signal_handler(signal.SIGHUP, lambda: self._start_task(self.change()))

    def _stop(self, drain_s: float) -> None:
        if self._is_stopping:
            logger.warning("stopped at once; requests in work are not answered")
            os._exit(1)
        self._is_stopping = True
        self._service.is_draining = True
        self._notifier.stopping()
        if drain_s > 0:
            asyncio.get_running_loop().call_later(drain_s, self._server.stop)
        else:
            self._server.stop()

    def _start_task(self, work: object) -> None:
        task: asyncio.Task[object] = asyncio.ensure_future(work)  # type: ignore[call-overload]
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _watch(self) -> None:
        """Tells systemd that all is well while it is; if not, the log is told, and the watchdog ends us."""
        was_live = True
        with contextlib.suppress(asyncio.CancelledError):
            while True:
                await asyncio.sleep(self._notifier.watchdog_interval_s or _LOOK_EVERY_S)
                is_live = self._service.is_live
                if is_live:
                    self._notifier.watchdog()
                elif was_live:
                    logger.error(
                        "runs of the model hang or fail", extra={"longest_s": self._service.scheduler.oldest_run_s}
                    )
                was_live = is_live


def _spare_the_collector() -> None:
    """What was made until now stays for good, and JSON makes many objects that are never rings: without this, garbage
    collection is most of the time that nested JSON takes.
    """
    gc.freeze()
    gc.set_threshold(100_000, 20, 100)

"""A real server for tests on a free port, of a model made by the test, in a thread."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path

from edgetune.serve.app import App
from edgetune.serve.http.listener import HttpServer, bind, make_server
from edgetune.serve.model import ServedModel
from edgetune.serve.scheduling.plan import plan_threads
from edgetune.serve.service import Service
from edgetune.serve.settings import ServeSettings
from edgetune.serve.slot import Slot


@contextlib.contextmanager
def serving_in_thread(
    model: ServedModel, settings: ServeSettings, name: str = "model"
) -> Iterator[tuple[str, Service]]:
    """Yields the address and what answers there; the model is the caller's to close."""
    listener = bind("127.0.0.1", 0)
    port = listener.getsockname()[1]
    loop = asyncio.new_event_loop()
    started = threading.Event()
    made: list[tuple[Service, HttpServer]] = []

    async def serve() -> None:
        def no_other(_: Path) -> contextlib.AbstractContextManager[ServedModel]:
            raise AssertionError("this server has one model only")

        slot = Slot(no_other, settings.limits)
        slot.fill(model, lambda: None)
        service = Service(name, settings, slot, plan_threads(settings, model.choice.runner))
        server = make_server(App(service), settings.limits, service.stats.rejected, None, 5)
        service.count_connections = lambda: server.connection_count
        made.append((service, server))
        started.set()
        await server.serve(sockets=[listener])
        service.close()

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()), daemon=True)
    thread.start()
    assert started.wait(20)
    service, server = made[0]
    try:
        yield f"http://127.0.0.1:{port}", service
    finally:
        server.stop()
        thread.join(20)
        loop.close()

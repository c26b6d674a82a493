"""The model that is served now, and its change for another while requests run."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import logging
import queue
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from edgetune.core.errors import EdgetuneError, first_line
from edgetune.core.tensors import IMAGE_INPUT
from edgetune.serve.model import ServedModel
from edgetune.serve.settings import Limits
from edgetune.serve.wire.v2_request import WireContract

logger = logging.getLogger(__name__)

T = TypeVar("T")
_CLOSING_S = 5.0

Opener = Callable[[Path], AbstractContextManager[ServedModel]]


class Serving:
    """An open model with the number of those that use it; the last to leave a retired one closes it."""

    def __init__(self, model: ServedModel, limits: Limits, close: Callable[[], None]) -> None:
        self.model = model
        self.contract = _contract(model, limits)
        self._close = close
        self._users = 0
        self._is_retired = False

    @contextlib.contextmanager
    def in_use(self) -> Iterator[None]:
        self.acquire()
        try:
            yield
        finally:
            self.release()

    def acquire(self) -> None:
        self._users += 1

    def release(self) -> None:
        self._users -= 1
        self._close_if_unused()

    def retire(self) -> None:
        self._is_retired = True
        self._close_if_unused()

    def _close_if_unused(self) -> None:
        if self._is_retired and self._users == 0:
            self._close()


@dataclass(frozen=True)
class Swap:
    """How the last change of the model went; `error` is empty where it is served now."""

    bundle: str
    ok: bool
    error: str
    seconds: float


class Slot:
    """Holds one model. A change opens, warms and tests the new one beside the old, and only then takes requests to it:
    whatever goes wrong before leaves the old one serving. All methods belong to the event loop's thread.
    """

    def __init__(self, opener: Opener, limits: Limits) -> None:
        self._opener = opener
        self._limits = limits
        self._serving: Serving | None = None
        self._changing = asyncio.Lock()
        self._keeper = _Keeper()
        self.last_swap: Swap | None = None

    @property
    def current(self) -> Serving:
        if self._serving is None:
            raise RuntimeError("no model is open")
        return self._serving

    def fill(self, model: ServedModel, close: Callable[[], None]) -> None:
        """Takes the first model, which was opened before there was a loop."""
        self._serving = Serving(model, self._limits, lambda: self._close_later(close))

    async def change(self, path: Path) -> Swap:
        """Serves the bundle at `path` from now on, or tells why not; then the old one stays."""
        async with self._changing:
            started = time.monotonic()
            try:
                fresh = await asyncio.wrap_future(self._keeper.submit(lambda: self._open(path)))
            except Exception as error:
                if not isinstance(error, EdgetuneError):
                    logger.exception("the bundle could not be opened")
                why = error.message if isinstance(error, EdgetuneError) else first_line(error)
                swap = Swap(path.name, ok=False, error=why, seconds=time.monotonic() - started)
            else:
                old, self._serving = self.current, fresh
                old.retire()
                swap = Swap(fresh.model.bundle.path.name, ok=True, error="", seconds=time.monotonic() - started)
            self.last_swap = swap
            return swap

    def empty(self) -> None:
        """Closes the model, if no request uses it any more. Does not wait for one that is being opened."""
        if self._serving is not None:
            self._serving.retire()
        self._keeper.end(0.0 if self._changing.locked() else _CLOSING_S)

    def _open(self, path: Path) -> Serving:
        with contextlib.ExitStack() as stack:
            model = stack.enter_context(self._opener(path))
            serving = Serving(model, self._limits, lambda: self._close_later(closing.close))
            closing = stack.pop_all()
        return serving

    def _close_later(self, close: Callable[[], None]) -> None:
        self._keeper.submit(lambda: _close(close))


class _Keeper:
    """The one thread that opens and closes models: a session is dropped where it was made. Its thread is a daemon, as a
    pool's are not, so that a process that is told to end does not wait for a model whose engine is being built.
    """

    def __init__(self) -> None:
        self._work: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)
        self._thread.start()

    def submit(self, work: Callable[[], T]) -> Future[T]:
        future: Future[T] = Future()

        def run() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(work())
            except Exception as error:  # noqa: BLE001 - it is whose waits for it
                future.set_exception(error)

        self._work.put(run)
        return future

    def end(self, wait_s: float) -> None:
        self._work.put(None)
        self._thread.join(wait_s)

    def _run(self) -> None:
        while (work := self._work.get()) is not None:
            work()


def _close(close: Callable[[], None]) -> None:
    try:
        close()
    except Exception:
        logger.exception("the previous model did not close")
    _give_memory_back()


def _give_memory_back() -> None:
    """A session's weights leave holes that glibc keeps for itself; a device has other uses for them."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


def _contract(model: ServedModel, limits: Limits) -> WireContract:
    inputs = model.runner.input_specs
    image = next((spec.name for spec in inputs if spec.name == IMAGE_INPUT and spec.dtype == "uint8"), None)
    return WireContract(
        inputs,
        model.runner.output_specs,
        image,
        model.bundle.manifest.classes,
        limits.max_images,
        limits.max_json_bytes,
    )

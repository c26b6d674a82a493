"""Models, served models and requests made by a test, for the rooms of the server that need no bundle."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any, TypeVar, cast

import numpy as np

from edgetune.core.errors import TensorError
from edgetune.core.tensors import Array, Feed, TensorSpec
from edgetune.serve.http.request import Request
from edgetune.serve.model import ServedModel
from edgetune.serve.scheduling.plan import ThreadPlan
from edgetune.serve.settings import Limits
from edgetune.serve.slot import Serving

T = TypeVar("T")
WAIT_S = 20.0
INPUT = "x"


def in_loop(work: Callable[[], Awaitable[T]], timeout_s: float = WAIT_S) -> T:
    """Runs a test's coroutine on a loop of its own; one that hangs fails."""

    async def bounded() -> T:
        return await asyncio.wait_for(work(), timeout_s)

    return asyncio.run(bounded())


async def until(holds: Callable[[], bool]) -> None:
    """Lets the loop go on until the condition holds, which some thread or callback brings about; fails where it never
    does, also while the test is being ended.
    """
    deadline = time.monotonic() + WAIT_S / 2
    while not holds():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.001)


def rows(*values: float) -> Feed:
    """A feed of as many images as values; each is two numbers wide."""
    return {INPUT: np.array([[value, -value] for value in values], np.float32).reshape(-1, 2)}


class Doubling:
    """Gives twice its input. Rows that hold a number of `poison` make the whole run fail. `runs` are the row counts."""

    def __init__(self, poison: Sequence[float] = ()) -> None:
        self.poison = frozenset(poison)
        self.runs: list[int] = []
        self.order: list[float] = []
        self._lock = threading.Lock()

    def infer(self, feed: Feed) -> dict[str, Array]:
        first = feed[INPUT][:, 0].tolist() if feed[INPUT].ndim > 1 else []
        with self._lock:
            self.runs.append(len(feed[INPUT]))
            self.order.extend(first)
        if self.poison & set(first):
            raise TensorError(f"poisoned by {sorted(self.poison & set(first))}")
        return {"y": feed[INPUT] * 2}


class Held(Doubling):
    """Each run waits until the test lets it go: `begun` counts those that were begun, `go` lets one end."""

    def __init__(self, poison: Sequence[float] = ()) -> None:
        super().__init__(poison)
        self.begun = threading.Semaphore(0)
        self.go = threading.Semaphore(0)
        self.active = 0
        self.most_active = 0

    def infer(self, feed: Feed) -> dict[str, Array]:
        with self._lock:
            self.active += 1
            self.most_active = max(self.most_active, self.active)
        self.begun.release()
        held = self.go.acquire(timeout=WAIT_S)
        with self._lock:
            self.active -= 1
        if not held:
            raise TimeoutError("the test never let this run go")
        return super().infer(feed)

    async def has_begun(self) -> None:
        await until(lambda: self.begun.acquire(blocking=False))


class Opened:
    """A `Serving` of a model made by the test, with the number of times that it was closed."""

    def __init__(self, model: Any = None) -> None:
        self.closed = 0
        self.model = stand_in(model or Doubling())
        self.serving = Serving(self.model, Limits(), self.close)

    def close(self) -> None:
        self.closed += 1

    @property
    def users(self) -> int:
        return self.serving._users


def stand_in(model: Any) -> ServedModel:
    """What a `Serving` asks of a model, and its `infer`."""
    manifest = SimpleNamespace(classes=("a", "b"))
    runner = SimpleNamespace(
        name="made by the test",
        input_specs=(TensorSpec(INPUT, "float32", (None, 2)),),
        output_specs=(TensorSpec("y", "float32", (None, 2)),),
    )
    bundle = SimpleNamespace(manifest=manifest, path=None)
    return cast("ServedModel", SimpleNamespace(infer=model.infer, runner=runner, bundle=bundle))


def plan(runs: int = 1, batch: int = 1, decoders: int = 1) -> ThreadPlan:
    return ThreadPlan(cpus=runs, runs=runs, threads=1, batch=batch, decoders=decoders)


class Ear:
    """Listens to a scheduler: what was run, batch by batch."""

    def __init__(self) -> None:
        self.told: list[tuple[Any, Any]] = []

    def __call__(self, items: Any, outcomes: Any) -> None:
        self.told.append((list(items), list(outcomes)))


class Client:
    """The other side of one request: its scope, its body in pieces, and its leaving."""

    def __init__(
        self,
        body: Sequence[bytes] = (b"",),
        headers: Mapping[str, str] | None = None,
        *,
        method: str = "POST",
        path: str = "/",
        query: str = "",
    ) -> None:
        self._pieces = list(body)
        self._leave: list[Callable[[], None]] = []
        self.scope: dict[str, Any] = {
            "type": "http",
            "method": method,
            "path": path,
            "query_string": query.encode(),
            "headers": [(name.encode(), value.encode("latin-1")) for name, value in (headers or {}).items()],
            "edgetune.when_gone": self._leave.append,
            "client": ("127.0.0.1", 5),
        }
        self.sent: list[Any] = []

    @property
    def request(self) -> Request:
        return Request(self.scope, self.receive)

    async def receive(self) -> dict[str, Any]:
        if not self._pieces:
            return {"type": "http.disconnect"}
        piece = self._pieces.pop(0)
        return {"type": "http.request", "body": piece, "more_body": bool(self._pieces)}

    async def send(self, message: Any) -> None:
        self.sent.append(message)

    def leave(self) -> None:
        for callback in self._leave:
            callback()

    @property
    def status(self) -> int:
        return int(self.sent[0]["status"])

    @property
    def headers(self) -> dict[str, str]:
        return {name.decode(): value.decode() for name, value in self.sent[0]["headers"]}

    @property
    def answer(self) -> bytes:
        return b"".join(message["body"] for message in self.sent[1:])

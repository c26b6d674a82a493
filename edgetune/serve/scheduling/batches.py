"""What a runner thread does with the items that it is given: prepare, infer together, and answer each alone."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from edgetune.core.tensors import Array, Feed
from edgetune.serve.errors import RequestError, as_request_error

Prepare = Callable[[], Feed]


class Model(Protocol):
    """What runs a feed of any number of images; see `edgetune.serve.model.ServedModel`."""

    def infer(self, feed: Feed) -> dict[str, Array]: ...


@dataclass(eq=False)
class Item:
    """A part of a request that is never split: `feed` holds `count` images, or `prepare` makes it. With `is_alone` it
    is not run together with others.
    """

    count: int
    feed: Feed | None = None
    prepare: Prepare | None = None
    is_alone: bool = False
    queued_ns: int = field(default_factory=time.perf_counter_ns)

    def ready_feed(self) -> Feed:
        """Prepares once; what `prepare` raises is the item's own fault."""
        if self.feed is None:
            if self.prepare is None:
                raise TypeError("the item has neither a feed nor a way to make one")
            self.feed = self.prepare()
        return self.feed


@dataclass
class Outcome:
    """`outputs` of one item, or the `error` that it met. Times in ns; `infer_ns` is the whole batch's."""

    outputs: dict[str, Array] | None = None
    error: RequestError | None = None
    started_ns: int = 0
    prepare_ns: int = 0
    infer_ns: int = 0
    batch: int = 1


def run_items(model: Model, items: Sequence[Item]) -> list[Outcome]:
    """One outcome an item, in order. An item that cannot be prepared, or whose inference fails, does not touch the
    others: a batch that fails as a whole is run again one by one.
    """
    outcomes = [_prepare(item) for item in items]
    good = [index for index, outcome in enumerate(outcomes) if outcome.error is None]
    if len(good) > 1:
        feeds = [items[index].ready_feed() for index in good]
        if _infer_together(model, feeds, [outcomes[index] for index in good]):
            return outcomes
    for index in good:
        _infer_alone(model, items[index].ready_feed(), outcomes[index])
    return outcomes


def signature(feed: Feed) -> tuple[tuple[str, str, tuple[int, ...]], ...]:
    """What feeds must share to be run as one batch: names, dtypes, and all sizes but the first."""
    return tuple((name, array.dtype.str, array.shape[1:]) for name, array in sorted(feed.items()))


def _prepare(item: Item) -> Outcome:
    started = time.perf_counter_ns()
    outcome = Outcome(started_ns=started)
    try:
        item.ready_feed()
    except Exception as error:  # noqa: BLE001 - it is the request's to answer, and the thread must live
        outcome.error = as_request_error(error)
    outcome.prepare_ns = time.perf_counter_ns() - started
    return outcome


def _infer_alone(model: Model, feed: Feed, outcome: Outcome) -> None:
    started = time.perf_counter_ns()
    try:
        outcome.outputs = model.infer(feed)
    except Exception as error:  # noqa: BLE001 - see above
        outcome.error = as_request_error(error)
    outcome.infer_ns = time.perf_counter_ns() - started


def _infer_together(model: Model, feeds: Sequence[Feed], outcomes: Sequence[Outcome]) -> bool:
    """Fills the outcomes from one run; False where it fails, or the feeds are not alike."""
    if len({signature(feed) for feed in feeds}) > 1:
        return False
    started = time.perf_counter_ns()
    counts = [len(next(iter(feed.values()))) for feed in feeds]
    ends = np.cumsum(counts)
    try:
        outputs = model.infer({name: np.concatenate([feed[name] for feed in feeds]) for name in feeds[0]})
    except Exception:  # noqa: BLE001 - each is tried alone, and then tells its own error
        return False
    if any(array.shape[:1] != (ends[-1],) for array in outputs.values()):
        return False  # what is not one row an image cannot be shared out
    elapsed = time.perf_counter_ns() - started
    for outcome, start, end in zip(outcomes, ends - counts, ends, strict=True):
        outcome.outputs = {name: array[start:end] for name, array in outputs.items()}
        outcome.infer_ns, outcome.batch = elapsed, int(ends[-1])
    return True

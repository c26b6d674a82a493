"""What the server counts: plain integers, touched on the event loop's thread only, so that nothing locks or waits.

Durations are nanoseconds of `time.perf_counter_ns`. Reading them out (statistics page, metrics) costs the reader.
"""

from __future__ import annotations

import math
import time
from bisect import bisect_left
from collections.abc import Callable
from typing import Any, NamedTuple

ROUTES = ("infer", "classify", "other")
REASONS = ("queue_full", "deadline", "too_large", "bad_image", "bad_request", "draining", "not_ready", "auth", "host",
           "timeout", "connections", "disconnected", "nonfinite", "internal", "other")  # fmt: skip

# Upper bounds, inclusive: 0.5 ms to 5 s, and 1 to 64 images.
DURATION_BOUNDS_NS = tuple(round(ms * 1e6) for ms in (0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000))
BATCH_BOUNDS = (1, 2, 4, 8, 16, 32, 64)

# As many runs as a p99 needs to leave out the slowest two; sorting them takes some microseconds.
_RECENT_RUNS = 256


class Timing(NamedTuple):
    """One run of the session, or one request's share of it: how long its oldest image waited, and what preparing all
    its images and running the model took. `ok` is False where the run failed.
    """

    images: int
    queue_ns: int
    prepare_ns: int
    infer_ns: int
    ok: bool = True


class Histogram:
    """`counts[i]` values lie in (bounds[i - 1], bounds[i]]; the last one counts those above every bound."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: tuple[int, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0

    def add(self, value: int) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value


class RouteStats:
    """The answers of one route: how many by status, and how long they took."""

    __slots__ = ("codes", "durations")

    def __init__(self) -> None:
        self.codes: dict[int, int] = {}
        self.durations = Histogram(DURATION_BOUNDS_NS)


class _Batches:
    """The runs of one batch size."""

    __slots__ = ("count", "infer_ns", "prepare_ns")

    def __init__(self) -> None:
        self.count = 0
        self.prepare_ns = 0
        self.infer_ns = 0


class ModelStats:
    """What Triton's statistics extension tells of one loaded model; begins at 0 with each model."""

    __slots__ = ("batches", "fail_count", "fail_ns", "finish_ns", "images", "infer_ns", "last_inference_ms",
                 "prepare_ns", "queue_ns", "success_count")  # fmt: skip

    def __init__(self) -> None:
        self.success_count = self.fail_count = self.images = self.last_inference_ms = 0
        self.queue_ns = self.prepare_ns = self.infer_ns = self.finish_ns = self.fail_ns = 0
        self.batches: dict[int, _Batches] = {}

    @property
    def success_ns(self) -> int:
        return self.queue_ns + self.prepare_ns + self.infer_ns + self.finish_ns

    @property
    def execution_count(self) -> int:
        return sum(batches.count for batches in self.batches.values())


class ServerStats:
    """The counts of one server process. `now_ns` is the wall clock, nanoseconds since 1970."""

    def __init__(self, now_ns: Callable[[], int] = time.time_ns) -> None:
        self._now_ns = now_ns
        self.routes = {route: RouteStats() for route in ROUTES}
        self.rejections = dict.fromkeys(REASONS, 0)
        self.queue = Histogram(DURATION_BOUNDS_NS)
        self.prepare = Histogram(DURATION_BOUNDS_NS)
        self.infer = Histogram(DURATION_BOUNDS_NS)
        self.batch_sizes = Histogram(BATCH_BOUNDS)
        self.failed_runs = 0
        self.nonfinite_outputs = 0
        self.loads = {"ok": 0, "failed": 0}
        self.model = ModelStats()
        self._recent = [0] * _RECENT_RUNS
        self._runs = 0

    def request_done(self, route: str, code: int, duration_ns: int) -> None:
        """An answer was sent; `route` is one of `ROUTES`, anything else counts as "other"."""
        seen = self.routes.get(route) or self.routes["other"]
        seen.codes[code] = seen.codes.get(code, 0) + 1
        seen.durations.add(duration_ns)

    def rejected(self, reason: str) -> None:
        """A request was refused; `reason` is one of `REASONS`, anything else counts as "other"."""
        self.rejections[reason if reason in self.rejections else "other"] += 1

    def executed(self, timing: Timing) -> None:
        """The session ran once, for one request or for several; a failed run counts as that, and its times do not."""
        images, queue_ns, prepare_ns, infer_ns, ok = timing
        if not ok:
            self.failed_runs += 1
            return
        self.queue.add(queue_ns)
        self.prepare.add(prepare_ns)
        self.infer.add(infer_ns)
        self.batch_sizes.add(images)
        batches = self.model.batches.get(images)
        if batches is None:
            batches = self.model.batches[images] = _Batches()
        batches.count += 1
        batches.prepare_ns += prepare_ns
        batches.infer_ns += infer_ns
        self._recent[self._runs % _RECENT_RUNS] = infer_ns
        self._runs += 1

    def request_inferred(self, timing: Timing, finish_ns: int) -> None:
        """A request is through the model: its own images and times, and `finish_ns` for making the answer.

        Call it once a request that came to the model; those refused before are `rejected`.
        """
        images, queue_ns, prepare_ns, infer_ns, ok = timing
        model = self.model
        if not ok:
            model.fail_count += 1
            model.fail_ns += queue_ns + prepare_ns + infer_ns + finish_ns
            return
        model.success_count += 1
        model.images += images
        model.queue_ns += queue_ns
        model.prepare_ns += prepare_ns
        model.infer_ns += infer_ns
        model.finish_ns += finish_ns
        model.last_inference_ms = self._now_ns() // 1_000_000

    def nonfinite(self) -> None:
        """An output held NaN or infinity."""
        self.nonfinite_outputs += 1

    def model_loaded(self, ok: bool) -> None:
        """A model was loaded and begins its own statistics, or failed to load and the one before it stays."""
        self.loads["ok" if ok else "failed"] += 1
        if ok:
            self.model = ModelStats()
            self._runs = 0

    def recent_p99_ns(self) -> int:
        """The inference time that 99 of 100 of the last runs stayed within (nearest rank); 0 before the first run."""
        count = min(self._runs, _RECENT_RUNS)
        return sorted(self._recent[:count])[math.ceil(0.99 * count) - 1] if count else 0

    def to_triton(self, name: str, version: str) -> dict[str, Any]:
        """The answer of Triton's statistics extension.

        The three compute counts are equal, as perf_analyzer demands. The answer's making belongs to requests, not to
        runs, so that `compute_output` of a batch size takes no time.
        """
        model = self.model
        count = model.success_count
        return {"model_stats": [{
            "name": name,
            "version": version,
            "last_inference": model.last_inference_ms,
            "inference_count": model.images,
            "execution_count": model.execution_count,
            "inference_stats": {
                "success": _duration(count, model.success_ns),
                "fail": _duration(model.fail_count, model.fail_ns),
                "queue": _duration(count, model.queue_ns),
                "compute_input": _duration(count, model.prepare_ns),
                "compute_infer": _duration(count, model.infer_ns),
                "compute_output": _duration(count, model.finish_ns),
                "cache_hit": _duration(0, 0),
                "cache_miss": _duration(0, 0),
            },
            "batch_stats": [_batch(size, batches) for size, batches in sorted(model.batches.items())],
            "memory_usage": [],
        }]}  # fmt: skip


def _batch(size: int, batches: _Batches) -> dict[str, Any]:
    return {
        "batch_size": size,
        "compute_input": _duration(batches.count, batches.prepare_ns),
        "compute_infer": _duration(batches.count, batches.infer_ns),
        "compute_output": _duration(batches.count, 0),
    }


def _duration(count: int, total_ns: int) -> dict[str, int]:
    return {"count": count, "ns": total_ns}

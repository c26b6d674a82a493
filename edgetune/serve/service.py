"""All that the server's answers are made from, and whether it is alive and ready."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from edgetune.serve.admission import Admission
from edgetune.serve.observe.stats import ServerStats, Timing
from edgetune.serve.scheduling.batches import Item, Outcome
from edgetune.serve.scheduling.plan import ThreadPlan
from edgetune.serve.scheduling.scheduler import Scheduler
from edgetune.serve.settings import ServeSettings
from edgetune.serve.slot import Slot

# A run that lasts so long, and so much longer than runs do, hangs.
_HANGS_AFTER_S = 10.0
_HANGS_AFTER_RUNS = 20
# What a client sends is checked before it runs, so that runs fail by themselves only.
_BROKEN_AFTER_RUNS = 10


class Service:
    """Lives as long as the event loop that it is made on. `name` is the model's name in URLs."""

    def __init__(self, name: str, settings: ServeSettings, slot: Slot, plan: ThreadPlan) -> None:
        self.name = name
        self.settings = settings
        self.slot = slot
        self.plan = plan
        self.stats = ServerStats()
        self.admission = Admission(settings.limits)
        self.scheduler = Scheduler(plan, self._ran, settings.batching.delay_s)
        # Large JSON and compressed bodies, which would hold up the loop.
        self.parsing = ThreadPoolExecutor(1, thread_name_prefix="parse")
        self.inflight = 0
        self._failed_in_a_row = 0
        self.count_connections: Callable[[], int] = lambda: 0
        self.is_draining = False

    @property
    def is_live(self) -> bool:
        """False when a run of the session hangs, or run after run fails, as on a GPU that was lost: neither a thread
        nor a CUDA context can be mended from within, so only a new process helps.
        """
        usual_s = self.stats.recent_p99_ns() / 1e9
        hangs = self.scheduler.oldest_run_s > max(_HANGS_AFTER_S, _HANGS_AFTER_RUNS * usual_s)
        return not hangs and self._failed_in_a_row < _BROKEN_AFTER_RUNS

    @property
    def open_connections(self) -> int:
        return self.count_connections()

    @property
    def is_ready(self) -> bool:
        return self.is_live and not self.is_draining

    def close(self) -> None:
        self.scheduler.close()
        self.parsing.shutdown(wait=False, cancel_futures=True)
        self.slot.empty()

    def _ran(self, items: Sequence[Item], outcomes: Sequence[Outcome]) -> None:
        """A batch counts as one run, and what was run alone as one each; what could not be prepared was not run."""
        together = [(item, outcome) for item, outcome in zip(items, outcomes, strict=True) if outcome.infer_ns]
        if together and together[0][1].batch > together[0][0].count:
            together = together[:1]
        for item, outcome in together:
            images = max(outcome.batch, item.count)
            queue_ns = outcome.started_ns - item.queued_ns
            self._failed_in_a_row = 0 if outcome.error is None else self._failed_in_a_row + 1
            self.stats.executed(Timing(images, queue_ns, outcome.prepare_ns, outcome.infer_ns, outcome.error is None))


def timing_of(items: Sequence[Item], outcomes: Sequence[Outcome]) -> Timing:
    """A request's share: its parts side by side, so the longest wait, and the sums of the work."""
    return Timing(
        sum(item.count for item in items),
        max(outcome.started_ns - item.queued_ns for item, outcome in zip(items, outcomes, strict=True)),
        sum(outcome.prepare_ns for outcome in outcomes),
        sum(outcome.infer_ns for outcome in outcomes),
        all(outcome.error is None for outcome in outcomes),
    )

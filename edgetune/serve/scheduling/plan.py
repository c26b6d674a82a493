"""How many inferences run side by side, with how many threads each, from the CPUs that this process may use."""

from __future__ import annotations

from dataclasses import dataclass

from edgetune.core.machine import usable_cpus
from edgetune.runners.ort_providers import CPU
from edgetune.serve.settings import LATENCY, ServeSettings

_GPU_BATCH = 8
# From here on one CPU is left to the network and to decoding's odd work.
_MANY_CPUS = 4
_MOST_DECODERS = 4


@dataclass(frozen=True)
class ThreadPlan:
    """`runs` inferences side by side on `threads` threads each, of `cpus` usable CPUs. With `batch` above 1, images are
    decoded by `decoders` threads of their own; else each run decodes its own.
    """

    cpus: int
    runs: int
    threads: int
    batch: int
    decoders: int

    def __str__(self) -> str:
        runs, threads, cpus = _count(self.runs, "run"), _count(self.threads, "thread"), _count(self.cpus, "usable CPU")
        text = f"{runs} side by side on {threads} each, {cpus}"
        if self.batch > 1:
            text += f"; up to {self.batch} images a run, decoded on {_count(self.decoders, 'thread')}"
        return text


def threads_of_a_run(settings: ServeSettings, cpus: int | None = None) -> int:
    """The threads of a session: all CPUs for the shortest latency, one for the most inferences."""
    if settings.runner.threads is not None:
        return settings.runner.threads
    return (cpus or usable_cpus()) if settings.mode == LATENCY else 1


def plan_threads(settings: ServeSettings, runner: str, cpus: int | None = None) -> ThreadPlan:
    """The plan for a model that runs on `runner`, as `Choice` names it. A GPU's context takes one run at a time."""
    cpus = cpus or usable_cpus()
    threads = threads_of_a_run(settings, cpus)
    on_cpu = runner == CPU
    batch = settings.batching.size or (1 if on_cpu else _GPU_BATCH)
    runs = 1
    if on_cpu:
        spare = cpus - 1 if cpus >= _MANY_CPUS else cpus
        runs = settings.runs or (1 if settings.mode == LATENCY else max(1, spare // threads))
    return ThreadPlan(cpus, runs, threads, batch, min(_MOST_DECODERS, cpus))


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")

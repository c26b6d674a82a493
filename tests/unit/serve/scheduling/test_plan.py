"""Threads by hand: what each machine does with each mode."""

from __future__ import annotations

import pytest

from edgetune.core.machine import usable_cpus
from edgetune.runners.choice import ENGINE, RunnerOptions
from edgetune.runners.ort_providers import CPU, CUDA, TENSORRT_EP
from edgetune.serve.scheduling.plan import plan_threads, threads_of_a_run
from edgetune.serve.settings import LATENCY, THROUGHPUT, Batching, ServeSettings

# mode, CPUs, runner -> runs, threads, batch, decoders
TABLE = [
    (THROUGHPUT, 1, CPU, (1, 1, 1, 1)),
    (THROUGHPUT, 2, CPU, (2, 1, 1, 2)),
    (THROUGHPUT, 3, CPU, (3, 1, 1, 3)),
    (THROUGHPUT, 4, CPU, (3, 1, 1, 4)),
    (THROUGHPUT, 8, CPU, (7, 1, 1, 4)),
    (LATENCY, 1, CPU, (1, 1, 1, 1)),
    (LATENCY, 2, CPU, (1, 2, 1, 2)),
    (LATENCY, 4, CPU, (1, 4, 1, 4)),
    (LATENCY, 8, CPU, (1, 8, 1, 4)),
    (THROUGHPUT, 1, CUDA, (1, 1, 8, 1)),
    (THROUGHPUT, 8, CUDA, (1, 1, 8, 4)),
    (THROUGHPUT, 8, TENSORRT_EP, (1, 1, 8, 4)),
    (THROUGHPUT, 2, ENGINE, (1, 1, 8, 2)),
    (LATENCY, 4, ENGINE, (1, 4, 8, 4)),
]


@pytest.mark.parametrize(("mode", "cpus", "runner", "expected"), TABLE)
def test_the_plan_of_a_machine(mode: str, cpus: int, runner: str, expected: tuple[int, int, int, int]) -> None:
    plan = plan_threads(ServeSettings(mode=mode), runner, cpus)
    assert (plan.runs, plan.threads, plan.batch, plan.decoders) == expected
    assert plan.cpus == cpus


# mode, runs, threads, batch, runner -> runs, threads, batch; all on 8 CPUs
OVERRULED = [
    (THROUGHPUT, 2, None, None, CPU, (2, 1, 1)),
    (THROUGHPUT, None, 2, None, CPU, (3, 2, 1)),
    (THROUGHPUT, None, 4, None, CPU, (1, 4, 1)),
    (THROUGHPUT, None, 16, None, CPU, (1, 16, 1)),
    (THROUGHPUT, 5, 3, None, CPU, (5, 3, 1)),
    (LATENCY, 2, None, None, CPU, (2, 8, 1)),
    (LATENCY, None, 3, None, CPU, (1, 3, 1)),
    (THROUGHPUT, None, None, 4, CPU, (7, 1, 4)),
    (THROUGHPUT, None, None, 1, CUDA, (1, 1, 1)),
    (THROUGHPUT, 6, None, 32, CUDA, (1, 1, 32)),
]


@pytest.mark.parametrize(("mode", "runs", "threads", "batch", "runner", "expected"), OVERRULED)
def test_what_is_told_overrules_the_mode(
    mode: str, runs: int | None, threads: int | None, batch: int | None, runner: str, expected: tuple[int, int, int]
) -> None:
    settings = ServeSettings(mode=mode, runs=runs, runner=RunnerOptions(threads=threads), batching=Batching(batch))
    plan = plan_threads(settings, runner, 8)
    assert (plan.runs, plan.threads, plan.batch) == expected


def test_without_a_number_this_machine_is_asked() -> None:
    assert plan_threads(ServeSettings(), CPU).cpus == usable_cpus()
    assert threads_of_a_run(ServeSettings(mode=LATENCY)) == usable_cpus()
    assert threads_of_a_run(ServeSettings()) == 1


def test_the_plan_in_words() -> None:
    assert str(plan_threads(ServeSettings(), CPU, 1)) == "1 run side by side on 1 thread each, 1 usable CPU"
    assert str(plan_threads(ServeSettings(), CPU, 4)) == "3 runs side by side on 1 thread each, 4 usable CPUs"
    assert str(plan_threads(ServeSettings(mode=LATENCY), CUDA, 2)) == (
        "1 run side by side on 2 threads each, 2 usable CPUs; up to 8 images a run, decoded on 2 threads"
    )

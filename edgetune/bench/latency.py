"""How long inference takes: runners timed side by side in alternating rounds, so that noise hits all alike."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgetune.core.progress import Progress, no_progress
from edgetune.core.tensors import LOGITS_OUTPUT
from edgetune.runners.base import Runner, infer_images

WARMUP_RUNS = 5
_ROUND_RUNS = 5


@dataclass(frozen=True)
class Latency:
    """Milliseconds per call of a batch; throughput in images per second at the median."""

    batch: int
    runs: int
    p50_ms: float
    p95_ms: float
    p99_ms: float
    throughput_ips: float


def time_runners(
    runners: Mapping[str, Runner], images: npt.NDArray[np.uint8], runs: int, *, output: str = LOGITS_OUTPUT,
    progress: Progress = no_progress,
) -> dict[str, Latency]:  # fmt: skip
    """Times each open runner `runs` times on the same images uint8 `(N, H, W, 3)`, in rounds of a few calls."""
    times: dict[str, list[float]] = {name: [] for name in runners}
    for runner in runners.values():
        for _ in range(WARMUP_RUNS):
            infer_images(runner, images, output)
    done = 0
    while done < runs:
        count = min(_ROUND_RUNS, runs - done)
        for name, runner in runners.items():
            times[name] += [_time_once(runner, images, output) for _ in range(count)]
        done += count
        progress(f"batch {len(images)}", done, runs)
    return {name: _summarise(len(images), values) for name, values in times.items()}


def _time_once(runner: Runner, images: npt.NDArray[np.uint8], output: str) -> float:
    start = time.perf_counter()
    infer_images(runner, images, output)
    return (time.perf_counter() - start) * 1000.0


def _summarise(batch: int, times_ms: list[float]) -> Latency:
    p50, p95, p99 = (float(value) for value in np.percentile(times_ms, (50, 95, 99)))
    return Latency(batch, len(times_ms), p50, p95, p99, batch * 1000.0 / p50)

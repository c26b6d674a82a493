"""bench: every artifact of a bundle timed side by side on this machine, and which one to ship here."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgetune.bench.latency import Latency, time_runners
from edgetune.bench.probe import ColdStart, probe_cold_start
from edgetune.core.bundle import PASS, Artifact, Bundle, load_bundle
from edgetune.core.errors import SelfTestError
from edgetune.core.golden import load_golden
from edgetune.core.machine import cpu_name, usable_cpus
from edgetune.core.progress import Progress, no_progress
from edgetune.runners.base import Runner
from edgetune.runners.from_bundle import open_runner, self_test, suits_machine

DEFAULT_BATCHES = (1, 8)


@dataclass(frozen=True)
class BenchRow:
    """`speedup` is the FP32 artifact's p50 at batch 1 over this one's; `self_test` is "ok", or what went wrong."""

    artifact: str
    precision: str
    verdict: str
    self_test: str
    size_bytes: int
    latency: tuple[Latency, ...]
    cold_start: ColdStart
    speedup: float


@dataclass(frozen=True)
class BenchResult:
    cpu: str
    threads: int
    rows: tuple[BenchRow, ...]
    recommended: str | None
    reason: str


def bench(
    bundle_path: Path, *, runs: int = 100, threads: int | None = None, batches: tuple[int, ...] = DEFAULT_BATCHES,
    progress: Progress = no_progress,
) -> BenchResult:  # fmt: skip
    """Times the artifacts in alternating rounds on the golden images; the first of `batches` decides."""
    bundle = load_bundle(bundle_path)
    count = threads or usable_cpus()
    artifacts = bundle.manifest.artifacts
    starts = {a.name: _start(bundle, a, count) for a in artifacts}
    latencies: dict[str, list[Latency]] = {artifact.name: [] for artifact in artifacts}
    pixels = load_golden(bundle)[0].pixels
    with contextlib.ExitStack() as stack:
        runners: dict[str, Runner] = {a.name: stack.enter_context(open_runner(bundle, a, count)) for a in artifacts}
        for batch in batches:
            images = pixels[np.arange(batch) % len(pixels)]
            for name, latency in time_runners(runners, images, runs, progress=progress).items():
                latencies[name].append(latency)
        tested = {a.name: _self_test(bundle, a, runners[a.name]) for a in artifacts}
    first = next((a for a in artifacts if a.precision == "fp32"), artifacts[0])
    base = latencies[first.name][0].p50_ms
    rows = tuple(
        BenchRow(a.name, a.precision, a.verdict, tested[a.name], a.size_bytes, tuple(latencies[a.name]), starts[a.name],
                 base / latencies[a.name][0].p50_ms)
        for a in artifacts
    )  # fmt: skip
    return BenchResult(cpu_name(), count, rows, *_recommend(rows))


def _start(bundle: Bundle, artifact: Artifact, threads: int) -> ColdStart:
    return probe_cold_start(bundle.path / artifact.name, bundle.manifest.preprocess.crop_size, threads)


def _self_test(bundle: Bundle, artifact: Artifact, runner: Runner) -> str:
    if not suits_machine(artifact):
        return f"{artifact.target} INT8 is not for this CPU"
    try:
        self_test(bundle, artifact, runner)
    except SelfTestError as error:
        return error.message
    return "ok"


def _recommend(rows: tuple[BenchRow, ...]) -> tuple[str | None, str]:
    passed = [row for row in rows if row.verdict == PASS and row.self_test == "ok"]
    if not passed:
        return None, "no artifact passed parity and its self-test here"
    best = max(passed, key=lambda row: row.speedup)
    failed = [row.artifact for row in rows if row.speedup > best.speedup]
    reason = f"the fastest here that passed parity, {best.speedup:.2f}x the speed of FP32 at batch 1"
    if best.precision == "fp32":
        reason = "no artifact that passed parity is faster than FP32 here"
    return best.artifact, reason + (f" ({', '.join(failed)} is faster but did not pass)" if failed else "")

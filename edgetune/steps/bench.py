"""bench: every artifact of a bundle timed side by side on this machine, and which one to ship here."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgetune.bench.latency import Latency, time_runners
from edgetune.bench.probe import ColdStart, probe_cold_start
from edgetune.core.bundle import PASS, Bundle, load_bundle
from edgetune.core.engine_files import read_sidecar
from edgetune.core.errors import SelfTestError
from edgetune.core.golden import load_golden
from edgetune.core.machine import cpu_name, usable_cpus
from edgetune.core.progress import Progress, no_progress
from edgetune.runners.base import Runner
from edgetune.runners.choice import AUTO, ENGINE, Choice, RunnerOptions, choose_all, suits_runner
from edgetune.runners.from_bundle import enter_all, open_runner, self_test
from edgetune.runners.ort_providers import CPU

DEFAULT_BATCHES = (1, 8)
_DEFAULT_RUNNER = RunnerOptions()


@dataclass(frozen=True)
class BenchRow:
    """`speedup` is the first FP32 row's p50 at batch 1 over this one's; `self_test` is "ok", or what went wrong.
    `verdict` is the artifact's, and for an engine its own.
    """

    artifact: str
    runner: str
    precision: str
    verdict: str
    self_test: str
    size_bytes: int
    latency: tuple[Latency, ...]
    cold_start: ColdStart
    speedup: float


@dataclass(frozen=True)
class BenchResult:
    """`left_out` says which engines did not start, and why."""

    cpu: str
    threads: int
    rows: tuple[BenchRow, ...]
    left_out: tuple[str, ...]
    recommended: str | None
    reason: str


def bench(
    bundle_path: Path, options: RunnerOptions = _DEFAULT_RUNNER, *, runners: Sequence[str] = (AUTO,), runs: int = 100,
    batches: tuple[int, ...] = DEFAULT_BATCHES, progress: Progress = no_progress,
) -> BenchResult:  # fmt: skip
    """Times the artifacts in alternating rounds on the golden images; the first of `batches` decides.

    `runners` are kinds of `RunnerOptions`: `auto` is the CPU, and every engine of the cache that fits this machine.

    Raises:
        EngineError, ModelError, MissingDependencyError: a runner that was named cannot run here.
    """
    bundle = load_bundle(bundle_path)
    options = dataclasses.replace(options, threads=options.threads or usable_cpus())
    choices = choose_all(bundle, runners, options)
    latencies: dict[str, list[Latency]] = {key: [] for key in choices}
    pixels = load_golden(bundle)[0].pixels
    may_fail = {key for key, choice in choices.items() if choice.runner != CPU and AUTO in runners}
    with contextlib.ExitStack() as stack:
        closed = {key: open_runner(bundle, choice, options) for key, choice in choices.items()}
        opened, problems = enter_all(stack, closed, may_fail=may_fail)
        choices = {key: choices[key] for key in opened}
        starts = {key: probe_cold_start(bundle.path, choice, options) for key, choice in choices.items()}
        for batch in batches:
            images = pixels[np.arange(batch) % len(pixels)]
            for key, latency in time_runners(opened, images, runs, progress=progress).items():
                latencies[key].append(latency)
        tested = {key: _self_test(bundle, choice, opened[key]) for key, choice in choices.items()}
    first = next((key for key, choice in choices.items() if choice.artifact.precision == "fp32"), next(iter(choices)))
    base = latencies[first][0].p50_ms
    rows = tuple(
        BenchRow(choice.artifact.name, choice.runner, choice.artifact.precision, _verdict(choice), tested[key],
                 choice.artifact.size_bytes, tuple(latencies[key]), starts[key], base / latencies[key][0].p50_ms)
        for key, choice in choices.items()
    )  # fmt: skip
    left_out = tuple(f"{key}: {reason}" for key, reason in problems.items())
    return BenchResult(cpu_name(), options.threads or 1, rows, left_out, *_recommend(rows))


def _verdict(choice: Choice) -> str:
    if choice.engine is None:
        return choice.artifact.verdict
    parity = read_sidecar(choice.engine).parity
    return parity.verdict if parity is not None else "NOT-RUN"


def _self_test(bundle: Bundle, choice: Choice, runner: Runner) -> str:
    artifact = choice.artifact
    if not suits_runner(artifact, choice.runner):
        return f"{artifact.precision.upper()} for {artifact.target} is not for this CPU"
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
    if best.precision == "fp32" and best.runner == CPU:
        reason = "no artifact that passed parity is faster than FP32 here"
    else:
        base = next((row for row in rows if row.precision == "fp32"), rows[0])
        reason = f"the fastest here that passed parity, {best.speedup:.2f}x the speed of {base.artifact} at batch 1"
    if best.runner == ENGINE:
        reason += ", as an engine"
    elif best.runner != CPU:
        reason += f"; parity was judged on the CPU, so prove it first: edgetune parity --runner {best.runner}"
    return best.artifact, reason + (f" ({', '.join(failed)} is faster but did not pass)" if failed else "")

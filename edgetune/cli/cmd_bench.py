"""edgetune bench."""

from __future__ import annotations

from pathlib import Path

import click

from edgetune.cli.options import FOLDER, RUNNERS, engine_cache_option, json_option
from edgetune.cli.render import Outcome, progress_bars, show, table
from edgetune.runners.choice import RunnerOptions
from edgetune.steps.bench import BenchResult, bench

_COLUMNS = (
    "artifact", "runner", "verdict", "MB", "batch", "p50 ms", "p95 ms", "p99 ms", "img/s", "x FP32", "start s",
    "peak MB",
)  # fmt: skip


@click.command("bench")
@click.argument("bundle", type=FOLDER)
@click.option(
    "--runs", type=click.IntRange(10), default=100, show_default=True, help="Timed calls per artifact and batch."
)
@click.option("--threads", type=click.IntRange(1), help="Threads per session; all usable CPUs by default.")
@click.option(
    "--runner", "runners", type=click.Choice(RUNNERS), multiple=True, default=("auto",), show_default=True,
    help="What to time them on; may be given several times. auto is the CPU, and engines that fit this machine.",
)  # fmt: skip
@engine_cache_option
@json_option
def command(
    bundle: Path, runs: int, threads: int | None, runners: tuple[str, ...], engine_cache: Path | None, as_json: bool
) -> None:
    """Time every artifact of BUNDLE on this machine and say which one to ship here.

    Artifacts take turns in short rounds, so that other load on the machine hits all of them alike.

    \b
    Example:
      edgetune bench bundles/first --threads 1
    """
    options = RunnerOptions(threads=threads, cache=engine_cache)
    result = bench(bundle, options, runners=runners, runs=runs, progress=progress_bars())
    lines = [f"{result.cpu}, {result.threads} thread(s)", *table(_COLUMNS, _rows(result)), ""]
    lines += [f"{row.artifact}: {row.self_test}" for row in result.rows if row.self_test != "ok"]
    lines.append(f"ship: {result.recommended or 'nothing'} - {result.reason}")
    messages = [f"left out: {reason}" for reason in result.left_out]
    show(Outcome("bench", result, lines, messages), as_json=as_json)


def _rows(result: BenchResult) -> list[tuple[str, ...]]:
    return [
        (
            row.artifact, row.runner, row.verdict, f"{row.size_bytes / 1e6:.1f}", str(latency.batch),
            f"{latency.p50_ms:.2f}", f"{latency.p95_ms:.2f}", f"{latency.p99_ms:.2f}",
            f"{latency.throughput_ips:.0f}", f"{row.speedup:.2f}", f"{row.cold_start.first_answer_s:.2f}",
            f"{row.cold_start.peak_memory_bytes / 1e6:.0f}",
        )
        for row in result.rows
        for latency in row.latency
    ]  # fmt: skip

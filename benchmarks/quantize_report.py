"""The tables that `quantize.py` prints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmarks.quantize_metrics import Census, Errors, Lead
from benchmarks.quantize_tools import YARDSTICK, ToolRun

FP32 = "FP32"
_NONE = "-"


@dataclass(frozen=True)
class Row:
    """One graph, judged; `run` is None for the FP32 model, `latency_ms` where the graph is for another machine."""

    name: str
    target: str
    errors: Errors
    census: Census
    run: ToolRun | None
    latency_ms: float | None


def print_table(rows: Sequence[Row]) -> None:
    """Ratios of latency are to FP32 here; ratios of time to the yardstick's, whose run is part of the same table."""
    by_name = {row.name: row for row in rows}
    yardstick = by_name[YARDSTICK].run if YARDSTICK in by_name else None
    head = ["tool", "target", "top-1", "agree", "SQNR dB", "KL nats", "b1 ms", "x FP32", "int ops", "float layers",
            "seconds", f"x {YARDSTICK}", "CPU s", "process s", "peak MB"]  # fmt: skip
    lines = [[*_quality(row), *_speed(row, by_name[FP32].latency_ms), *_cost(row.run, yardstick)] for row in rows]
    widths = [max(len(line[column]) for line in (head, *lines)) for column in range(len(head))]
    for line in (head, *lines):
        print(
            "  ".join(
                _align(cell, width, column) for column, (cell, width) in enumerate(zip(line, widths, strict=True))
            )
        )
    if any(row.run is not None and row.run.earlier for row in rows):
        print("* the graph and its cost are from an earlier run; --fresh makes them anew")


def print_leads(leads: Mapping[tuple[str, str], Lead]) -> None:
    """`leads` by (ours, peer)."""
    print("\nhow much better, 95 % interval over the images (SQNR dB gained, KL nats saved)")
    for (ours, peer), lead in leads.items():
        sqnr, kl = (
            f"[{low:+.{digits}f}, {high:+.{digits}f}]" for (low, high), digits in ((lead.sqnr_db, 2), (lead.kl, 4))
        )
        print(f"  {ours:<13} over {peer:<25}{sqnr:>18}{kl:>22}")


def _interval(ends: tuple[float, float], digits: int) -> str:
    low, high = ends
    return f"[{low:+.{digits}f}, {high:+.{digits}f}]"


def _quality(row: Row) -> list[str]:
    errors = row.errors
    shares = [f"{errors.hits.mean():.4f}", f"{errors.agrees.mean():.4f}"]
    return [row.name, row.target, *shares, f"{errors.sqnr_db:.2f}", f"{errors.kl.mean():.4f}"]


def _speed(row: Row, fp32_ms: float | None) -> list[str]:
    counts = [str(sum(row.census.integer.values())), str(row.census.float_layers)]
    if row.latency_ms is None or fp32_ms is None:
        return [_NONE, _NONE, *counts]
    return [f"{row.latency_ms:.2f}", f"{row.latency_ms / fp32_ms:.2f}", *counts]


def _cost(run: ToolRun | None, yardstick: ToolRun | None) -> list[str]:
    if run is None:
        return [_NONE] * 5
    ratio = f"{run.seconds / yardstick.seconds:.2f}" if yardstick is not None else _NONE
    mark = "*" if run.earlier else ""
    times = [f"{run.seconds:.1f}{mark}", ratio, f"{run.cpu_s:.1f}", f"{run.process_s:.1f}"]
    return [*times, f"{run.peak_memory_bytes / 1e6:.0f}"]


def _align(cell: str, width: int, column: int) -> str:
    return cell.ljust(width) if column < 2 else cell.rjust(width)

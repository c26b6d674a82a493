"""From cells to the tables of `serve.py`: ratios within a round, their medians, and intervals over rounds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.parity_journal import markdown_table

BARE = "bare"
_RESAMPLES = 4000


@dataclass(frozen=True)
class Cell:
    """One measurement: requests answered rightly per second, and milliseconds. `cpu_s` is the load generator's."""

    round: int
    server: str
    workload: str
    kind: str
    concurrency: int
    rps: float
    p50_ms: float
    p99_ms: float
    not_ok: int = 0
    rss_bytes: int = 0
    cpu_s: float = 0.0

    @property
    def key(self) -> tuple[str, str, int]:
        return self.server, self.workload, self.concurrency


@dataclass(frozen=True)
class Interval:
    """A median over rounds, and the 95 % of bootstrap medians around it."""

    median: float
    low: float
    high: float

    def shown(self, form: str) -> str:
        return f"{self.median:{form}} ({self.low:{form}} to {self.high:{form}})"


def interval(values: Sequence[float]) -> Interval:
    numbers = np.array(values)
    picks = np.random.default_rng(0).integers(0, len(numbers), (_RESAMPLES, len(numbers)))
    low, high = np.percentile(np.median(numbers[picks], axis=1), (2.5, 97.5))
    return Interval(float(np.median(numbers)), float(low), float(high))


@dataclass(frozen=True)
class Target:
    """`measure` is `bare` or `control` for a share of its rate, or `added` for milliseconds at the median."""

    workload: str
    concurrency: int
    measure: str
    limit: float
    is_upper: bool = False

    def shown(self, found: Interval) -> str:
        is_met = found.median <= self.limit if self.is_upper else found.median >= self.limit
        sign = "<=" if self.is_upper else ">="
        return f"{sign} {self.limit:.2f}: {'met' if is_met else 'MISSED'}"


TARGETS = (
    Target("binary", 1, "bare", 0.90),
    Target("binary", 8, "bare", 0.85),
    Target("jpeg", 8, "bare", 0.90),
    Target("binary", 1, "added", 0.4, is_upper=True),
    *(Target(workload, count, "control", 1.0) for workload in ("binary", "jpeg") for count in (1, 8)),
)


def paired(
    cells: Sequence[Cell], key: tuple[str, str, int], base: tuple[str, str, int], figure: Callable[[Cell, Cell], float]
) -> list[float]:
    """The figure of both cells of each round that has both."""
    ours = {cell.round: cell for cell in cells if cell.key == key}
    theirs = {cell.round: cell for cell in cells if cell.key == base}
    return [figure(ours[number], theirs[number]) for number in sorted(ours.keys() & theirs.keys())]


def rate_ratio(cell: Cell, base: Cell) -> float:
    return cell.rps / base.rps


def added_ms(cell: Cell, base: Cell) -> float:
    return cell.p50_ms - base.p50_ms


def cells_table(cells: Sequence[Cell]) -> str:
    head = (
        "server",
        "workload",
        "c",
        "requests/s",
        "share of bare",
        "p50 ms",
        "p99 ms",
        "added p50 ms",
        "not ok",
        "RSS MB",
    )
    keys = sorted({cell.key for cell in cells}, key=lambda key: (_kind(cells, key), key[2], key[0] != BARE, key))
    return markdown_table(head, [_row(cells, key) for key in keys])


def _kind(cells: Sequence[Cell], key: tuple[str, str, int]) -> str:
    return next(cell.kind for cell in cells if cell.key == key)


def _row(cells: Sequence[Cell], key: tuple[str, str, int]) -> list[str]:
    own = [cell for cell in cells if cell.key == key]
    base = (BARE, own[0].kind, key[2])
    ratios, added = paired(cells, key, base, rate_ratio), paired(cells, key, base, added_ms)
    is_told = key[0] != BARE and bool(ratios)
    return [
        key[0],
        key[1],
        str(key[2]),
        f"{np.median([cell.rps for cell in own]):.0f}",
        interval(ratios).shown(".2f") if is_told else "-",
        f"{np.median([cell.p50_ms for cell in own]):.2f}",
        f"{np.median([cell.p99_ms for cell in own]):.2f}",
        interval(added).shown(".2f") if is_told and key[2] == 1 else "-",
        str(sum(cell.not_ok for cell in own)),
        f"{max(cell.rss_bytes for cell in own) / 1e6:.0f}" if own[0].rss_bytes else "-",
    ]


def targets_table(cells: Sequence[Cell], server: str, controls: Sequence[str]) -> str:
    rows = []
    for target in TARGETS:
        names = controls if target.measure == "control" else [BARE]
        rows += [row for name in names if (row := _target_row(cells, target, server, name))]
    return markdown_table(("workload", "c", "figure", "measured", "target"), rows)


def _target_row(cells: Sequence[Cell], target: Target, server: str, base: str) -> list[str]:
    kind = "jpeg" if target.workload == "jpeg" else "tensor"
    figure = added_ms if target.measure == "added" else rate_ratio
    key, against = (server, target.workload, target.concurrency), (base, kind, target.concurrency)
    values = paired(cells, key, against, figure)
    if not values:
        return []
    found = interval(values)
    what = "added p50, ms" if target.measure == "added" else f"share of {base}"
    return [target.workload, str(target.concurrency), what, found.shown(".2f"), target.shown(found)]

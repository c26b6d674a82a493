"""Ratios within a round, by numbers worked by hand."""

from __future__ import annotations

import pytest

from benchmarks.serve_report import BARE, Cell, added_ms, cells_table, interval, paired, rate_ratio, targets_table

_OURS, _BARE = ("edgetune", "binary", 1), (BARE, "tensor", 1)


def _cell(number: int, server: str, workload: str, rps: float, p50_ms: float) -> Cell:
    return Cell(number, server, workload, "tensor", 1, rps, p50_ms, 2 * p50_ms)


@pytest.fixture
def cells() -> list[Cell]:
    """The machine is half as fast in round 1, and round 2 lacks the bare loop."""
    return [
        _cell(0, BARE, "tensor", 200, 5.0), _cell(0, "edgetune", "binary", 190, 5.25),
        _cell(1, "edgetune", "binary", 90, 10.5), _cell(1, BARE, "tensor", 100, 10.0),
        _cell(2, "edgetune", "binary", 1000, 1.0),
    ]  # fmt: skip


def test_cells_are_paired_within_their_round(cells: list[Cell]) -> None:
    assert paired(cells, _OURS, _BARE, rate_ratio) == [0.95, 0.9]
    assert paired(cells, _OURS, _BARE, added_ms) == [0.25, 0.5]


def test_the_interval_holds_the_median_and_narrows_to_it() -> None:
    assert interval([0.5]) == interval([0.5, 0.5, 0.5])
    wide = interval([0.8, 0.9, 1.0])
    assert (wide.low, wide.median, wide.high) == (0.8, 0.9, 1.0)


def test_targets_are_judged_by_the_median(cells: list[Cell]) -> None:
    table = targets_table(cells, "edgetune", ("control",))
    assert table.splitlines()[2:] == [
        "| binary | 1 | share of bare | 0.93 (0.90 to 0.95) | >= 0.90: met |",
        "| binary | 1 | added p50, ms | 0.38 (0.25 to 0.50) | <= 0.40: met |",
    ]
    slow = [Cell(**{**vars(cell), "rps": cell.rps / 2}) if cell.server == "edgetune" else cell for cell in cells]
    assert ">= 0.90: MISSED" in targets_table(slow, "edgetune", ())


def test_the_bare_loop_has_no_share_of_itself(cells: list[Cell]) -> None:
    bare, ours = cells_table(cells).splitlines()[2:]
    assert bare == "| bare | tensor | 1 | 150 | - | 7.50 | 15.00 | - | 0 | - |"
    assert ours == "| edgetune | binary | 1 | 190 | 0.93 (0.90 to 0.95) | 5.25 | 10.50 | 0.38 (0.25 to 0.50) | 0 | - |"

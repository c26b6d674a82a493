"""Progress where stderr is no terminal: a line every half minute, with speed and time left."""

from __future__ import annotations

import pytest

from edgetune.cli import render


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr("edgetune.cli.render.time.monotonic", lambda: now[0])
    return now


def test_a_line_every_half_minute(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    progress = render.progress_bars()
    for second in range(101):
        clock[0] = 1000.0 + second
        progress("features", 20 * second, 2000)
    # 20 images a second: 600 by the 30th, and 1,400 are left.
    assert capsys.readouterr().err.splitlines() == [
        "features: 600 of 2,000, 20.0 img/s, 70 s left",
        "features: 1,200 of 2,000, 20.0 img/s, 40 s left",
        "features: 1,800 of 2,000, 20.0 img/s, 10 s left",
    ]


def test_short_work_says_nothing(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    progress = render.progress_bars()
    for stage in ("features", "cross-validation"):
        for done in range(11):
            clock[0] += 2.5
            progress(stage, done, 10)
    assert capsys.readouterr() == ("", "")


def test_what_was_there_before_is_not_counted_as_speed(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    progress = render.progress_bars()
    progress("features", 500, 1000)
    clock[0] += 50
    progress("features", 600, 1000)
    assert capsys.readouterr().err == "features: 600 of 1,000, 2.0 img/s, 200 s left\n"


def test_no_step_yet_is_no_division_by_zero(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    progress = render.progress_bars()
    for _ in range(3):
        progress("features", 0, 1000)
        clock[0] += 60
    assert capsys.readouterr().err == ""

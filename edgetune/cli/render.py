"""The only place that prints: results, progress bars and errors, for people or as one JSON envelope."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, is_dataclass
from pathlib import Path
from typing import Any

import click

from edgetune.core.config import to_dict
from edgetune.core.errors import EdgetuneError
from edgetune.core.progress import Progress

GATE_FAILED = 3
_LINE_EVERY_S = 30.0
_COLUMNS, _LINES = 80, 24  # where a terminal does not tell its size; tqdm would show nothing there


@dataclass(frozen=True)
class Outcome:
    """What a command leaves to be shown. `lines` are for people, `data` for programs, `next_command` is run next."""

    command: str
    data: Any
    lines: Sequence[str] = ()
    messages: Sequence[str] = field(default=())
    next_command: str = ""
    exit_code: int = 0
    errors: Sequence[dict[str, str]] = field(default=())


def show(outcome: Outcome, *, as_json: bool) -> None:
    """Prints the outcome and ends the process with its exit code."""
    if as_json:
        _print_json(outcome.command, outcome.exit_code, _plain(outcome.data), outcome.messages, outcome.errors)
    else:
        for line in outcome.lines:
            click.echo(line)
        for message in outcome.messages:
            click.echo(message, err=True)
        if outcome.next_command:
            click.echo(f"\nnext: {outcome.next_command}")
    raise SystemExit(outcome.exit_code)


def show_error(command: str, error: EdgetuneError, *, as_json: bool) -> None:
    """One line of what is wrong, one of what to do; never a traceback."""
    close_bars()
    if as_json:
        entry = {"code": error.code, "message": error.message, "hint": error.hint}
        _print_json(command, error.exit_code, None, [], [entry])
    else:
        click.echo(f"{click.style('error:', fg='red', bold=True)} {error.message}", err=True)
        if error.hint:
            click.echo(f"  hint: {error.hint}", err=True)
    raise SystemExit(error.exit_code)


def show_bug(command: str, error: Exception) -> None:
    """The envelope of a failure that is no user's to mend; its traceback follows on stderr."""
    entry = {"code": "internal", "message": f"{type(error).__name__}: {error}", "hint": "please report this"}
    _print_json(command, 1, None, [], [entry])


def progress_bars() -> Progress:
    """One bar a stage on stderr where that is a terminal, else a line every half minute, so that logs stay readable."""
    if not sys.stderr.isatty():
        return _LogLines()
    return _Bars()


_open_bars: list[Any] = []


def close_bars() -> None:
    """Ends a bar that an error left standing, so that the error gets a line of its own."""
    while _open_bars:
        _open_bars.pop().close()


class _LogLines:
    """For stderr in a file or a pipe: a line now and then on work that takes long, none on work that does not."""

    def __init__(self) -> None:
        self._stage = ""
        self._first = 0
        self._begun_s = self._told_s = 0.0

    def __call__(self, stage: str, done: int, total: int) -> None:
        now_s = time.monotonic()
        if stage != self._stage:
            self._stage, self._first, self._begun_s, self._told_s = stage, done, now_s, now_s
        if now_s - self._told_s < _LINE_EVERY_S or done <= self._first:
            return
        self._told_s = now_s
        rate = (done - self._first) / (now_s - self._begun_s)
        left_s = (total - done) / rate
        click.echo(f"{stage}: {done:,} of {total:,}, {rate:,.1f} {_unit(stage)}/s, {left_s:,.0f} s left", err=True)


class _Bars:
    def __init__(self) -> None:
        self._stage = ""
        self._bar: Any = None

    def __call__(self, stage: str, done: int, total: int) -> None:
        if stage != self._stage:
            self._open(stage, total)
        self._bar.update(done - self._bar.n)
        if done >= total:
            close_bars()
            self._stage = ""

    def _open(self, stage: str, total: int) -> None:
        from tqdm import tqdm

        close_bars()
        size = os.get_terminal_size(sys.stderr.fileno())
        self._bar = tqdm(
            total=total,
            desc=f"{stage:>16}",
            unit=_unit(stage),
            unit_scale=stage == "download",
            ncols=size.columns or _COLUMNS,
            nrows=size.lines or _LINES,
        )
        _open_bars.append(self._bar)
        self._stage = stage


def _unit(stage: str) -> str:
    return {"features": "img", "parity": "img", "calibration": "img", "download": "B"}.get(stage, "step")


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Lines of a table, each column as wide as its widest cell."""
    lines = [list(columns), *(list(row) for row in rows)]
    widths = [max(len(line[index]) for line in lines) for index in range(len(columns))]
    aligned = [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    ]
    return [aligned[0], "  ".join("-" * width for width in widths), *aligned[1:]]


def _print_json(
    command: str, exit_code: int, data: Any, messages: Sequence[str], errors: Sequence[dict[str, str]]
) -> None:
    envelope = {
        "command": command,
        "ok": exit_code == 0,
        "exit_code": exit_code,
        "data": data,
        "messages": list(messages),
        "errors": list(errors),
    }
    click.echo(json.dumps(envelope, indent=2, allow_nan=False, default=_encode))


def _plain(data: Any) -> Any:
    return to_dict(data) if is_dataclass(data) else data


def _encode(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} has no JSON form")


def announce(outcome: Outcome, *, as_json: bool) -> None:
    """Shows the outcome at once, from a command that goes on running: lines on stderr, or the envelope on stdout."""
    if as_json:
        _print_json(outcome.command, outcome.exit_code, _plain(outcome.data), outcome.messages, [])
        sys.stdout.flush()
        return
    for line in outcome.lines:
        click.echo(line, err=True)

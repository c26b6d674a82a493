"""A build as its caller sees it: a process that ends with an engine, or with one sentence saying why not."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import tempfile
import threading
import time
from typing import IO, Any

from edgetune.core.child import child_command, how_it_ended, last_words
from edgetune.core.config import from_dict, to_dict
from edgetune.core.errors import EngineError
from edgetune.core.progress import Progress, no_progress
from edgetune.engine.backend import MEMORY_HINT
from edgetune.engine.protocol import WorkRequest, WorkResult

_WORKER = "edgetune.engine.worker"
_BAR_STEPS = 1000
_POLL_S = 0.1


def run_build(request: WorkRequest, *, timeout_s: float | None, progress: Progress = no_progress) -> WorkResult:
    """Runs the request in a process of its own and kills it when the time is over or the caller is interrupted.

    Raises:
        EngineError: the build failed, crashed, was killed or took too long.
    """
    with tempfile.TemporaryFile() as noise:
        process = subprocess.Popen(
            child_command(_WORKER), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=noise, text=True,
            start_new_session=True,
        )  # fmt: skip
        try:
            answer = _converse(process, request, timeout_s, progress)
        finally:
            _end(process)
        if answer is None:
            raise _death(process.returncode, last_words(noise))
    return answer


def _converse(
    process: subprocess.Popen[str], request: WorkRequest, timeout_s: float | None, progress: Progress
) -> WorkResult | None:
    """The result, or None when the process ended without one."""
    assert process.stdin is not None
    assert process.stdout is not None
    lines: queue.Queue[str | None] = queue.Queue()
    threading.Thread(target=_read_lines, args=(process.stdout, lines), daemon=True).start()
    try:
        process.stdin.write(json.dumps(to_dict(request)) + "\n")
        process.stdin.flush()
    except BrokenPipeError:
        return None
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    while True:
        if deadline is not None and time.monotonic() > deadline:
            raise EngineError(f"the build did not end within {timeout_s:g} s and was stopped.", hint="raise --timeout")
        try:
            line = lines.get(timeout=_POLL_S)
        except queue.Empty:
            continue
        if line is None:
            return None
        answer = _read_answer(line, progress)
        if answer is not None:
            return answer


def _read_lines(stream: IO[str], lines: queue.Queue[str | None]) -> None:
    """Whole lines: a process that is killed may leave half of one."""
    for line in stream:
        if line.endswith("\n"):
            lines.put(line)
    lines.put(None)


def _read_answer(line: str, progress: Progress) -> WorkResult | None:
    message: dict[str, Any] = json.loads(line)
    if "fraction" in message:
        progress("build", min(int(message["fraction"] * _BAR_STEPS), _BAR_STEPS - 1), _BAR_STEPS)
        return None
    if "error" in message:
        error = EngineError(message["error"]["message"], hint=message["error"]["hint"])
        error.code = message["error"]["code"]
        raise error
    progress("build", _BAR_STEPS, _BAR_STEPS)
    return from_dict(WorkResult, message["result"], "the build's result")


def _end(process: subprocess.Popen[str]) -> None:
    """The process has answered, or is to be stopped: it has nothing to tidy up, so it is killed either way."""
    if process.stdin is not None:
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
    try:
        process.wait(timeout=1.0)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _death(code: int, words: str) -> EngineError:
    """The error for a process that ended without an answer: by a signal, or before it could say why."""
    said = f" Its last words: {words}" if words else ""
    if code == -signal.SIGKILL:
        return EngineError(f"the building process {how_it_ended(code)}.{said}", hint=MEMORY_HINT)
    if code < 0:
        return EngineError(
            f"the building process {how_it_ended(code)} inside the backend's library.{said}",
            hint="check the model with edgetune info, and try another --backend or a newer version of it",
        )
    return EngineError(
        f"the building process ended without an answer (exit code {code}).{said}", hint="edgetune doctor"
    )

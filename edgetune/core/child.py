"""A module of edgetune in a process of its own: the command that starts it, and how it ended.

Not `python -m`: that looks for modules in the current folder first, where a user's onnxruntime.py may lie.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import IO

_PROGRAM = "import sys; sys.path[:] = {path!a}; from {module} import main; main()"
_LAST_BYTES = 4096


def child_command(module: str, *arguments: str) -> list[str]:
    """Calls the module's `main()` in an interpreter that looks for modules where this one does, and nowhere else.

    The arguments are its `sys.argv[1:]`.
    """
    return [sys.executable, "-c", _PROGRAM.format(path=sys.path, module=module), *arguments]


def last_words(noise: bytes | IO[bytes]) -> str:
    """The last line of what a process wrote to stderr, of which the last 4096 bytes are read; empty if it is silent."""
    if not isinstance(noise, bytes):
        size = noise.seek(0, os.SEEK_END)
        noise.seek(max(0, size - _LAST_BYTES))
        noise = noise.read()
    lines = noise[-_LAST_BYTES:].decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else ""


def how_it_ended(code: int) -> str:
    """What follows "the process": `code` is the exit code, or a signal's number below zero."""
    if code >= 0:
        return f"ended with exit code {code}"
    name = _signal_name(-code)
    return "was killed, most likely for lack of memory" if name == "SIGKILL" else f"crashed ({name})"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # most of the real-time signals have a number only
        return f"signal {number}"

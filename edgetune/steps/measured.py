"""bench and parity in a process of their own: what crashes inside a driver ends the measurement and nothing else.

The process answers with lines of JSON on stdout, each behind a record separator (RFC 7464), because libraries print
there as well.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgetune.core.child import child_command, how_it_ended, last_words
from edgetune.core.config import to_dict
from edgetune.core.errors import (
    BundleError,
    DataError,
    EdgetuneError,
    EngineError,
    EngineMismatchError,
    MissingDependencyError,
    ModelError,
    RunError,
    TensorError,
    first_line,
)
from edgetune.core.progress import Progress

BENCH, PARITY = "bench", "parity"

_SEPARATOR = "\x1e"


class ProcessDeathError(EdgetuneError):
    """The process ended without an answer. The message names no image and no class."""

    code = "process"


# Errors of parity whose messages quote no image and no class.
_NAMELESS = {
    error.code
    for error in (EngineError, EngineMismatchError, MissingDependencyError, ModelError, ProcessDeathError, TensorError)
}
_WHY = {
    DataError.code: "the images do not fit the bundle, or there are none",
    BundleError.code: "the bundle, or what it stores of PyTorch, cannot be used",
    RunError.code: "the bundle's run cannot be used",
}


@dataclass(frozen=True)
class Subject:
    """What is measured: `data` has labelled images for parity, `cache` engines (None: the user's cache folder)."""

    bundle: Path
    data: Path | None = None
    cache: Path | None = None


def measure(part: str, subject: Subject, progress: Progress) -> dict[str, Any]:
    """The result of `bench`, or the report of `parity` with its verdict, as plain JSON.

    Raises:
        EdgetuneError: what the step raised, with its code, or how its process ended.
    """
    places = ("" if place is None else str(place) for place in (subject.bundle, subject.data, subject.cache))
    command = child_command("edgetune.steps.measured", part, *places)
    result: dict[str, Any] | None = None
    with tempfile.TemporaryFile() as noise:
        with subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=noise, text=True, errors="replace"
        ) as process:
            for line in process.stdout or ():
                result = _read(line, progress) or result
        if result is None or process.returncode != 0:
            raise _death(part, process.returncode, last_words(noise))
    return result


def _read(line: str, progress: Progress) -> dict[str, Any] | None:
    _, separator, text = line.partition(_SEPARATOR)
    if not separator:
        return None
    message: dict[str, Any] = json.loads(text)
    if "error" in message:
        error = EdgetuneError(message["error"]["message"], hint=message["error"]["hint"])
        error.code = message["error"]["code"]
        raise error
    if "progress" in message:
        progress(*message["progress"])
        return None
    result: dict[str, Any] = message["result"]
    return result


def _death(part: str, code: int, words: str) -> ProcessDeathError:
    if part == PARITY:
        # Python's own last words quote what it was at, which may be an image or a class.
        words = " ".join(re.findall(r"^\w+(?:Error|Exception|Interrupt)\b", words))
    said = f" Its last words: {words}" if words else ""
    answer = " and no answer" if code >= 0 else ""
    return ProcessDeathError(f"the process that ran {part} {how_it_ended(code)}{answer}.{said}")


def note(part: str, error: Exception) -> str:
    """What may be told of an error: of parity's, which may quote names of images and classes, the kind alone."""
    if not isinstance(error, EdgetuneError):
        return type(error).__name__ if part == PARITY else f"{type(error).__name__}: {first_line(error)}"
    if part != PARITY or error.code in _NAMELESS:
        return error.message
    return f"{error.code}: {_WHY.get(error.code, 'nothing was judged')}; edgetune parity on the device tells more."


def _tell(message: dict[str, Any]) -> None:
    sys.stdout.write(f"\n{_SEPARATOR}{json.dumps(message)}\n")
    sys.stdout.flush()


def _tell_progress(stage: str, done: int, total: int) -> None:
    _tell({"progress": [stage, done, total]})


def _work(part: str, subject: Subject) -> dict[str, Any]:
    from edgetune.runners.choice import RunnerOptions
    from edgetune.steps.bench import bench
    from edgetune.steps.parity import ParityOptions, parity

    options = RunnerOptions(cache=subject.cache)
    if part == BENCH:
        return to_dict(bench(subject.bundle, options, progress=_tell_progress))
    report = parity(subject.bundle, subject.data, ParityOptions(runner=options), progress=_tell_progress)
    return {**to_dict(report), "verdict": report.verdict}


def main() -> None:
    """What the process does."""
    part, bundle, *others = sys.argv[1:]
    data, cache = (Path(place) if place else None for place in others)
    try:
        _tell({"result": _work(part, Subject(Path(bundle), data, cache))})
    except EdgetuneError as error:
        _tell({"error": {"code": error.code, "message": error.message, "hint": error.hint}})

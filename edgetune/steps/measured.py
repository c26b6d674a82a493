"""bench and parity in a process of their own: what crashes inside a driver ends the measurement and nothing else.

`python -m edgetune.steps.measured PART BUNDLE [DATA]` answers with lines of JSON on stdout, each behind a record
separator (RFC 7464), because libraries print there as well.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import IO, Any

from edgetune.core.config import to_dict
from edgetune.core.errors import EdgetuneError
from edgetune.core.progress import Progress

BENCH, PARITY = "bench", "parity"

_SEPARATOR = "\x1e"
_STDERR_BYTES = 4096


def measure(part: str, bundle: Path, data: Path | None, progress: Progress) -> dict[str, Any]:
    """The result of `bench`, or the report of `parity` with its verdict, as plain JSON.

    Raises:
        EdgetuneError: what the step raised, or how its process ended.
    """
    command = [sys.executable, "-m", "edgetune.steps.measured", part, str(bundle), *([str(data)] if data else [])]
    result: dict[str, Any] | None = None
    with tempfile.TemporaryFile() as noise:
        with subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=noise, text=True, errors="replace"
        ) as process:
            for line in process.stdout or ():
                result = _read(line, progress) or result
        if result is None or process.returncode != 0:
            raise _death(part, process.returncode, _last_line(noise))
    return result


def _read(line: str, progress: Progress) -> dict[str, Any] | None:
    _, separator, text = line.partition(_SEPARATOR)
    if not separator:
        return None
    message: dict[str, Any] = json.loads(text)
    if "error" in message:
        raise EdgetuneError(message["error"])
    if "progress" in message:
        progress(*message["progress"])
        return None
    result: dict[str, Any] = message["result"]
    return result


def _last_line(noise: IO[bytes]) -> str:
    noise.seek(max(0, noise.seek(0, 2) - _STDERR_BYTES))
    return (noise.read().decode(errors="replace").strip().splitlines() or ["nothing"])[-1]


def _death(part: str, code: int, last_words: str) -> EdgetuneError:
    how = f"crashed ({signal.Signals(-code).name})" if code < 0 else f"ended with exit code {code} and no answer"
    return EdgetuneError(f"the process that ran {part} {how}. Its last words: {last_words}")


def _tell(message: dict[str, Any]) -> None:
    sys.stdout.write(f"\n{_SEPARATOR}{json.dumps(message)}\n")
    sys.stdout.flush()


def _tell_progress(stage: str, done: int, total: int) -> None:
    _tell({"progress": [stage, done, total]})


def _work(part: str, bundle: Path, data: Path | None) -> dict[str, Any]:
    from edgetune.steps.bench import bench
    from edgetune.steps.parity import ParityOptions, parity

    if part == BENCH:
        return to_dict(bench(bundle, progress=_tell_progress))
    report = parity(bundle, data, ParityOptions(), progress=_tell_progress)
    return {**to_dict(report), "verdict": report.verdict}


if __name__ == "__main__":
    try:
        _tell({"result": _work(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]) if sys.argv[3:] else None)})
    except EdgetuneError as error:
        _tell({"error": error.message})

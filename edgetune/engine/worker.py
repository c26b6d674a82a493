"""The building process, started by `run_build`: one JSON request on stdin, JSON lines on stdout.

A process of its own, because a bad graph can crash the library, because a build can take more memory than there is,
and because nothing else stops a build for certain. It ends itself when its stdin closes: its parent has gone.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any, TextIO

from edgetune.core.config import from_dict, to_dict
from edgetune.core.errors import EdgetuneError, EngineError
from edgetune.core.files import sha256_of_bytes, write_bytes_atomic
from edgetune.core.machine import peak_memory_bytes
from edgetune.engine.backend import EngineBuilder
from edgetune.engine.protocol import WorkRequest, WorkResult
from edgetune.runners.trt_library import load_library
from edgetune.runners.trt_log import LogRecorder

_REPORT_EVERY_S = 0.05


class _Answers:
    """JSON lines to the parent; the library's own prints go to stderr instead of between them."""

    def __init__(self) -> None:
        self._stream: TextIO = os.fdopen(os.dup(1), "w", buffering=1)
        os.dup2(2, 1)
        self._last_s = 0.0

    def say(self, event: str, content: Any) -> None:
        self._stream.write(json.dumps({event: content}) + "\n")

    def fraction(self, done: float) -> None:
        """At most a few lines a second: a build has thousands of steps."""
        now = time.monotonic()
        if now - self._last_s >= _REPORT_EVERY_S:
            self._last_s = now
            self.say("fraction", done)


def main() -> None:
    answers = _Answers()
    request = from_dict(WorkRequest, json.loads(sys.stdin.readline()), "the request")
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        answers.say("result", to_dict(_build(request, answers)))
    except EdgetuneError as error:
        answers.say("error", {"code": error.code, "message": error.message, "hint": error.hint})
    except MemoryError:
        answers.say("error", {"code": "engine", "message": "the build ran out of memory.", "hint": ""})
    except OSError as error:
        answers.say("error", {"code": "engine", "message": f"the system refused: {error}.", "hint": ""})


def _end_with_parent() -> None:
    sys.stdin.read()
    os._exit(1)


def _build(request: WorkRequest, answers: _Answers) -> WorkResult:
    log = LogRecorder()
    builder = EngineBuilder(load_library(request.backend), log, request.threads)
    start = time.perf_counter()
    builder.parse(Path(request.onnx_path), _content(request))
    parse_s = time.perf_counter() - start
    builder.configure(request.options, request.profiles)
    cache = Path(request.timing_cache) if request.timing_cache else None
    if cache is not None:
        builder.use_timing_cache(cache.read_bytes() if cache.exists() else b"")
    builder.watch(answers.fraction)
    start = time.perf_counter()
    engine = builder.build()
    build_s = time.perf_counter() - start
    _write(Path(request.engine_path), engine)
    if cache is not None:
        _keep_timings(cache, builder, log)
    layers = builder.layers(engine, request.options, request.profiles)
    return WorkResult(
        builder.inputs(), builder.outputs(), layers, tuple(log.warnings), parse_s, build_s, peak_memory_bytes()
    )


def _write(path: Path, engine: Any) -> None:
    try:
        write_bytes_atomic(path, engine)
    except OSError as error:
        raise EngineError(
            f"the engine was built and cannot be written ({memoryview(engine).nbytes / 1e6:.1f} MB): "
            f"{error.strerror or error}.",
            hint="make room in the engine cache, or name another folder with --engine-cache",
        ) from error


def _keep_timings(cache: Path, builder: EngineBuilder, log: LogRecorder) -> None:
    """A file for the next build, which the engine of this one is not lost for."""
    try:
        write_bytes_atomic(cache, builder.timing_cache())
    except OSError as error:
        log.warnings.append(f"the timing cache {cache} was not written: {error.strerror or error}")


def _content(request: WorkRequest) -> bytes | None:
    """The bytes that were checked before; None where the library must read the file and the weights beside it."""
    if not request.onnx_sha256:
        return None
    content = Path(request.onnx_path).read_bytes()
    if sha256_of_bytes(content) != request.onnx_sha256:
        raise EngineError(f"{request.onnx_path} changed while the build began.", hint="build again")
    return content

"""The building process as its caller sees it: its answers, its deaths, its end. The processes here are stand-ins."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from typing import Any

import pytest

from edgetune.core.engine_record import BuildOptions, EngineLayer, EngineTensor
from edgetune.core.errors import EngineError
from edgetune.engine import build
from edgetune.engine.protocol import InputProfile, WorkRequest, WorkResult

_PROFILE = InputProfile("image", (1, 8, 8, 3), (2, 8, 8, 3), (8, 8, 8, 3))
_REQUEST = WorkRequest(
    "tensorrt", "/m.onnx", "", "/e", BuildOptions(targets=("sm86",)), (_PROFILE,), timing_cache="", threads=2
)
_RESULT: dict[str, Any] = {
    "inputs": [{"name": "image", "dtype": "uint8", "shape": [None, 8, 8, 3]}], "outputs": [],
    "layers": [{"name": "a", "kind": "correlation", "inputs": ["Int8"], "outputs": ["Float"], "nodes": ["a"]}],
    "warnings": ["slow"], "parse_s": 0.5, "build_s": 2.0, "peak_memory_bytes": 7,
}  # fmt: skip
_READ = "import json, os, signal, sys; request = json.loads(sys.stdin.readline()); "


def stand_in(monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    monkeypatch.setattr(build, "child_command", lambda _: [sys.executable, "-c", code])


def _run(monkeypatch: pytest.MonkeyPatch, code: str, timeout_s: float | None = 30.0) -> WorkResult:
    stand_in(monkeypatch, code)
    return build.run_build(_REQUEST, timeout_s=timeout_s)


def test_the_answer_comes_back_as_it_was_given(monkeypatch: pytest.MonkeyPatch) -> None:
    code = f"{_READ}print(json.dumps({{'result': {_RESULT!r}}}), flush=True)"
    assert _run(monkeypatch, code) == WorkResult(
        inputs=(EngineTensor("image", "uint8", (None, 8, 8, 3)),), outputs=(),
        layers=(EngineLayer("a", "correlation", ("Int8",), ("Float",), ("a",)),),
        warnings=("slow",), parse_s=0.5, build_s=2.0, peak_memory_bytes=7,
    )  # fmt: skip


def test_the_process_is_told_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    told = "print(json.dumps({'error': {'code': 'model', 'message': json.dumps(request), 'hint': 'a hint'}}))"
    with pytest.raises(EngineError) as caught:
        _run(monkeypatch, _READ + told)
    request = json.loads(caught.value.message)
    assert request["profiles"] == [
        {"name": "image", "min_shape": [1, 8, 8, 3], "opt_shape": [2, 8, 8, 3], "max_shape": [8, 8, 8, 3]}
    ]
    assert request["options"]["targets"] == ["sm86"]
    assert (caught.value.code, caught.value.hint, caught.value.exit_code) == ("model", "a hint", 1)


def test_the_bar_fills_and_is_full_only_with_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    fractions = "[print(json.dumps({'fraction': done}), flush=True) for done in (0.0, 0.25, 1.0, 1.5)]; "
    stand_in(monkeypatch, f"{_READ}{fractions}print(json.dumps({{'result': {_RESULT!r}}}), flush=True)")
    build.run_build(_REQUEST, timeout_s=30, progress=lambda stage, done, total: seen.append((stage, done, total)))
    assert seen == [("build", done, 1000) for done in (0, 250, 999, 999, 1000)]


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("os.kill(os.getpid(), signal.SIGKILL)", "the building process was killed, most likely for lack of memory."),
        ("os.kill(os.getpid(), signal.SIGSEGV)", "crashed (SIGSEGV) inside the backend's library."),
        ("os.kill(os.getpid(), 40)", "crashed (signal 40) inside the backend's library."),
        ("sys.exit(3)", "ended without an answer (exit code 3)."),
        ("1 / 0", "(exit code 1). Its last words: ZeroDivisionError: division by zero"),
        ("sys.exit('first\\nlast \\udcff')", "Its last words: last "),
        ('sys.stdout.write(\'{"result": {"inp\'); sys.stdout.flush(); os.kill(os.getpid(), 9)', "was killed"),
        ("sys.stderr.write('x' * 10000 + '\\nlast'); sys.exit(1)", "Its last words: last"),
    ],
    ids=["killed", "crashed", "a real-time signal", "exit", "traceback", "bad text", "half an answer", "many words"],
)
def test_a_process_that_dies_is_told_in_one_line(code: str, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(EngineError) as caught:
        _run(monkeypatch, _READ + code)
    assert says in caught.value.message
    assert len(caught.value.message.splitlines()) == 1
    assert caught.value.hint


def test_a_process_that_never_reads_its_request(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(EngineError, match=r"ended without an answer \(exit code 0\)"):
        _run(monkeypatch, "import os; os.close(0)")


def test_a_process_that_does_not_end_is_killed_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    start = time.monotonic()
    with pytest.raises(EngineError, match=r"did not end within 0.3 s and was stopped"):
        _run(monkeypatch, f"{_READ}import time; time.sleep(60)", timeout_s=0.3)
    assert time.monotonic() - start < 5


def test_an_interrupt_ends_the_process_before_it_is_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    started = []

    class Watched(subprocess.Popen[str]):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            started.append(self)

    def interrupt(stage: str, done: int, total: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(subprocess, "Popen", Watched)
    stand_in(monkeypatch, f"{_READ}import time; print('{{\"fraction\": 0.5}}', flush=True); time.sleep(60)")
    with pytest.raises(KeyboardInterrupt):
        build.run_build(_REQUEST, timeout_s=30, progress=interrupt)
    assert [process.returncode for process in started] == [-9]


def test_a_worker_ends_when_its_parent_closes_the_pipe() -> None:
    code = (
        "import threading, time; from edgetune.engine.worker import _end_with_parent\n"
        "threading.Thread(target=_end_with_parent).start(); print('ready', flush=True); time.sleep(60)"
    )
    worker = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )  # fmt: skip
    assert worker.stdin is not None
    assert worker.stdout is not None
    assert worker.stdout.readline() == "ready\n"
    assert worker.poll() is None
    worker.stdin.close()
    assert worker.wait(timeout=5) == 1
    worker.stdout.close()

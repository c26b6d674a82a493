"""bench and parity in processes of their own: how they answer, how they die, and whose modules they take."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from edgetune.core.errors import DataError, EdgetuneError, EngineError, ImageError, ModelError, RunError
from edgetune.core.progress import no_progress
from edgetune.runners.choice import Choice, RunnerOptions
from edgetune.steps import bench as bench_step
from edgetune.steps import measured as step
from edgetune.steps import parity
from edgetune.steps.measured import BENCH, PARITY, ProcessDeathError, Subject, measure, note
from edgetune.verify import session, subjects
from edgetune.verify.reference import StoredReference
from tests.unit.runners.mean_bundle import FP32, mean_bundle


def stand_in(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    python = folder / "python"
    python.write_text(f"#!/bin/sh\n{script}\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))


@pytest.mark.parametrize(
    ("part", "script", "words"),
    [
        (BENCH, "echo noise; echo bad luck >&2; kill -SEGV $$", "ran bench crashed (SIGSEGV). Its last words: bad "
         "luck"),
        (BENCH, "kill -40 $$", "ran bench crashed (signal 40)."),
        (BENCH, "kill -9 $$", "ran bench was killed, most likely for lack of memory."),
        (BENCH, "exit 7", "ran bench ended with exit code 7 and no answer."),
        (BENCH, "echo 'KeyError: x' >&2; exit 1", "ran bench ended with exit code 1 and no answer. Its last words: "
         "KeyError: x"),
        (PARITY, "echo \"KeyError: 'secret'\" >&2; exit 1", "ran parity ended with exit code 1 and no answer. Its last "
         "words: KeyError"),
        (PARITY, "echo 'secret.jpg is broken' >&2; kill -SEGV $$", "ran parity crashed (SIGSEGV)."),
        (BENCH, r"""printf '\036{"result": {"a": 1}}\n'; exit 1""", "ran bench ended with exit code 1 and no answer."),
    ],
    ids=["crash", "real-time", "killed", "silent end", "bug", "bug in parity", "crash in parity", "late failure"],
)  # fmt: skip
def test_a_process_that_dies_is_an_error_with_its_last_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str, script: str, words: str
) -> None:
    stand_in(tmp_path, monkeypatch, script)
    with pytest.raises(ProcessDeathError) as caught:
        measure(part, Subject(tmp_path), no_progress)
    assert caught.value.message == f"the process that {words}"


def test_a_refusal_keeps_its_code_and_hint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    error = json.dumps({"error": {"code": "engine", "message": "no engine here", "hint": "build one"}})
    stand_in(tmp_path, monkeypatch, f"printf '\\036%s\\n' '{error}'")
    with pytest.raises(EdgetuneError) as caught:
        measure(BENCH, Subject(tmp_path), no_progress)
    assert (caught.value.code, caught.value.message, caught.value.hint) == ("engine", "no engine here", "build one")


def test_lines_that_libraries_print_are_no_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(tmp_path, monkeypatch, r"""printf '[TRT] loading {\n[W] half \036{"result": {"a": 1}}\nbye\n'""")
    assert measure(BENCH, Subject(tmp_path), no_progress) == {"a": 1}


def test_the_process_is_told_the_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(tmp_path, monkeypatch, r"""printf '\036{"result": {"words": "%s"}}\n' "$3|$4|$5|$6" """)
    assert measure(PARITY, Subject(Path("a b"), cache=Path("c")), no_progress) == {"words": "parity|a b||c"}
    assert measure(PARITY, Subject(Path("b"), Path("d")), no_progress) == {"words": "parity|b|d|"}


def test_engines_are_looked_for_in_the_cache_that_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    caches = []

    def choose_all(bundle: object, kinds: object, options: RunnerOptions) -> dict[str, Choice]:
        caches.append(options.cache)
        raise ModelError("stop")

    monkeypatch.setattr(bench_step, "choose_all", choose_all)
    monkeypatch.setattr(subjects, "choose_all", choose_all)
    bundle = mean_bundle(tmp_path / "b", {FP32: "PASS"})
    monkeypatch.setattr(session, "load_stored_reference", lambda _: StoredReference("stored", {}))
    monkeypatch.setattr(parity, "files_to_judge", lambda *_: ((), ()))
    monkeypatch.setattr(parity, "check_pixels", lambda *_: None)
    for part in (BENCH, PARITY):
        with pytest.raises(ModelError, match="stop"):
            step._work(part, Subject(bundle.path, cache=tmp_path / "engines"))
    assert caches == [tmp_path / "engines"] * 2


@pytest.mark.parametrize(
    ("part", "error", "told"),
    [
        (BENCH, DataError("secret.jpg"), "secret.jpg"),
        (BENCH, ValueError("secret\nmore"), "ValueError: secret"),
        (PARITY, EngineError("cannot deserialize"), "cannot deserialize"),
        (PARITY, ProcessDeathError("it crashed"), "it crashed"),
        (PARITY, ValueError("secret"), "ValueError"),
        (PARITY, DataError("secret"), "data: the images do not fit the bundle, or there are none; edgetune parity on "
         "the device tells more."),
        (PARITY, RunError("secret"), "run: the bundle's run cannot be used; edgetune parity on the device tells more."),
        (PARITY, ImageError("secret"), "image: nothing was judged; edgetune parity on the device tells more."),
        (PARITY, EdgetuneError("secret"), "error: nothing was judged; edgetune parity on the device tells more."),
    ],
)  # fmt: skip
def test_what_is_told_of_an_error(part: str, error: Exception, told: str) -> None:
    assert note(part, error) == told


@pytest.mark.parametrize("words", [["bench", "{bundle}"], ["doctor", "--evidence", "e.json", "--bundle", "{bundle}"]])
def test_modules_in_the_current_folder_are_not_taken_for_libraries(tmp_path: Path, words: list[str]) -> None:
    bundle = mean_bundle(tmp_path / "b", {FP32: "PASS"})
    for name in ("onnxruntime", "numpy", "json", "PIL", "secrets", "tensorrt", "onnxruntime_ep_nv_tensorrt_rtx"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('a script of the user ran')")
    code = f"import sys; sys.path[:] = {[*filter(None, sys.path)]}; from edgetune.cli.main import main; main()"
    command = [sys.executable, "-c", code, *(word.format(bundle=bundle.path) for word in words)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert f"ship: {FP32}" in done.stdout or json.loads((tmp_path / "e.json").read_text())["bench"]["rows"]
    assert "a script of the user ran" not in done.stdout + done.stderr

"""Builds that are stopped, killed, or have no room: one line, nothing that loads is left, and the next build works."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.building import TARGET, StoppedBuild, build, build_data, check_refused, folders, good_file, needs_rtx

pytestmark = [pytest.mark.e2e, needs_rtx]


@pytest.fixture
def words(tmp_path: Path) -> tuple[str | Path, ...]:
    return (good_file(tmp_path), *TARGET, "--engine-cache", tmp_path / "cache")


@pytest.mark.parametrize(
    ("number", "says"),
    [
        (signal.SIGKILL, "the building process was killed, most likely for lack of memory."),
        (signal.SIGSEGV, "the building process crashed (SIGSEGV) inside the backend's library."),
    ],
    ids=["killed", "crashed"],
)
def test_the_building_process_dies(
    number: signal.Signals, says: str, words: tuple[str | Path, ...], tmp_path: Path
) -> None:
    stopped = StoppedBuild(*words)
    stopped.signal_worker(number)
    check_refused(stopped.end(), says)
    assert folders(tmp_path / "cache") == []
    assert not build_data(*words)["reused"]


def test_ctrl_c_ends_both_processes(words: tuple[str | Path, ...], tmp_path: Path) -> None:
    stopped = StoppedBuild(*words)
    stopped.parent.send_signal(signal.SIGINT)
    check_refused(stopped.end(), "stopped; nothing was left half written.", 130)
    assert stopped.worker_is_gone(within_s=3)
    assert folders(tmp_path / "cache") == []
    assert not build_data(*words)["reused"]


def test_the_building_process_ends_with_its_parent(words: tuple[str | Path, ...], tmp_path: Path) -> None:
    stopped = StoppedBuild(*words)
    stopped.parent.kill()
    assert stopped.end().returncode == -signal.SIGKILL
    assert not stopped.worker_is_gone(within_s=0.1)  # it cannot run
    os.kill(stopped.worker, signal.SIGCONT)
    assert stopped.worker_is_gone(within_s=3)
    assert all(name.startswith(".") for name in folders(tmp_path / "cache"))
    data = build_data(*words)
    assert not data["reused"]
    assert folders(tmp_path / "cache") == [Path(data["folder"]).name]


def test_a_build_that_takes_too_long_is_stopped(words: tuple[str | Path, ...], tmp_path: Path) -> None:
    start = time.monotonic()
    stopped = StoppedBuild(*words, "--timeout", "1.5")
    check_refused(stopped.end(), "the build did not end within 1.5 s and was stopped.")
    assert 1.5 < time.monotonic() - start < 20
    assert stopped.worker_is_gone(within_s=3)
    assert folders(tmp_path / "cache") == []


def test_no_build_waits_for_one_that_was_killed(words: tuple[str | Path, ...]) -> None:
    """The lock is the system's: it goes with the process that held it, while its file stays."""
    stopped = StoppedBuild(*words)
    waiting = subprocess.Popen(
        [sys.executable, "-m", "edgetune.cli.main", "build", *map(str, words)], stdout=subprocess.PIPE, text=True
    )
    with pytest.raises(subprocess.TimeoutExpired):
        waiting.wait(timeout=2)
    stopped.signal_worker(signal.SIGKILL)
    stopped.end()
    out, _ = waiting.communicate(timeout=60)
    assert waiting.returncode == 0
    assert ", built in " in out


def _limit_files_to_100_kb() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))


def test_a_full_disk(words: tuple[str | Path, ...], tmp_path: Path) -> None:
    """The limit is passed on to the building process."""
    done = subprocess.run(
        [sys.executable, "-m", "edgetune.cli.main", "build", *map(str, words)], capture_output=True, text=True,
        timeout=120, check=False, preexec_fn=_limit_files_to_100_kb,
    )  # fmt: skip
    check_refused(done, "the engine was built and cannot be written (0.6 MB): File too large.")
    assert folders(tmp_path / "cache") == []


def test_a_cache_that_cannot_be_written(tmp_path: Path) -> None:
    path = good_file(tmp_path)
    refused = build(path, *TARGET, env={"EDGETUNE_CACHE": "/proc/cache"})  # not even root may
    check_refused(refused, "the engine cache /proc/cache/engines cannot be written: No such file or directory.")
    (tmp_path / "file").touch()
    refused = build(path, *TARGET, env={"EDGETUNE_CACHE": str(tmp_path / "file")})
    check_refused(refused, "file/engines cannot be written: Not a directory.")
    check_refused(build(path, *TARGET, "--engine-cache", tmp_path / "file"), "is a file.", 2)

"""Real `edgetune build` processes for tests: what they answer, how they refuse, and the process that does the work."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx
import pytest

from edgetune.core.engine_record import TENSORRT_RTX
from edgetune.runners.trt_library import installed_backends
from tests.unit.quantize.qdq_graphs import good

needs_rtx = pytest.mark.skipif(
    TENSORRT_RTX not in installed_backends(),
    reason="TensorRT for RTX is not installed; pip install 'edgetune[tensorrt-rtx]'",
)
# A GPU that may be here must not change what is built.
TARGET = ("--backend", "tensorrt-rtx", "--targets", "sm86")
_WORKER = b"edgetune.engine.worker"


def command(*words: str | Path) -> list[str]:
    return [sys.executable, "-m", "edgetune.cli.main", "build", *map(str, words)]


def build(*words: str | Path, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **(env or {})}
    return subprocess.run(
        command(*words), capture_output=True, text=True, timeout=300, check=False, env=environment
    )  # fmt: skip


def build_data(*words: str | Path, exit_code: int = 0) -> dict[str, Any]:
    """The data of the JSON envelope."""
    done = build(*words, "--json")
    assert done.returncode == exit_code, done.stdout + done.stderr
    envelope: dict[str, Any] = json.loads(done.stdout)
    assert envelope["command"] == "build"
    assert (envelope["exit_code"], envelope["ok"]) == (exit_code, exit_code == 0)
    data: dict[str, Any] = envelope["data"]
    return {**data, "messages": envelope["messages"], "errors": envelope["errors"]}


def check_refused(done: subprocess.CompletedProcess[str], words: str, exit_code: int = 1) -> None:
    """One line of error with these words, at most one hint, and nothing else."""
    assert done.returncode == exit_code, done.stdout + done.stderr
    lines = done.stderr.strip().splitlines()
    assert lines[0].startswith("error: ")
    assert words in lines[0]
    assert len(lines) == 1 or (len(lines) == 2 and lines[1].startswith("  hint: ")), done.stderr
    assert done.stdout == ""


def folders(cache: Path) -> list[str]:
    """What a build left in the cache beside its lock: engines, and what is half written."""
    return sorted(entry.name for entry in cache.iterdir() if entry.suffix != ".lock") if cache.is_dir() else []


def saved(model: onnx.ModelProto, path: Path) -> Path:
    onnx.save(model, path)
    return path


def good_file(folder: Path) -> Path:
    """A small Q/DQ graph with two INT8 convolutions."""
    return saved(good("tensorrt"), folder / "good.onnx")


class StoppedBuild:
    """A build whose working process was stopped as soon as it was there, so that tests can take their time."""

    def __init__(self, *words: str | Path) -> None:
        self.parent = subprocess.Popen(
            command(*words), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )  # fmt: skip
        self.worker = _wait_for_worker(self.parent)
        os.kill(self.worker, signal.SIGSTOP)

    def signal_worker(self, number: int) -> None:
        """Sends a signal, and lets the process go on to take it."""
        os.kill(self.worker, number)
        os.kill(self.worker, signal.SIGCONT)

    def end(self) -> subprocess.CompletedProcess[str]:
        out, err = self.parent.communicate(timeout=60)
        return subprocess.CompletedProcess(self.parent.args, self.parent.returncode, out, err)

    def worker_is_gone(self, within_s: float) -> bool:
        deadline = time.monotonic() + within_s
        while time.monotonic() < deadline:
            if _is_over(self.worker):
                return True
            time.sleep(0.02)
        return False


def _wait_for_worker(parent: subprocess.Popen[str]) -> int:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        assert parent.poll() is None, parent.communicate()
        for folder in Path("/proc").glob("[0-9]*"):
            if _parent_of(folder) == parent.pid and _WORKER in _words_of(folder):
                return int(folder.name)
        time.sleep(0.002)
    raise AssertionError("the building process did not start")


def _parent_of(folder: Path) -> int:
    try:
        return int((folder / "stat").read_text().rpartition(")")[2].split()[1])
    except (OSError, ValueError, IndexError):
        return -1


def _words_of(folder: Path) -> bytes:
    try:
        return (folder / "cmdline").read_bytes()
    except OSError:
        return b""


def _is_over(pid: int) -> bool:
    """Gone, or a zombie that nobody has fetched: its new parent may be a container's first process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True

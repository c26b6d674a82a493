"""Servers as processes: started and stopped with all their children, stopped in between, their memory and CPU read."""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
_START_LIMIT_S = 120.0
_READY = re.compile(r"ready: (\S+) on http://[^\s]*:(\d+)")


@dataclass(frozen=True)
class Server:
    """`pid` leads a process group of its own; `model` is edgetune's name of the model, empty for others."""

    name: str
    process: subprocess.Popen[bytes]
    port: int
    model: str = ""

    @property
    def pid(self) -> int:
        return self.process.pid

    def pause(self) -> None:
        """Its whole group stands still, so that it cannot disturb the others."""
        os.killpg(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        os.killpg(self.pid, signal.SIGCONT)

    def rss_bytes(self) -> int:
        """Of all its processes; pages that they share are counted in each."""
        return sum(rss_bytes(pid) for pid in process_tree(self.pid))


@dataclass(frozen=True)
class Command:
    """`probe` is a path that answers 200 when the server is ready."""

    words: Sequence[str]
    port: int
    probe: str
    environment: Mapping[str, str]
    cwd: Path | None = None


def edgetune_command(bundle: Path, *options: str, port: int = 0) -> list[str]:
    return [sys.executable, "-m", "edgetune.cli.main", "serve", str(bundle), "--port", str(port), *options]


@contextmanager
def edgetune_server(bundle: Path, log: Path, *options: str, port: int = 0) -> Iterator[Server]:
    process = spawn(edgetune_command(bundle, *options, port=port), log)
    try:
        model, port = wait_until_ready(process, log)
        yield Server("edgetune", process, port, model)
    finally:
        end(process)


@contextmanager
def other_server(name: str, command: Command, log: Path) -> Iterator[Server]:
    process = spawn(command.words, log, {**os.environ, **command.environment}, command.cwd)
    try:
        _wait_for_answer(process, command.port, command.probe, log)
        yield Server(name, process, command.port)
    finally:
        end(process)


def spawn(
    words: Sequence[str], log: Path, environment: Mapping[str, str] | None = None, cwd: Path | None = None
) -> subprocess.Popen[bytes]:
    """Writes stdout and stderr to `log`, anew; leads a process group."""
    with log.open("wb") as stream:
        return subprocess.Popen(
            words, stdout=stream, stderr=stream, stdin=subprocess.DEVNULL, env=environment, cwd=cwd or REPOSITORY,
            start_new_session=True,
        )  # fmt: skip


def wait_until_ready(process: subprocess.Popen[bytes], log: Path) -> tuple[str, int]:
    """The model's name and the port, from the line with which edgetune says that it listens."""
    end_s = time.monotonic() + _START_LIMIT_S
    while time.monotonic() < end_s:
        found = _READY.search(log.read_text(errors="replace"))
        if found:
            return found[1], int(found[2])
        if process.poll() is not None:
            break
        time.sleep(0.002)
    raise RuntimeError(f"the server did not start: {log.read_text(errors='replace')[-2000:]}")


def _wait_for_answer(process: subprocess.Popen[bytes], port: int, path: str, log: Path) -> None:
    end_s = time.monotonic() + _START_LIMIT_S
    while time.monotonic() < end_s and process.poll() is None:
        with contextlib.suppress(OSError, http.client.HTTPException):
            if ask(port, "GET", path)[0] == 200:
                return
        time.sleep(0.1)
    raise RuntimeError(f"the server did not start: {log.read_text(errors='replace')[-2000:]}")


def ask(
    port: int, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
) -> tuple[int, bytes, dict[str, str]]:
    """One request on a connection of its own: status, body and headers (names in lower case)."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request(method, path, body, dict(headers or {}))
        answer = connection.getresponse()
        return answer.status, answer.read(), {name.lower(): value for name, value in answer.getheaders()}
    finally:
        connection.close()


def end(process: subprocess.Popen[bytes]) -> None:
    """SIGTERM, and SIGKILL for whatever of the group is left after 15 s."""
    for number in (signal.SIGCONT, signal.SIGTERM):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=15)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def process_tree(root: int) -> list[int]:
    """The process and all below it."""
    parents: dict[int, int] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
    tree = [root]
    for pid in tree:
        tree += [child for child, parent in parents.items() if parent == pid]
    return tree


def rss_bytes(pid: int) -> int:
    """0 for a process that has gone."""
    with contextlib.suppress(OSError):
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return 0


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class RssWatch:
    """Samples a server's memory each second from a thread, as (unix seconds, bytes)."""

    def __init__(self, pid: int, period_s: float = 1.0) -> None:
        self.samples: list[tuple[float, int]] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, args=(pid, period_s), daemon=True)

    def _watch(self, pid: int, period_s: float) -> None:
        while True:
            self.samples.append((time.time(), sum(rss_bytes(process) for process in process_tree(pid))))
            if self._over.wait(period_s):
                return

    def __enter__(self) -> RssWatch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    @property
    def peak_bytes(self) -> int:
        return max(memory for _, memory in self.samples)

"""A real server process for tests, on a free port."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def running_server(bundle: Path, *options: str, python: str = sys.executable) -> Iterator[str]:
    """Yields the address; on leaving, SIGTERM must end the process with exit code 0."""
    command = [python, "-m", "edgetune.cli.main", "serve", str(bundle), "--port", "0", *options]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=bundle.parent)
    assert server.stderr is not None
    deadline = threading.Timer(60, server.kill)
    deadline.start()
    try:
        said = ""
        for line in server.stderr:
            said += line
            if line.startswith("ready:"):
                break
        deadline.cancel()
        assert "ready:" in said, said
        yield said.split()[-1]
        server.send_signal(signal.SIGTERM)
        assert server.wait(timeout=20) == 0
    finally:
        deadline.cancel()
        server.kill()
        server.wait(timeout=20)
        server.stderr.close()

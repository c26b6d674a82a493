"""Real `edgetune parity` processes that must refuse what they are given."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

NORMALISATION = ("--mean", "0.5", "0.5", "0.5", "--std", "0.5", "0.5", "0.5")


def command(*words: str | Path) -> list[str]:
    return [sys.executable, "-m", "edgetune.cli.main", "parity", *map(str, words)]


def edgetune(*words: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*words), capture_output=True, text=True, timeout=300, check=False)


def check_refused(done: subprocess.CompletedProcess[str], words: str, exit_code: int = 1) -> None:
    """One line of error with these words, at most one hint, nothing else on stderr, and nothing on stdout."""
    assert done.returncode == exit_code, done.stdout + done.stderr
    lines = [line for line in done.stderr.strip().splitlines() if not line.startswith("skipped ")]
    assert lines[0].startswith("error: ")
    assert words in lines[0]
    assert len(lines) == 1 or (len(lines) == 2 and lines[1].startswith("  hint: ")), done.stderr
    assert done.stdout == ""


def tree(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))

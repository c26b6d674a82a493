from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from edgetune.core.child import child_command, how_it_ended, last_words

_MODULE = """
import json, sys
import sibling

def main():
    print(json.dumps([sys.argv[1:], sys.path, sibling.WHO]))
"""


def run(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=30, check=False)


def test_a_module_runs_where_its_parent_looks_and_not_in_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = tmp_path / "ours \u00fc 'quoted' {braces}"
    theirs = tmp_path / "theirs"
    for folder, who in ((ours, "ours"), (theirs, "theirs")):
        folder.mkdir()
        (folder / "sibling.py").write_text(f"WHO = {who!r}")
    (ours / "started.py").write_text(_MODULE)
    (theirs / "json.py").write_text("raise SystemExit('a script of the user ran')")
    undecodable = os.fsdecode(os.fsencode(tmp_path) + b"/\xff")
    monkeypatch.setattr(sys, "path", [str(ours), *filter(None, sys.path), undecodable])
    words = ["a b", "--c='d'", "", "\u00fc", undecodable]
    done = run(child_command("started", *words), theirs)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [words, sys.path, "ours"]


def test_a_module_in_the_current_folder_is_the_danger(tmp_path: Path) -> None:
    """What the command is for: `-m` runs the user's file."""
    (tmp_path / "json.py").write_text("raise SystemExit('a script of the user ran')")
    done = run([sys.executable, "-m", "json.tool", "--help"], tmp_path)
    assert "a script of the user ran" in done.stderr


@pytest.mark.parametrize(
    ("code", "says"),
    [
        (0, "ended with exit code 0"),
        (3, "ended with exit code 3"),
        (139, "ended with exit code 139"),
        (-6, "crashed (SIGABRT)"),
        (-11, "crashed (SIGSEGV)"),
        (-9, "was killed, most likely for lack of memory"),
        (-40, "crashed (signal 40)"),
    ],
)
def test_how_a_process_ended(code: int, says: str) -> None:
    assert how_it_ended(code) == says


@pytest.mark.parametrize(
    ("noise", "words"),
    [
        (b"", ""),
        (b"\n \n", ""),
        (b"first\nlast \xff \n\n", "last \ufffd"),
        (b"x" * 10_000 + b"\nlast", "last"),
        (b"first\n" + b"x" * 5000, "x" * 4096),
        (b"one\x1ctwo", "two"),
    ],
    ids=["silent", "blank", "no text", "many words", "a long line", "a separator"],
)
def test_last_words_are_one_bounded_line(noise: bytes, words: str) -> None:
    assert last_words(noise) == words
    with tempfile.TemporaryFile() as file:
        file.write(noise)
        assert last_words(file) == words

"""What programs rely on: the JSON envelope, exit codes, one line an error."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ENVELOPE = ["command", "ok", "exit_code", "data", "messages", "errors"]


def run(*words: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "edgetune.cli.main", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=cwd, check=False)


def envelope(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(done.stdout)
    assert list(content) == ENVELOPE
    assert content["exit_code"] == done.returncode
    assert content["ok"] == (done.returncode == 0)
    return content


@pytest.mark.parametrize(
    ("words", "exit_code", "code", "text"),
    [
        (["fit", "nowhere", "--out", "run"], 1, "data", "nowhere is not a folder"),
        (["fit", "nowhere"], 2, "usage", "Missing option '--out'"),
        (["fit", ".", "--out", "run", "--bogus"], 2, "usage", "No such option"),
        (["export", "nowhere", "--out", "b"], 1, "run", "nowhere is not a run"),
        (["export", "nowhere", "--out", "b", "--target", "moon"], 2, "usage", "moon"),
        (["parity", "nowhere"], 1, "bundle", "nowhere is not a bundle"),
        (["bench", "nowhere"], 1, "bundle", "nowhere is not a bundle"),
        (["predict", "nowhere", "x.jpg"], 1, "bundle", "nowhere is not a bundle"),
        (["info", "nowhere"], 1, "data", "nowhere does not exist"),
        (["sample-data", "letters", "x"], 2, "usage", "letters"),
        (["explode"], 2, "usage", "explode"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_an_error_is_one_line_and_one_envelope(
    words: list[str], exit_code: int, code: str, text: str, tmp_path: Path
) -> None:
    plain = run(*words, cwd=tmp_path)
    assert plain.returncode == exit_code
    assert plain.stderr.startswith("error: ")
    assert text in plain.stderr.splitlines()[0]
    assert len(plain.stderr.strip().splitlines()) <= 2
    assert "Traceback" not in plain.stderr
    content = envelope(run(*words, "--json", cwd=tmp_path))
    assert content["errors"][0]["code"] == code
    assert text in content["errors"][0]["message"]
    assert list(tmp_path.iterdir()) == []


def test_doctor_speaks_json_and_text() -> None:
    names = [finding["name"] for finding in envelope(run("doctor", "--json"))["data"]["findings"]]
    assert {"cpu", "ONNX Runtime", "INT8 dot products", "default weights"} <= set(names)
    assert "ONNX Runtime" in run("doctor").stdout


def test_sample_data_writes_every_digit_and_names_the_next_command(tmp_path: Path) -> None:
    done = run("sample-data", "digits", "digits", cwd=tmp_path)
    assert done.returncode == 0
    assert "next: edgetune fit digits --out runs/digits" in done.stdout
    assert len(list((tmp_path / "digits").glob("*/*/*.png"))) == 1797
    again = run("sample-data", "digits", "digits", cwd=tmp_path)
    assert again.returncode == 1
    assert "exists already" in again.stderr


def test_force_does_not_replace_a_folder_of_the_users(tmp_path: Path) -> None:
    (tmp_path / "mine" / "train" / "cats").mkdir(parents=True)
    (tmp_path / "mine" / "train" / "cats" / "tom.jpg").write_bytes(b"dear")
    done = run("sample-data", "digits", "mine", "--force", cwd=tmp_path)
    assert done.returncode == 1
    assert "not a folder that edgetune wrote" in done.stderr
    assert (tmp_path / "mine" / "train" / "cats" / "tom.jpg").read_bytes() == b"dear"


def test_progress_bars_show_on_a_terminal_and_nowhere_else() -> None:
    code = (
        "from edgetune.cli.render import progress_bars\n"
        "bars = progress_bars()\n"
        "for stage in ('features', 'cross-validation'):\n"
        "    for done in range(1, 4): bars(stage, done, 3)\n"
    )
    piped = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert piped.stdout + piped.stderr == ""
    ours, theirs = pty.openpty()
    subprocess.run([sys.executable, "-c", code], stderr=theirs, timeout=60, check=True)
    os.close(theirs)
    shown = os.read(ours, 65536).decode()
    os.close(ours)
    assert shown.count("100%") == 2
    assert "features" in shown
    assert "img/s" in shown

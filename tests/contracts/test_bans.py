"""The machine that keeps the floors really objects: each rule is broken once, in a copy."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("file", "code"),
    [
        ("edgetune/serve/model.py", "import onnxruntime\nsession = onnxruntime.InferenceSession('m.onnx')\n"),
        ("edgetune/steps/fit.py", "import torch\n"),
        ("edgetune/steps/export.py", "import onnx\n"),
        ("edgetune/runners/base.py", "import torch\n"),
        ("edgetune/core/files.py", "import pickle\n"),
    ],
    ids=["a session outside its room", "torch in a step", "onnx in a step", "torch in the contract", "pickle"],
)
def test_ruff_refuses_a_framework_in_the_wrong_room(file: str, code: str) -> None:
    command = [sys.executable, "-m", "ruff", "check", "--select", "TID251", "--stdin-filename", file, "-"]
    done = subprocess.run(command, input=code, capture_output=True, text=True, cwd=REPOSITORY, check=False)
    assert done.returncode == 1
    assert "TID251" in done.stdout


@pytest.mark.parametrize(
    ("file", "code", "contract"),
    [
        ("core/stats.py", "import edgetune.runners.base", "Imports point down the floors BROKEN"),
        ("parity/gates.py", "import edgetune.quantize.qdq", "Imports point down the floors BROKEN"),
        ("serve/model.py", "import edgetune.data.splits", "The server is made of core and runners only BROKEN"),
        ("serve/model.py", "def lazily() -> None:\n    import torch", "never reaches training frameworks BROKEN"),
        ("quantize/qdq.py", "import torch", "Quantizing needs no torch BROKEN"),
    ],
    ids=["up a floor", "a sibling", "data in the server", "lazy torch in the server", "torch in quantize"],
)
def test_the_linter_refuses_an_import_that_points_up(file: str, code: str, contract: str, tmp_path: Path) -> None:
    shutil.copytree(REPOSITORY / "edgetune", tmp_path / "edgetune")
    shutil.copy(REPOSITORY / "pyproject.toml", tmp_path)
    broken = tmp_path / "edgetune" / file
    broken.write_text(f"{broken.read_text()}\n{code}\n")
    program = "import sys; sys.path.insert(0, '.'); from importlinter.cli import lint_imports; sys.exit(lint_imports())"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 1, done.stdout + done.stderr
    assert contract in done.stdout

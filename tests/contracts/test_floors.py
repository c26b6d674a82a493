"""The device side in a fresh interpreter where PyTorch, torchvision, timm and onnx cannot be imported."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

_BLOCK = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"torch", "torchvision", "timm", "onnx", "onnxscript", "safetensors", "sklearn"}:
            raise ImportError(f"{name} is blocked: the device side reached for it")

sys.meta_path.insert(0, Blocker())
"""

_DEVICE_MODULES = """
import importlib, pkgutil, edgetune
for package in ("core", "serve", "bench", "parity", "data", "engine"):
    root = importlib.import_module(f"edgetune.{package}")
    for module in pkgutil.walk_packages(root.__path__, root.__name__ + "."):
        importlib.import_module(module.name)
for name in ("runners.base", "runners.ort_runner", "runners.from_bundle", "runners.trt_runner", "runners.ort_probe",
             "steps.predict", "steps.bench", "steps.parity", "steps.doctor", "steps.evidence", "steps.measured",
             "steps.info", "cli.cmd_predict", "cli.cmd_serve", "cli.cmd_bench", "cli.cmd_parity", "cli.cmd_doctor"):
    importlib.import_module(f"edgetune.{name}")
"""


def _run(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=120, check=False
    )


def test_the_blocker_blocks() -> None:
    done = _run(_BLOCK + "import onnx")
    assert "onnx is blocked" in done.stderr


def test_the_device_side_imports_without_training_frameworks() -> None:
    done = _run(_BLOCK + _DEVICE_MODULES)
    assert done.returncode == 0, done.stderr


def test_help_of_every_command_needs_no_framework() -> None:
    done = _run(_BLOCK + "from edgetune.cli.main import cli, _COMMANDS\n"
                "for name in _COMMANDS: cli.main([name, '--help'], standalone_mode=False)")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Example:") == 11


@pytest.mark.e2e
def test_the_server_starts_and_answers_without_training_frameworks(small_bundle: Path, photos: Path) -> None:
    code = _BLOCK + "from edgetune.cli.main import main\nmain(['serve', sys.argv[1], '--port', '0'])"
    server = subprocess.Popen([sys.executable, "-c", code, str(small_bundle)], stderr=subprocess.PIPE, text=True)
    try:
        assert server.stderr is not None
        lines: list[str] = []
        while not lines or not lines[-1].startswith("ready:"):
            line = server.stderr.readline()
            assert line, "".join(lines)
            lines.append(line)
        address = lines[-1].split()[-1]
        image = next((photos / "7").iterdir()).read_bytes()
        with urllib.request.urlopen(f"{address}/v1/classify", data=image, timeout=20) as response:
            answer = json.loads(response.read())
        assert answer["predictions"][0]["label"] == "7"
    finally:
        server.send_signal(signal.SIGTERM)
        assert server.wait(timeout=20) == 0


def test_init_files_are_silent() -> None:
    root = Path(__file__).resolve().parents[2] / "edgetune"
    assert [str(path) for path in root.rglob("__init__.py") if path.read_text().strip()] == []


def test_importing_edgetune_is_cheap() -> None:
    done = _run("import sys, edgetune.cli.main; print(len([m for m in sys.modules if m.split('.')[0] in "
                "{'numpy', 'torch', 'PIL', 'onnxruntime', 'matplotlib'}]))")  # fmt: skip
    assert done.stdout.strip() == "0", done.stdout + done.stderr

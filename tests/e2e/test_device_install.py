"""A device's environment: edgetune[serve,cpu] alone, on the Pythons that devices run, serves the bundle."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from tests.serving import running_server

pytestmark = pytest.mark.e2e
REPOSITORY = Path(__file__).resolve().parents[2]


def _find_python(version: str) -> str:
    """The interpreter of a version: on the PATH, among pyenv's, or the one that runs this test."""
    if sys.version_info[:2] == tuple(map(int, version.split("."))):
        return sys.executable
    root = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    for candidate in (*sorted(root.glob(f"versions/{version}.*/bin/python")), shutil.which(f"python{version}")):
        if candidate and subprocess.run([candidate, "-V"], capture_output=True, check=False).returncode == 0:
            return str(candidate)
    pytest.skip(f"no Python {version} on this machine")


@pytest.mark.parametrize("version", ["3.10", "3.12"])
def test_a_device_serves_the_bundle_without_torch_or_onnx(
    version: str, small_bundle: Path, photos: Path, tmp_path: Path
) -> None:
    environment = tmp_path / "device"
    subprocess.run([_find_python(version), "-m", "venv", environment], check=True, capture_output=True)
    python = str(environment / "bin" / "python")
    install = [python, "-m", "pip", "install", "-q", "-c", "constraints.txt", ".[serve,cpu]"]
    done = subprocess.run(install, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    listed = subprocess.run([python, "-m", "pip", "list", "--format=json"], capture_output=True, text=True, check=True)
    installed = {entry["name"].lower(): entry["version"] for entry in json.loads(listed.stdout)}
    assert not {"torch", "torchvision", "timm", "onnx", "scipy", "scikit-learn"} & set(installed)
    if version == "3.10":
        assert installed["onnxruntime"].startswith("1.23.")
    image = next((photos / "7").iterdir())
    with running_server(small_bundle, python=python) as address:
        answer = httpx.post(f"{address}/v1/classify", content=image.read_bytes(), timeout=30).json()
        assert answer["predictions"][0]["label"] == "7"
    for artifact in ("model.onnx", "model.int8.cpu-x86.onnx"):
        command = [
            python,
            "-m",
            "edgetune.cli.main",
            "predict",
            str(small_bundle),
            str(image),
            "--artifact",
            artifact,
            "--json",
        ]
        predicted = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
        assert json.loads(predicted.stdout)["data"]["images"][0]["predictions"][0]["label"] == "7"
    report = subprocess.run(
        [python, "-m", "edgetune.cli.main", "parity", small_bundle, "--data", photos, "--json"],
        capture_output=True, text=True, check=False, cwd=tmp_path,
    )  # fmt: skip
    entries = json.loads(report.stdout)["data"]["artifacts"]
    # Without torch the stored reference is used; it knows the validation fifth of these images only.
    assert {entry["verdict"] for entry in entries} == {"NOT-RUN"}
    assert all("have no stored reference logits" in entry["reasons"][-1] for entry in entries)
    assert report.returncode == 3

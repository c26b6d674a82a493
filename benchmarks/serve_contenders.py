"""The servers of the comparison: how each is started, and what it is asked."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np

from benchmarks.serve_peers.work import ARTIFACT, BUNDLE, POOL
from benchmarks.serve_processes import REPOSITORY, Command, Server, edgetune_server, free_port, other_server
from benchmarks.serve_requests import Call, Logits, Pixels, binary_call, classify_call, json_call, plain_call, raw_call
from edgetune.core.machine import usable_cpus

EDGETUNE, CONTROL, CONTROL_CPUS, LITSERVE, MLSERVER = "edgetune", "control", "control-cpus", "litserve", "mlserver"
CONTENDERS = (EDGETUNE, CONTROL, CONTROL_CPUS, LITSERVE, MLSERVER)

_WEB = ("fastapi", "uvicorn", "httptools", "uvloop")
_PACKAGES = {CONTROL: _WEB, CONTROL_CPUS: _WEB, LITSERVE: ("litserve", "pyzmq"), MLSERVER: ("mlserver",)}
_VENVS = {CONTROL: "control", CONTROL_CPUS: "control", LITSERVE: "litserve", MLSERVER: "mlserver"}
_FASTAPI_THREADS = 40


@dataclass(frozen=True)
class Setup:
    """What all of them serve; `options` are further words for `edgetune serve`. Paths are absolute."""

    bundle: Path
    artifact: str
    work: Path
    options: tuple[str, ...] = ()


@dataclass(frozen=True)
class Workload:
    """`kind` is the bare loop that it is compared with: `tensor` or `jpeg`."""

    name: str
    kind: str
    call: Call


def start(name: str, setup: Setup) -> AbstractContextManager[Server]:
    """Raises `RuntimeError` where a peer cannot be installed or does not start; the message is for the user."""
    log = setup.work / f"{name}.log"
    if name == EDGETUNE:
        return edgetune_server(setup.bundle, log, "--artifact", setup.artifact, *setup.options)
    return other_server(name, _COMMANDS[name](setup), log)


def workloads(server: Server, pixels: Pixels, image: bytes) -> list[Workload]:
    if server.name != EDGETUNE:
        tensor_path, jpeg_path = ("/predict", "/predict") if server.name == LITSERVE else ("/tensor", "/jpeg")
        return [
            Workload("tensor", "tensor", plain_call(tensor_path, pixels.tobytes())),
            Workload("jpeg", "jpeg", plain_call(jpeg_path, image)),
        ]
    return [
        Workload("binary", "tensor", binary_call(server.model, pixels)),
        Workload("raw", "tensor", raw_call(server.model, pixels)),
        Workload("json", "tensor", json_call(server.model, pixels)),
        Workload("jpeg", "jpeg", classify_call(image)),
    ]


def check(server: Server, found: list[Workload], expected: Logits) -> None:
    """Raises `RuntimeError` for a server whose logits are not the bare loop's."""
    for workload in found:
        logits = workload.call.logits(server.port).reshape(-1)
        if logits.shape != expected.shape or not np.allclose(logits, expected, rtol=1e-4, atol=1e-4):
            raise RuntimeError(f"{server.name} answers {workload.name} with {logits[:8]}, expected {expected[:8]}")


def _peer_python(name: str, setup: Setup) -> str:
    """The interpreter of the peer's environment, made below `work` where it is missing."""
    folder = setup.work / "venvs" / _VENVS[name]
    python = folder / "bin" / "python"
    if (folder / "installed").exists():
        return str(python)
    same = [f"{package}=={version(package)}" for package in ("numpy", "onnxruntime", "pillow")]
    try:
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True, capture_output=True)
        install = [str(python), "-m", "pip", "install", "--quiet", *same, *_PACKAGES[name]]
        subprocess.run(install, check=True, capture_output=True, timeout=600)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        said = (error.stderr or b"").decode(errors="replace").strip().splitlines()
        raise RuntimeError(f"{name} cannot be installed: {said[-1] if said else error}") from error
    (folder / "installed").touch()
    return str(python)


def _environment(setup: Setup) -> dict[str, str]:
    return {"PYTHONPATH": str(REPOSITORY), BUNDLE: str(setup.bundle), ARTIFACT: setup.artifact}


def _control(setup: Setup, threads: int) -> Command:
    port = free_port()
    words = [
        _peer_python(CONTROL, setup), "-m", "uvicorn", "benchmarks.serve_peers.control:app", "--port", str(port),
        "--loop", "uvloop", "--http", "httptools", "--no-access-log", "--log-level", "warning",
    ]  # fmt: skip
    return Command(words, port, "/ready", {**_environment(setup), POOL: str(threads)})


def _litserve(setup: Setup) -> Command:
    port = free_port()
    words = [_peer_python(LITSERVE, setup), "-m", "benchmarks.serve_peers.litserve_app", str(port)]
    return Command(words, port, "/health", _environment(setup))


def _mlserver(setup: Setup) -> Command:
    python, port = _peer_python(MLSERVER, setup), free_port()
    folder = setup.work / "mlserver"
    folder.mkdir(exist_ok=True)
    settings = {
        "host": "127.0.0.1", "http_port": port, "grpc_port": free_port(), "metrics_port": free_port(),
        "parallel_workers": 0, "debug": False,
    }  # fmt: skip
    model = {"name": "model", "implementation": "benchmarks.serve_peers.mlserver_runtime.Runtime"}
    (folder / "settings.json").write_text(json.dumps(settings))
    (folder / "model-settings.json").write_text(json.dumps(model))
    words = [str(Path(python).parent / "mlserver"), "start", str(folder)]
    return Command(words, port, "/v2/health/ready", _environment(setup))


_COMMANDS: dict[str, Callable[[Setup], Command]] = {
    CONTROL: lambda setup: _control(setup, _FASTAPI_THREADS),
    CONTROL_CPUS: lambda setup: _control(setup, usable_cpus()),
    LITSERVE: _litserve,
    MLSERVER: _mlserver,
}

"""Starts `quantize_peers.py` for one tool after the other, in the interpreter that the tool needs."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks import quantize_peers
from benchmarks.quantize_data import Prepared
from benchmarks.quantize_peers import TOOLS
from edgetune.core.errors import EdgetuneError

# The yardstick of all times is taken anew in every run, and so is everything that this project may have changed.
YARDSTICK = "ort-minmax"


class ToolError(EdgetuneError):
    """A tool is not installed, or ended without a graph."""


@dataclass(frozen=True)
class ToolRun:
    """`seconds` is calibration and quantization, and `cpu_s` its time on all CPUs; `process_s` also has the imports.

    `earlier` says that it ran in an earlier run of the benchmark, when the machine may have been busier or idler.
    """

    model: Path
    seconds: float
    cpu_s: float
    process_s: float
    peak_memory_bytes: int
    earlier: bool


def run_tool(name: str, prepared: Prepared, peers_venv: Path, *, fresh: bool) -> ToolRun:
    """Quantizes with one tool, or takes what it made before for the same model and images.

    Raises:
        ToolError: the tool's environment is missing, or the tool failed; the message has its last words.
    """
    folder = prepared.folder / "tools"
    folder.mkdir(exist_ok=True)
    model, record = folder / f"{name}.onnx", folder / f"{name}.json"
    reusable = not (fresh or name == YARDSTICK or name.startswith("edgetune"))
    if reusable and model.is_file() and record.is_file():
        return ToolRun(model=model, **json.loads(record.read_text()), earlier=True)
    for path in (model, record):
        path.unlink(missing_ok=True)
    interpreter = _interpreter(TOOLS[name].environment, peers_venv)
    command = [interpreter, quantize_peers.__file__, name, str(prepared.folder), str(model), str(record)]
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, check=False)
    process_s = time.perf_counter() - start
    if done.returncode != 0 or not model.is_file():
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise ToolError(f"{name} gave no graph (exit {done.returncode}): {last}")
    measured = {**json.loads(record.read_text()), "process_s": process_s}
    record.write_text(json.dumps(measured))
    return ToolRun(model=model, **measured, earlier=False)


def to_json(run: ToolRun) -> dict[str, object]:
    return {**asdict(run), "model": str(run.model)}


def _interpreter(environment: str, peers_venv: Path) -> str:
    if not environment:
        return sys.executable
    path = (peers_venv / environment / "bin" / "python").absolute()
    if not path.is_file():
        raise ToolError(f"{path} does not exist; see benchmarks/README.md on the peers' environments.")
    return str(path)

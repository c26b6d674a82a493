"""TensorRT-RTX engines of bundles: sizes, times, memory and INT8 layers, beside a bare script that only builds.

The bare script is what a user would write from the library's own example: import, parse, one profile, build, write. It
checks nothing and keeps no record; what `edgetune build` takes longer is the price of its checks and its proof. Both
run as whole commands in alternating rounds, on an empty engine cache; medians. Needs no GPU.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

_TARGETS = "sm86,sm89,sm120"
_FILES = {"fp32": "model.onnx", "fp16": "model.fp16.onnx", "int8": "model.int8.tensorrt.onnx"}

_BARE = """
import os, sys
try:
    import tensorrt_rtx as trt
except ImportError:
    import tensorrt_rtx_bindings as trt
log = trt.Logger(trt.Logger.ERROR)
builder = trt.Builder(log)
builder.max_threads = os.cpu_count()
network = builder.create_network(0)
parser = trt.OnnxParser(network, log)
assert parser.parse_from_file(sys.argv[1])
config = builder.create_builder_config()
targets = sys.argv[3].split(",")
config.num_compute_capabilities = len(targets)
for index, target in enumerate(targets):
    config.set_compute_capability(getattr(trt.ComputeCapability, target.upper()), index)
profile = builder.create_optimization_profile()
image = network.get_input(0)
profile.set_shape(image.name, *[(batch, *tuple(image.shape)[1:]) for batch in (1, 1, 8)])
config.add_optimization_profile(profile)
with open(sys.argv[2], "wb") as file:
    file.write(builder.build_serialized_network(network, config))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundles", type=Path, nargs="+", help="bundles with --int8 --fp16 --target tensorrt")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    print(f"targets {_TARGETS}, batch 1 to 8, best at 1; {arguments.rounds} rounds, medians")
    print(f"{'bundle':<12}{'type':<6}{'ONNX MB':>8}{'engine MB':>10}{'parse s':>9}{'build s':>9}{'peak MB':>9}"
          f"{'int8':>6}{'fp16':>6}{'fp32':>6}{'of':>4}{'edgetune s':>12}{'bare s':>8}{'ratio':>7}")  # fmt: skip
    for bundle in arguments.bundles:
        for precision, name in _FILES.items():
            if (bundle / name).is_file():
                _measure(bundle, precision, bundle / name, arguments.rounds)


def _measure(bundle: Path, precision: str, model: Path, rounds: int) -> None:
    ours_s, bare_s, records = [], [], []
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            records.append(_edgetune(bundle, precision, Path(folder)))
            ours_s.append(time.perf_counter() - start)
            start = time.perf_counter()
            command = [sys.executable, "-c", _BARE, str(model), f"{folder}/bare.engine", _TARGETS]
            subprocess.run(command, check=True, capture_output=True)
            bare_s.append(time.perf_counter() - start)
    ours, bare = statistics.median(ours_s), statistics.median(bare_s)
    record = records[-1]
    seen = record["proof"]["seen"]
    parse_s, build_s = (statistics.median(item[key] for item in records) for key in ("parse_s", "build_s"))
    print(f"{bundle.name:<12}{precision:<6}{model.stat().st_size / 1e6:>8.1f}{record['size_bytes'] / 1e6:>10.1f}"
          f"{parse_s:>9.2f}{build_s:>9.2f}{record['peak_memory_bytes'] / 1e6:>9.0f}"
          f"{seen['int8']:>6}{seen['fp16']:>6}{seen['fp32']:>6}{sum(record['proof']['planned'].values()):>4}"
          f"{ours:>12.2f}{bare:>8.2f}{ours / bare:>7.2f}")  # fmt: skip


def _edgetune(bundle: Path, precision: str, cache: Path) -> dict[str, Any]:
    command = [
        sys.executable, "-m", "edgetune.cli.main", "build", str(bundle), "--backend", "tensorrt-rtx", "--precision",
        precision, "--targets", _TARGETS, "--engine-cache", str(cache), "--allow-failed", "--json",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode not in (0, 3):
        raise SystemExit(done.stdout)
    data: dict[str, Any] = json.loads(done.stdout)["data"]
    return data


if __name__ == "__main__":
    main()

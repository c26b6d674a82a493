"""One quantizer in a process of its own: `quantize_peers.py TOOL WORK_FOLDER OUT.onnx RESULT.json`.

Needs numpy and the tool alone, so that a peer whose requirements clash with ours can run in its own environment.
Every peer gets the placement and the options that gave it its best result on EfficientNet-Lite0.
"""

from __future__ import annotations

import importlib
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

# How ONNX Runtime's quantizer is asked for each target. The classifier at the end is left float: 0.1 to 0.2 dB better
# for ONNX Runtime, at no cost in time.
_CPU_OPS = ["Conv", "Add", "Clip", "Relu"]
# TensorRT wants signed, symmetric, no integer bias, and no Q behind what it fuses: inputs of weighted layers only.
_TENSORRT_OPS = ["Conv", "Add"]
_PLACEMENTS: dict[str, dict[str, Any]] = {
    "cpu-x86": {"activation": "QUInt8", "op_types": _CPU_OPS, "options": {}},
    "cpu-arm": {"activation": "QInt8", "op_types": _CPU_OPS, "options": {}},
    "tensorrt": {
        "activation": "QInt8",
        "op_types": _TENSORRT_OPS,
        "options": {
            "ActivationSymmetric": True,
            "WeightSymmetric": True,
            "QuantizeBias": False,
            "OpTypesToExcludeOutputQuantization": _TENSORRT_OPS,
        },
    },
}


@dataclass(frozen=True)
class Job:
    """Images uint8 `(N, H, W, 3)` from memory for the peers, as files in a folder for edgetune."""

    model: Path
    images: npt.NDArray[np.uint8]
    folder: Path
    out: Path


Work = Callable[[Job], None]


@dataclass(frozen=True)
class Tool:
    """`load` imports what the tool needs; what it returns calibrates and quantizes, and alone is timed.

    `environment` is a folder below --peers-venv, or empty for our own.
    """

    load: Callable[[Job], Work]
    target: str
    environment: str = ""


class _Reader:
    """What ONNX Runtime's quantizer pulls its images from, one at a time."""

    def __init__(self, images: npt.NDArray[np.uint8]) -> None:
        self._images: Iterator[npt.NDArray[np.uint8]] = iter(images)

    def get_next(self) -> dict[str, npt.NDArray[np.uint8]] | None:
        image = next(self._images, None)
        return None if image is None else {"image": image[np.newaxis]}


def _load_ort(method: str, target: str) -> Callable[[Job], Work]:
    placement = _PLACEMENTS[target]

    def load(_: Job) -> Work:
        quantization = importlib.import_module("onnxruntime.quantization")

        def work(job: Job) -> None:
            # `quant_pre_process` before this changes no number: exports of edgetune are folded and have their shapes.
            quantization.quantize_static(
                str(job.model), str(job.out), _Reader(job.images),
                quant_format=quantization.QuantFormat.QDQ,
                op_types_to_quantize=placement["op_types"],
                per_channel=True,
                activation_type=quantization.QuantType[placement["activation"]],
                weight_type=quantization.QuantType.QInt8,
                calibrate_method=quantization.CalibrationMethod[method],
                extra_options=dict(placement["options"]),
            )  # fmt: skip

        return work

    return load


def _load_nncf(**options: Any) -> Callable[[Job], Work]:
    def load(job: Job) -> Work:
        nncf, onnx = importlib.import_module("nncf"), importlib.import_module("onnx")
        importlib.import_module("onnxruntime")
        model = onnx.load(job.model)

        def work(job: Job) -> None:
            dataset = nncf.Dataset([{"image": image[np.newaxis]} for image in job.images])
            onnx.save(nncf.quantize(model, dataset, subset_size=len(job.images), **options), job.out)

        return work

    return load


def _load_modelopt(method: str) -> Callable[[Job], Work]:
    def load(_: Job) -> Work:
        quantization = importlib.import_module("modelopt.onnx.quantization")

        def work(job: Job) -> None:
            # FP32 around the INT8 layers: half floats, its default, are TensorRT's business and would blur the numbers.
            quantization.quantize(
                str(job.model), calibration_data={"image": job.images}, calibration_method=method,
                calibration_eps=["cpu"], high_precision_dtype="fp32", output_path=str(job.out), log_level="ERROR",
            )  # fmt: skip

        return work

    return load


def _load_edgetune(target: str, *flags: str) -> Callable[[Job], Work]:
    """The command line as a user calls it, decoding the image files included; only its imports come before."""

    def load(_: Job) -> Work:
        command = importlib.import_module("edgetune.cli.main")
        for name in ("onnx", "onnxruntime", "PIL.Image", "edgetune.cli.cmd_quantize"):
            importlib.import_module(name)

        def work(job: Job) -> None:
            arguments = [str(job.model), "--calib", str(job.folder), "--out", str(job.out), "--target", target]
            try:
                command.main(["quantize", *arguments, *flags])
            except SystemExit as end:  # commands end their process themselves
                if end.code:
                    raise

        return work

    return load


TOOLS: dict[str, Tool] = {
    # Next to each other, because their times are compared and other work on the machine comes and goes.
    "ort-minmax": Tool(_load_ort("MinMax", "cpu-x86"), "cpu-x86"),
    "edgetune": Tool(_load_edgetune("cpu-x86"), "cpu-x86"),
    "edgetune-no-rounding": Tool(_load_edgetune("cpu-x86", "--no-rounding"), "cpu-x86"),
    "ort-entropy": Tool(_load_ort("Entropy", "cpu-x86"), "cpu-x86"),
    "ort-percentile": Tool(_load_ort("Percentile", "cpu-x86"), "cpu-x86"),
    "nncf": Tool(_load_nncf(), "cpu-x86", "nncf"),
    "nncf-full": Tool(_load_nncf(fast_bias_correction=False), "cpu-x86", "nncf"),
    "ort-arm-minmax": Tool(_load_ort("MinMax", "cpu-arm"), "cpu-arm"),
    "edgetune-arm": Tool(_load_edgetune("cpu-arm"), "cpu-arm"),
    "ort-trt-minmax": Tool(_load_ort("MinMax", "tensorrt"), "tensorrt"),
    "ort-trt-percentile": Tool(_load_ort("Percentile", "tensorrt"), "tensorrt"),
    "modelopt-max": Tool(_load_modelopt("max"), "tensorrt", "modelopt"),
    "modelopt-entropy": Tool(_load_modelopt("entropy"), "tensorrt", "modelopt"),
    "edgetune-trt": Tool(_load_edgetune("tensorrt"), "tensorrt"),
    "edgetune-trt-no-rounding": Tool(_load_edgetune("tensorrt", "--no-rounding"), "tensorrt"),
}


def peak_memory_bytes() -> int:
    """This process's own high-water mark; `ru_maxrss` would start at that of the process which started this one."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise OSError("/proc/self/status has no VmHWM")


def main() -> None:
    name, folder, out, result = sys.argv[1], *map(Path, sys.argv[2:])
    images: npt.NDArray[np.uint8] = np.load(folder / "calibration.npy")
    job = Job(folder / "model.onnx", images, folder / "calibration", out)
    work = TOOLS[name].load(job)
    start, cpu_start = time.perf_counter(), time.process_time()
    work(job)
    seconds, cpu_s = time.perf_counter() - start, time.process_time() - cpu_start
    measured = {"seconds": seconds, "cpu_s": cpu_s, "peak_memory_bytes": peak_memory_bytes()}
    result.write_text(json.dumps(measured))


if __name__ == "__main__":
    main()

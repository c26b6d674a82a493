"""EfficientNet-Lite0 with ImageNet weights: eager PyTorch, ONNX Runtime FP32 and INT8, side by side on this CPU.

The INT8 graph is calibrated on the benchmark's own noise images: that is right for timing and useless for anything
else. Prints milliseconds per image (median over rounds) and the ratio to eager PyTorch.
"""

from __future__ import annotations

import argparse
import contextlib
import tempfile
from pathlib import Path

import numpy as np
import torch

from edgetune.bench.latency import time_runners
from edgetune.core.tensors import LOGITS_OUTPUT
from edgetune.graph.compose import add_head, read_model, write_model
from edgetune.graph.to_onnx import export_features
from edgetune.models.head import Classifier, FeatureExtractor
from edgetune.models.weights import load_backbone
from edgetune.quantize.images import ImageSpool
from edgetune.quantize.quantizer import calibrate, quantize
from edgetune.quantize.rounding import WeightOptions
from edgetune.quantize.targets import find_target
from edgetune.runners.base import Runner
from edgetune.runners.ort_runner import OrtRunner
from edgetune.runners.torch_runner import TorchRunner

BASELINE = "eager PyTorch FP32"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--runs", type=int, default=40)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 16])
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    images = np.random.default_rng(0).integers(0, 256, (max(arguments.batches), 224, 224, 3), dtype=np.uint8)
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        runners = {
            name: stack.enter_context(runner)
            for name, runner in _make_runners(Path(folder), images, arguments.threads).items()
        }
        print(f"{arguments.threads} thread(s)\n{'batch':>5}  {'runner':<22}{'ms/image':>10}{'x PyTorch':>11}")
        for batch in arguments.batches:
            measured = time_runners(runners, images[:batch], arguments.runs)
            base = measured[BASELINE].p50_ms
            for name, latency in measured.items():
                print(f"{batch:>5}  {name:<22}{latency.p50_ms / batch:>10.2f}{base / latency.p50_ms:>11.2f}")


def _make_runners(folder: Path, images: np.ndarray, threads: int) -> dict[str, Runner]:
    backbone = load_backbone("efficientnet_lite0")
    spec = backbone.architecture.preprocess
    extractor = FeatureExtractor(backbone.module, spec).eval()
    weight, bias = np.zeros((10, backbone.feature_dim), np.float32), np.zeros(10, np.float32)
    features = export_features(extractor, spec.crop_size)
    write_model(folder / "features.onnx", features)
    target = find_target("cpu-x86")
    with ImageSpool(iter([images])) as spool:
        calibration = calibrate(features, spool, (target,))
        write_model(
            folder / "features.int8.onnx",
            quantize(calibration, target, spool, options=WeightOptions(rounding=False)).model,
        )
    for name in ("features", "features.int8"):
        write_model(folder / f"{name}.head.onnx", add_head(read_model(folder / f"{name}.onnx"), weight, bias))
    return {
        BASELINE: TorchRunner(Classifier(extractor, weight, bias), spec.crop_size, LOGITS_OUTPUT),
        "ONNX Runtime FP32": OrtRunner(folder / "features.head.onnx", threads=threads),
        "ONNX Runtime INT8": OrtRunner(folder / "features.int8.head.onnx", threads=threads),
    }


if __name__ == "__main__":
    main()

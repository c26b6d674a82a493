"""How long it takes, and how much memory, to find the block that broke: streamed, and with every tensor kept.

The network is ResNet-50 with random weights (53 convolutions and a Gemm) against a copy with one convolution negated.
The other way marks every tensor of both graphs as an output, runs all images, keeps the arrays, and compares them; it
has the cumulative curve only, ours has the injected one and the class of fault as well. Each in a process of its own.

    python benchmarks/localize.py [--images 64] [--size 112]
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgetune.graph.blocks import BlockGraph
from edgetune.graph.severing import tapped
from edgetune.parity.moments import Moments
from edgetune.runners.ort_runner import OrtRunner
from edgetune.verify.localize import LocalizeJob, localize

_STAGES = ((64, 3), (128, 4), (256, 6), (512, 3))
_BATCH = 8
_NEGATED = "s2b3c1"


class _ResNet50:
    def __init__(self, size: int) -> None:
        self._random = np.random.default_rng(0)
        self._size = size
        self._nodes: list[onnx.NodeProto] = []
        self._constants: list[onnx.TensorProto] = []

    def model(self) -> onnx.ModelProto:
        self._node("Cast", ["image"], "pixels", to=TensorProto.FLOAT)
        self._node("Transpose", ["pixels"], "planes", perm=[0, 3, 1, 2])
        self._node("Sub", ["planes", self._constant("mean", np.full((1, 3, 1, 1), 127.5))], "centred")
        self._node("Div", ["centred", self._constant("std", np.full((1, 3, 1, 1), 60.0))], "x")
        data = self._conv("stem", "x", (3, 64), 7, 2, relu=True)
        data = self._node("MaxPool", [data], "pooled", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
        channels = 64
        for stage, (width, blocks) in enumerate(_STAGES):
            for block in range(blocks):
                stride = 2 if stage > 0 and block == 0 else 1
                data = self._bottleneck(f"s{stage}b{block}", data, (channels, width), stride)
                channels = 4 * width
        self._node("ReduceMean", [data, self._constant("axes", np.array([2, 3]), np.int64)], "features", keepdims=0)
        weight = self._random.normal(size=(10, channels)) / np.sqrt(channels)
        inputs = ["features", self._constant("head.w", weight), self._constant("head.b", np.zeros(10))]
        self._node("Gemm", inputs, "logits", transB=1)
        image = helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", self._size, self._size, 3])
        logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 10])
        graph = helper.make_graph(self._nodes, "resnet50", [image], [logits], self._constants)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)

    def _bottleneck(self, name: str, data: str, channels: tuple[int, int], stride: int) -> str:
        read, width = channels
        out = 4 * width
        branch = self._conv(f"{name}c0", data, (read, width), 1, 1, relu=True)
        branch = self._conv(f"{name}c1", branch, (width, width), 3, stride, relu=True)
        branch = self._conv(f"{name}c2", branch, (width, out), 1, 1, relu=False)
        skip = (
            data if read == out and stride == 1 else self._conv(f"{name}skip", data, (read, out), 1, stride, relu=False)
        )
        return self._node("Relu", [self._node("Add", [branch, skip], f"{name}sum")], f"{name}out")

    def _conv(self, name: str, data: str, channels: tuple[int, int], kernel: int, stride: int, *, relu: bool) -> str:
        read, made = channels
        weight = self._random.normal(size=(made, read, kernel, kernel)) * np.sqrt(1.0 / (read * kernel * kernel))
        bias = self._constant(f"{name}.b", self._random.normal(size=made) * 0.1)
        inputs = [data, self._constant(f"{name}.w", weight), bias]
        self._node("Conv", inputs, name, pads=[kernel // 2] * 4, strides=[stride] * 2)
        return self._node("Relu", [name], f"{name}r") if relu else name

    def _constant(self, name: str, value: Any, dtype: Any = np.float32) -> str:
        self._constants.append(numpy_helper.from_array(np.asarray(value, dtype), name))
        return name

    def _node(self, op_type: str, inputs: list[str], output: str, **attributes: Any) -> str:
        self._nodes.append(helper.make_node(op_type, inputs, [output], name=output, **attributes))
        return output


def _negated(model: onnx.ModelProto) -> onnx.ModelProto:
    (entry,) = [each for each in model.graph.initializer if each.name == f"{_NEGATED}.w"]
    entry.CopyFrom(numpy_helper.from_array(-numpy_helper.to_array(entry), entry.name))
    return model


def _pictures(count: int, size: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.random.default_rng(1).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def _streamed(folder: Path, images: np.ndarray[Any, np.dtype[np.uint8]]) -> dict[str, Any]:
    found = localize(LocalizeJob(folder / "candidate.onnx", "fp32", folder / "reference.onnx", images=images))
    levels = {block.tensor: block.cumulative_db for block in found.blocks}
    return {"culprit": f"{found.culprit} ({found.kind})", "levels": levels}


def _kept(folder: Path, images: np.ndarray[Any, np.dtype[np.uint8]]) -> dict[str, Any]:
    """All tensors of all images of both graphs in memory, then the comparison."""
    sides: list[dict[str, list[Any]]] = []
    for name in ("reference.onnx", "candidate.onnx"):
        graph = BlockGraph(onnx.load(folder / name))
        tensors: dict[str, list[Any]] = {}
        with OrtRunner(tapped(graph, graph.tensors()).SerializeToString()) as runner:
            for start in range(0, len(images), _BATCH):
                for tensor, values in runner.infer({"image": images[start : start + _BATCH]}).items():
                    tensors.setdefault(tensor, []).append(values)
        sides.append(tensors)
    levels, culprit = {}, ""
    for tensor, parts in sides[0].items():
        moments = Moments()
        for expected, found in zip(parts, sides[1][tensor], strict=True):
            moments.add(expected, found)
        levels[tensor] = moments.sqnr_db
        culprit = culprit or (tensor if moments.sqnr_db is not None and moments.sqnr_db < 60.0 else "")
    return {"culprit": f"{culprit} (tensor)", "levels": levels}


def _in_process(way: str, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    command = [sys.executable, __file__, "--way", way, "--folder", str(folder)]
    command += ["--images", str(options.images), "--size", str(options.size)]
    answer: dict[str, Any] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return answer


def _child(options: argparse.Namespace) -> None:
    images = _pictures(options.images, options.size)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    found = (_streamed if options.way == "streamed" else _kept)(options.folder, images)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found |= {"wall_s": time.perf_counter() - start, "peak_mb": peak / 1024, "before_mb": before / 1024}
    print(json.dumps(found))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--size", type=int, default=112)
    parser.add_argument("--way", choices=("streamed", "kept"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.way:
        _child(options)
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        model = _ResNet50(options.size).model()
        onnx.save(model, folder / "reference.onnx")
        onnx.save(_negated(model), folder / "candidate.onnx")
        results = {way: _in_process(way, folder, options) for way in ("streamed", "kept")}
    ours, theirs = results["streamed"], results["kept"]
    print(f"ResNet-50, {options.images} images of {options.size} px")
    print("| way | wall s | peak RSS MB | first wrong |\n|---|---|---|---|")
    for way, found in results.items():
        print(f"| {way} | {found['wall_s']:.1f} | {found['peak_mb']:.0f} | {found['culprit']} |")
    print(f"| ratio | {ours['wall_s'] / theirs['wall_s']:.2f} | {ours['peak_mb'] / theirs['peak_mb']:.2f} | |")
    shared = [name for name, level in ours["levels"].items() if level is not None and theirs["levels"].get(name)]
    worst = max(abs(ours["levels"][name] - theirs["levels"][name]) for name in shared)
    print(f"the same figures: {len(shared)} cumulative SQNRs, at most {worst:.2g} dB apart")


if __name__ == "__main__":
    main()

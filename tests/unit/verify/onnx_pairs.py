"""Small ONNX files whose outputs can be worked out by hand, and what comparing two of them gives."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgetune.parity.records import ParityEntry
from edgetune.verify.compare_models import CompareOptions, ModelComparison, compare_models

FLOAT, INT64, UINT8, HALF = TensorProto.FLOAT, TensorProto.INT64, TensorProto.UINT8, TensorProto.FLOAT16
SIZE = 8
NORMALISED = CompareOptions(mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
KEPT = dataclasses.replace(NORMALISED, keep_inputs=True)
SPEC = {"resize_size": 9, "crop_size": 8, "interpolation": "bilinear", "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4]}
_random = np.random.default_rng(0)
X = _random.normal(size=(20, 4)).astype(np.float32)
WEIGHTS = _random.normal(size=(4, 3)).astype(np.float32)
IMAGE_WEIGHTS = (_random.normal(size=(3 * SIZE * SIZE, 2)) / 4).astype(np.float32)


def write(
    path: Path, nodes: Sequence[onnx.NodeProto], inputs: Mapping[str, tuple[int, list[Any]]],
    outputs: Mapping[str, int], constants: Mapping[str, Any], metadata: Mapping[str, Any] | None = None,
) -> Path:  # fmt: skip
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info(name, *each) for name, each in inputs.items()],
        [helper.make_tensor_value_info(name, kind, None) for name, kind in outputs.items()],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    helper.set_model_props(model, {key: json.dumps(value) for key, value in (metadata or {}).items()})
    onnx.save(model, path)
    return path


def linear(
    path: Path, weights: Any = WEIGHTS, *, batch: Any = "n", output: str = "y", name: str = "x", extra: bool = False
) -> Path:  # fmt: skip
    """`y` = x W, and with `extra` also `map` = ReLU of x as `(N, 2, 2)`."""
    nodes = [helper.make_node("MatMul", [name, "w"], [output])]
    constants = {"w": weights}
    outputs = {output: FLOAT}
    if extra:
        nodes += [helper.make_node("Relu", [name], ["r"]), helper.make_node("Reshape", ["r", "shape"], ["map"])]
        constants["shape"] = np.array([-1, 2, 2], np.int64)
        outputs = {"map": FLOAT, **outputs}
    return write(path, nodes, {name: (FLOAT, [batch, 4])}, outputs, constants)


def classifier(path: Path, form: str, weights: Any = IMAGE_WEIGHTS, *, metadata: Any = None, size: Any = SIZE) -> Path:
    """Logits of the normalised image, which comes as `planes`, `last` or `pixels` and is normalised inside."""
    shape = [-1, 3 * SIZE * SIZE]
    constants = {"w": weights, "shape": np.array(shape, np.int64)}
    nodes, kind, dims, name = [], FLOAT, ["n", 3, size, size], "input"
    data = name
    if form != "planes":
        dims = ["n", size, size, 3]
        if form == "pixels":
            kind = UINT8
            constants["mean"] = np.array([0.5, 0.4, 0.3], np.float32) * np.float32(255)
            constants["std"] = np.array([0.2, 0.3, 0.4], np.float32) * np.float32(255)
            nodes += [
                helper.make_node("Cast", [data], ["c"], to=FLOAT),
                helper.make_node("Sub", ["c", "mean"], ["s"]),
                helper.make_node("Div", ["s", "std"], ["d"]),
            ]
            data = "d"
        nodes.append(helper.make_node("Transpose", [data], ["t"], perm=[0, 3, 1, 2]))
        data = "t"
    nodes += [
        helper.make_node("Reshape", [data, "shape"], ["flat"]), helper.make_node("MatMul", ["flat", "w"], ["logits"])
    ]  # fmt: skip
    return write(path, nodes, {name: (kind, dims)}, {"logits": FLOAT}, constants, metadata)


def compare(
    reference: Path, candidate: Path, data: Path, options: CompareOptions = CompareOptions()  # noqa: B008
) -> ModelComparison:  # fmt: skip
    return compare_models(reference, candidate, data, options)


def only(found: ModelComparison) -> ParityEntry:
    (entry,) = found.report.artifacts
    return entry

"""Small Q/DQ graphs that keep every rule of their target, and what it takes to change them."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

# Powers of two, so that a product of scales is exact. `c` is behind the Clip to 0..4, `s` behind the Add.
_SCALES = {"x": 2**-6, "c": 2**-6, "b": 2**-5, "s": 2**-4, "j": 2**-4, "f": 2**-4}
WEIGHTS = {"w1": (4, 3, 1, 1), "w2": (4, 4, 3, 3), "w3": (2, 8)}
WEIGHT_SCALE = 2**-7
_OPERATORS: dict[str, tuple[str, list[str], dict[str, Any]]] = {
    "cast": ("Cast", ["image"], {"to": TensorProto.FLOAT}),
    "transpose": ("Transpose", ["cast"], {"perm": [0, 3, 1, 2]}),
    "x": ("Mul", ["transpose", "unit"], {}),
    "conv1": ("Conv", ["dq_x", "dq_w1", "bias1"], {}),
    "c": ("Clip", ["conv1", "zero", "four"], {}),
    "b": ("Conv", ["dq_c", "dq_w2", "bias2"], {"pads": [1, 1, 1, 1]}),
    "s": ("Add", ["dq_b", "dq_c"], {}),
    "j": ("Concat", ["dq_s", "dq_c"], {"axis": 1}),
    "f": ("ReduceMean", ["dq_j", "axes"], {"keepdims": 0}),
    "logits": ("Gemm", ["dq_f", "dq_w3", "bias3"], {"transB": 1}),
}  # fmt: skip


def good(target: str) -> onnx.ModelProto:
    """image -> Conv -> Clip -> Conv -> Add -> Concat -> mean -> Gemm; every node is named after its output."""
    model = _empty()
    for name, (operator, inputs, attributes) in _OPERATORS.items():
        model.graph.node.append(helper.make_node(operator, inputs, [name], name=name, **attributes))
    constants = {"unit": np.float32(1 / 64), "zero": np.float32(0), "four": np.float32(4), "axes": np.array([2, 3])}
    for name, value in constants.items():
        put(model, name, value)
    for name, scale in _SCALES.items():
        if name != "b" or target != "tensorrt":
            put_pair(model, name, scale, _zero_point(target, name))
    if target == "tensorrt":
        find(model, "s").input[0] = "b"
    for index, (name, data) in enumerate({"w1": "x", "w2": "c", "w3": "f"}.items(), start=1):
        _put_weight(model, name)
        _put_bias(model, f"bias{index}", _SCALES[data] * WEIGHT_SCALE, target)
    sort(model)
    return model


def _empty() -> onnx.ModelProto:
    image = helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", 8, 8, 3])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 2])
    graph = helper.make_graph([], "small", [image], [logits])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def _zero_point(target: str, name: str) -> np.generic:
    """What a target may choose for a range: from 0 behind the Clip, around 0 elsewhere."""
    dtype = np.dtype(np.uint8 if target == "cpu-x86" else np.int8)
    limits = np.iinfo(dtype)
    symmetric = 0 if target == "tensorrt" else (limits.min + limits.max + 1) // 2
    scalar: np.generic = dtype.type(limits.min if name == "c" and target != "tensorrt" else symmetric)
    return scalar


def put(model: onnx.ModelProto, name: str, value: npt.ArrayLike) -> None:
    """Adds an initializer, or replaces the one of this name."""
    kept = [entry for entry in model.graph.initializer if entry.name != name]
    del model.graph.initializer[:]
    model.graph.initializer.extend([*kept, numpy_helper.from_array(np.asarray(value), name)])


def put_pair(model: onnx.ModelProto, tensor: str, scale: float, zero_point: np.generic) -> None:
    """Adds `q_<tensor>` and `dq_<tensor>`."""
    put(model, f"{tensor}_scale", np.float32(scale))
    put(model, f"{tensor}_zero", zero_point)
    for operator, source, name in (("Quantize", tensor, f"q_{tensor}"), ("Dequantize", f"q_{tensor}", f"dq_{tensor}")):
        inputs = [source, f"{tensor}_scale", f"{tensor}_zero"]
        model.graph.node.append(helper.make_node(f"{operator}Linear", inputs, [name], name=name))


def put_constant(model: onnx.ModelProto, name: str, values: npt.NDArray[np.generic], scale: float) -> None:
    """Adds `dq_<name>` over integers with one scale per slice of axis 0."""
    put(model, name, values)
    put(model, f"{name}_scale", np.full(len(values), scale, np.float32))
    put(model, f"{name}_zero", np.zeros(len(values), values.dtype))
    inputs = [name, f"{name}_scale", f"{name}_zero"]
    model.graph.node.append(helper.make_node("DequantizeLinear", inputs, [f"dq_{name}"], name=f"dq_{name}", axis=0))


def _put_weight(model: onnx.ModelProto, name: str) -> None:
    values = np.random.default_rng(0).integers(-127, 128, WEIGHTS[name], dtype=np.int8)
    put_constant(model, name, values, WEIGHT_SCALE)


def _put_bias(model: onnx.ModelProto, name: str, scale: float, target: str) -> None:
    size = WEIGHTS[name.replace("bias", "w")][0]
    if target == "tensorrt":
        put(model, name, np.ones(size, np.float32))
        return
    put_constant(model, name, np.full(size, 100, np.int32), scale)
    for node in model.graph.node:
        node.input[:] = [
            f"dq_{name}" if source == name and node.name != f"dq_{name}" else source for source in node.input
        ]


def sort(model: onnx.ModelProto) -> None:
    """Every node behind the nodes that it reads."""
    waiting, made = list(model.graph.node), {"image", *(entry.name for entry in model.graph.initializer)}
    del model.graph.node[:]
    while waiting:
        node = next(node for node in waiting if made.issuperset(node.input))
        waiting.remove(node)
        made.update(node.output)
        model.graph.node.append(node)


def find(model: onnx.ModelProto, name: str) -> NodeProto:
    (node,) = [node for node in model.graph.node if node.name == name]
    found: NodeProto = node
    return found

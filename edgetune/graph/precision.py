"""The types that an ONNX graph asks for: what an engine built from it is compared with."""

from __future__ import annotations

from collections import Counter

import onnx
from onnx import TensorProto

INT8, FP16, FP32 = "int8", "fp16", "fp32"

# TensorRT's integer kernels work on vectors of 4 channels and more; the dot-product instruction adds 4 products.
_VECTOR = 4


def convolution_precisions(model: onnx.ModelProto) -> dict[str, str]:
    """Each convolution's name and its type: `int8` where its weights are dequantized, else that of its weights."""
    makers = {name: node for node in model.graph.node for name in node.output}
    types = {entry.name: entry.data_type for entry in model.graph.initializer}
    types.update((entry.name, entry.type.tensor_type.elem_type) for entry in model.graph.value_info)
    found = {}
    for name, node in _convolutions(model):
        if _has_dequantized_weights(node, makers):
            found[name] = INT8
        else:
            found[name] = FP16 if types.get(node.input[1]) == TensorProto.FLOAT16 else FP32
    return found


def model_precision(model: onnx.ModelProto) -> str:
    """The narrowest type of its convolutions; of what there is, where it has none."""
    found = set(convolution_precisions(model).values())
    if not found:
        integers = any(node.op_type == "DequantizeLinear" for node in model.graph.node)
        halves = any(entry.data_type == TensorProto.FLOAT16 for entry in model.graph.initializer)
        found = {INT8} if integers else {FP16 if halves else FP32}
    return next(word for word in (INT8, FP16, FP32) if word in found)


def int8_obstacles(model: onnx.ModelProto) -> dict[str, str]:
    """What is likely to keep a convolution with dequantized weights from running in INT8, by its name."""
    makers = {name: node for node in model.graph.node for name in node.output}
    shapes = {entry.name: tuple(entry.dims) for entry in model.graph.initializer}
    found = {}
    for name, node in _convolutions(model):
        reason = _obstacle(node, makers, shapes) if _has_dequantized_weights(node, makers) else ""
        if reason:
            found[name] = reason
    return found


def _has_dequantized_weights(node: onnx.NodeProto, makers: dict[str, onnx.NodeProto]) -> bool:
    maker = makers.get(node.input[1])
    return maker is not None and maker.op_type == "DequantizeLinear"


def _obstacle(
    node: onnx.NodeProto, makers: dict[str, onnx.NodeProto], shapes: dict[str, tuple[int, ...]]
) -> str:  # fmt: skip
    dequantize = makers.get(node.input[0])
    if dequantize is None or dequantize.op_type != "DequantizeLinear":
        return "its input is not quantized"
    scale = shapes.get(dequantize.input[1])
    if scale:
        return f"the scale of its input has the shape {scale}, expected a scalar"
    shape = shapes.get(makers[node.input[1]].input[0], ())
    groups = next((entry.i for entry in node.attribute if entry.name == "group"), 1)
    if len(shape) == 4 and groups > 1 and shape[1] * groups != groups and shape[1] % _VECTOR:
        return f"its groups have {shape[1]} channels, no multiple of {_VECTOR}"
    return ""


def input_shapes(model: onnx.ModelProto) -> list[tuple[str, tuple[int | None, ...]]]:
    """Inputs that are no constants, with None for every size that is left open: named, absent, or -1 as some write."""
    constants = {entry.name for entry in model.graph.initializer}
    return [
        (entry.name, tuple(dim.dim_value if dim.dim_value > 0 else None for dim in entry.type.tensor_type.shape.dim))
        for entry in model.graph.input
        if entry.name not in constants
    ]


def node_name(node: onnx.NodeProto) -> str:
    return str(node.name or node.output[0])


def _convolutions(model: onnx.ModelProto) -> list[tuple[str, onnx.NodeProto]]:
    """ONNX's own convolutions by name; a name that two nodes have is told apart by its output, which is unique."""
    uses = Counter(node_name(node) for node in model.graph.node)
    return [
        (node_name(node) if uses[node_name(node)] == 1 else f"{node_name(node)} ({node.output[0]})", node)
        for node in model.graph.node
        if node.op_type == "Conv" and node.domain in ("", "ai.onnx")
    ]

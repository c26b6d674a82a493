"""What ONNX Runtime needs on a CPU to turn Q/DQ around an operator into an integer kernel."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
from onnx import TensorProto

from edgetune.core.tensors import Array
from edgetune.quantize.lint_view import (
    ACTIVATION_OPS,
    DEQUANTIZE,
    QUANTIZE,
    WEIGHTED_OPS,
    Finding,
    GraphView,
    label,
    represented_range,
)

# All their inputs and their output are integers, or nothing is.
_JOINING_OPS = ("Add", "Concat")
_ROUNDING = 1e-6  # how far a range may lie outside a Clip, as a share of the range: float32 scales are rounded
_BIAS_RTOL = 1e-5


def half_quantized(view: GraphView) -> Iterator[Finding]:
    """A float operator may read a dequantized tensor that only exists as integers, and no other."""
    for node in view.of_type(*WEIGHTED_OPS):
        data, weight = node.input[:2]
        if view.dequantized(data) == view.dequantized(weight):
            continue
        if view.dequantized(weight) or not _made_by_integers(view, data):
            side = "second" if view.dequantized(weight) else "first"
            yield Finding("half-quantized", label(node), f"only the {side} input of this {node.op_type} is quantized.")


def _made_by_integers(view: GraphView, tensor: str) -> bool:
    maker = view.maker(view.branch(tensor).tensor)
    if maker is not None and maker.op_type in ACTIVATION_OPS:
        maker = view.maker(maker.input[0])
    return maker is not None and maker.op_type in (*WEIGHTED_OPS, *_JOINING_OPS) and view.quantized(maker)


def float_bias(view: GraphView) -> Iterator[Finding]:
    """Older ONNX Runtimes leave an operator in float for the sake of a float bias."""
    for node, bias in _quantized_with_bias(view):
        dequantize = view.maker(bias, DEQUANTIZE)
        entry = view.initializers.get(dequantize.input[0]) if dequantize is not None else None
        if entry is None or entry.data_type != TensorProto.INT32:
            yield Finding("float-bias", label(node), f"the bias {bias!r} is no int32 constant with a DequantizeLinear.")


def bias_scale(view: GraphView) -> Iterator[Finding]:
    """The kernel adds the bias to the sum of products as it is, so it must be in the same unit."""
    for node, bias in _quantized_with_bias(view):
        halves = [view.maker(name, DEQUANTIZE) for name in (node.input[0], node.input[1], bias)]
        scales = [view.scale(half) for half in halves if half is not None]
        data, weight, ours = scales if len(scales) == 3 else (None, None, None)
        if data is None or weight is None or ours is None:
            continue
        if not _is_product(ours, data, weight):
            yield Finding("bias-scale", label(node), "the bias's scale is not that of the input times the weight's.")


def _is_product(bias: Array, data: Array, weight: Array) -> bool:
    product = data.reshape(-1)[:1] * weight.reshape(-1)
    return bias.size in (1, product.size) and bool(np.allclose(bias.reshape(-1), product, rtol=_BIAS_RTOL, atol=0))


def _quantized_with_bias(view: GraphView) -> Iterator[tuple[onnx.NodeProto, str]]:
    for node in view.of_type("Conv", "Gemm"):
        if len(node.input) > 2 and node.input[2] and view.quantized(node):
            yield node, node.input[2]


def partly_quantized(view: GraphView) -> Iterator[Finding]:
    for node in view.of_type(*_JOINING_OPS):
        count = sum(view.dequantized(name) for name in node.input)
        if 0 < count < len(node.input):
            message = f"{count} of the {len(node.input)} inputs of this {node.op_type} are quantized."
            yield Finding("partly-quantized", label(node), message)


def float_output(view: GraphView) -> Iterator[Finding]:
    """One QuantizeLinear must be the only reader of the output, behind at most one Relu or Clip."""
    for node in view.of_type("Conv", *_JOINING_OPS):
        if view.quantized(node) and _closing(view, node) is None:
            yield Finding("float-output", label(node), f"this {node.op_type} is quantized, its output is not.")


def activation_not_absorbed(view: GraphView) -> Iterator[Finding]:
    """A Relu or Clip goes away only where the range behind it cannot express what it cuts off."""
    for node in view.of_type("Conv", *_JOINING_OPS):
        quantize = _closing(view, node) if view.quantized(node) else None
        between = view.maker(quantize.input[0], *ACTIVATION_OPS) if quantize is not None else None
        if quantize is None or between is None:
            continue
        scale, zero_point = view.scale(quantize), view.zero_point(quantize)
        if scale is None or zero_point is None:
            continue
        low, high = represented_range(scale, zero_point)
        least, most = _limits(view, between)
        slack = _ROUNDING * (high - low)
        if low < least - slack or high > most + slack:
            message = f"{label(quantize)} expresses {low:g} to {high:g}, beyond {least:g} to {most:g}."
            yield Finding("activation-not-absorbed", label(between), message)


def _closing(view: GraphView, node: onnx.NodeProto) -> onnx.NodeProto | None:
    """The QuantizeLinear that takes an operator's output; None where something else reads it too."""
    reader = _only_reader(view, node)
    if reader is not None and reader.op_type in ACTIVATION_OPS:
        reader = _only_reader(view, reader)
    return reader if reader is not None and reader.op_type == QUANTIZE else None


def _only_reader(view: GraphView, node: onnx.NodeProto) -> onnx.NodeProto | None:
    readers = view.readers(node.output[0])
    return readers[0] if len(readers) == 1 and node.output[0] not in view.outputs else None


def _limits(view: GraphView, node: onnx.NodeProto) -> tuple[float, float]:
    if node.op_type == "Relu":
        return 0.0, np.inf
    given = [view.constant(name) for name in (*node.input[1:3], "", "")[:2]]
    low, high = (None if value is None else float(value.reshape(-1)[0]) for value in given)
    return -np.inf if low is None else low, np.inf if high is None else high


CPU_RULES = (half_quantized, float_bias, bias_scale, partly_quantized, float_output, activation_not_absorbed)

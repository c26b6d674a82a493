"""What every Q/DQ graph must keep, whichever runtime it is for."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
from onnx import TensorProto

from edgetune.core.tensors import Array
from edgetune.graph.compose import OPSET
from edgetune.quantize.lint_view import (
    DEQUANTIZE,
    QUANTIZE,
    WEIGHTED_OPS,
    Finding,
    GraphView,
    attribute,
    has_zero_point,
    label,
    type_name,
)

MIN_OPSET = 19  # from here on Q and DQ keep the type of their scale, and TensorRT reads them as they are written
_DEFAULT_DOMAINS = ("", "ai.onnx")
_OPSET_IMPORT = "opset_import"  # stands for the node where a rule is about the whole model


def opset(view: GraphView) -> Iterator[Finding]:
    for entry in view.model.opset_import:
        if entry.domain in _DEFAULT_DOMAINS and not MIN_OPSET <= entry.version <= OPSET:
            yield Finding("opset", _OPSET_IMPORT, f"opset {entry.version}, expected {MIN_OPSET} to {OPSET}.")


def foreign_domain(view: GraphView) -> Iterator[Finding]:
    """Operators outside ONNX's own domain run on one runtime only; a mere declaration already stops some parsers."""
    strange = [node for node in view.nodes if node.domain not in _DEFAULT_DOMAINS]
    for node in strange:
        yield Finding("foreign-domain", label(node), f"{node.domain}.{node.op_type} is no operator of ONNX itself.")
    reported = {node.domain for node in strange}
    for entry in view.model.opset_import:
        if entry.domain not in (*_DEFAULT_DOMAINS, *reported):
            yield Finding("foreign-domain", _OPSET_IMPORT, f"the domain {entry.domain} is declared and not used.")


def missing_zero_point(view: GraphView) -> Iterator[Finding]:
    """Without one ONNX means uint8 and TensorRT means int8."""
    for node in view.of_type(QUANTIZE, DEQUANTIZE):
        if not has_zero_point(node):
            yield Finding("missing-zero-point", label(node), f"this {node.op_type} has no zero point.")


def missing_axis(view: GraphView) -> Iterator[Finding]:
    """Without one ONNX means axis 1 and TensorRT means axis 0."""
    for node in view.of_type(QUANTIZE, DEQUANTIZE):
        if view.per_axis(node) and attribute(node, "axis") is None:
            yield Finding("missing-axis", label(node), "the scale is per axis, and no axis is given.")


def not_constant(view: GraphView) -> Iterator[Finding]:
    for node in view.of_type(QUANTIZE, DEQUANTIZE):
        for name in filter(None, node.input[1:3]):
            if name not in view.initializers:
                yield Finding("not-constant", label(node), f"{name!r} is no initializer.")


def scale_type(view: GraphView) -> Iterator[Finding]:
    for node in view.of_type(QUANTIZE, DEQUANTIZE):
        entry = view.initializers.get(node.input[1])
        if entry is not None and entry.data_type != TensorProto.FLOAT:
            yield Finding("scale-type", label(node), f"the scale is {type_name(entry.data_type)}, expected float.")


def scale_value(view: GraphView) -> Iterator[Finding]:
    for node in view.of_type(QUANTIZE, DEQUANTIZE):
        scale = view.scale(node)
        if scale is None:
            continue
        wrong = ~(np.isfinite(scale) & (scale > 0))
        if wrong.any():
            value = float(scale[wrong].reshape(-1)[0])
            yield Finding("scale-value", label(node), f"the scale {value:g} is not finite and positive.")


def parameter_shape(view: GraphView) -> Iterator[Finding]:
    """A vector of one is no scalar: TensorRT falls back to float for it, ONNX Runtime may not load the graph."""
    for node in view.of_type(QUANTIZE, DEQUANTIZE):
        scale, zero_point = view.scale(node), view.zero_point(node)
        if scale is None:
            continue
        if zero_point is not None and scale.shape != zero_point.shape:
            message = f"the scale has shape {scale.shape}, the zero point {zero_point.shape}."
        else:
            message = _misfit(view, node, scale)
        if message:
            yield Finding("parameter-shape", label(node), message)


def _misfit(view: GraphView, node: onnx.NodeProto, scale: Array) -> str:
    """Why a scale does not fit the tensor that it scales; empty where it does, or where the shape is not known."""
    entry = view.initializers.get(node.input[0])
    if scale.ndim > 1 or (scale.ndim == 1 and scale.size == 1 and entry is None):
        return f"the scale has shape {scale.shape}, expected a scalar or, for a weight, one value per channel."
    if scale.size == 1 or entry is None:
        return ""
    axis, sizes = attribute(node, "axis"), tuple(entry.dims)
    if axis is None or (-len(sizes) <= axis < len(sizes) and sizes[axis] == scale.size):
        return ""
    return f"{scale.size} scales on axis {axis} of a weight of shape {sizes}."


def per_axis_activation(view: GraphView) -> Iterator[Finding]:
    for node in view.of_type(QUANTIZE, DEQUANTIZE):
        if view.per_axis(node) and not view.on_weight(node):
            yield Finding("per-axis-activation", label(node), "only weights may have a scale per channel.")


def pair_differs(view: GraphView) -> Iterator[Finding]:
    """A DQ must undo its Q; the DQ is the node that is named."""
    for node in view.of_type(DEQUANTIZE):
        quantize = view.maker(node.input[0], QUANTIZE)
        if quantize is None:
            continue
        for what, ours, theirs in (
            ("scale", view.scale(node), view.scale(quantize)),
            ("zero point", view.zero_point(node), view.zero_point(quantize)),
        ):
            if ours is None or theirs is None:
                continue
            if ours.dtype != theirs.dtype or not np.array_equal(ours, theirs):
                message = f"its {what} is not that of {label(quantize)}: {_brief(ours)} and {_brief(theirs)}."
                yield Finding("pair-differs", label(node), message)
                break


def _brief(value: Array) -> str:
    return f"{value.dtype} {value.reshape(-1)[0]}" if value.size == 1 else f"{value.dtype} {value.shape}"


def quantized_output(view: GraphView) -> Iterator[Finding]:
    """The graph's outputs are not rounded, neither left as integers nor dequantized again."""
    for node in view.of_type(QUANTIZE, DEQUANTIZE):
        if node.output[0] in view.outputs:
            yield Finding("quantized-output", label(node), f"the graph's output {node.output[0]!r} is quantized.")


def weight_type(view: GraphView) -> Iterator[Finding]:
    """Weights lie in the file as int8; an int32 constant is a bias, and the targets judge it."""
    for node in view.of_type(QUANTIZE, DEQUANTIZE):
        entry = view.initializers.get(node.input[0])
        if entry is None or not view.on_weight(node):
            continue
        if entry.data_type not in (TensorProto.INT8, TensorProto.INT32):
            yield Finding("weight-type", label(node), f"a weight is {type_name(entry.data_type)}, expected int8.")


def weight_zero_point(view: GraphView) -> Iterator[Finding]:
    for node in view.of_type(QUANTIZE, DEQUANTIZE):
        zero_point = view.zero_point(node)
        if zero_point is not None and np.any(zero_point != 0) and view.on_weight(node):
            yield Finding("weight-zero-point", label(node), "a weight's or bias's zero point is not 0.")


def weight_axis(view: GraphView) -> Iterator[Finding]:
    """The scales must run along the output channels, so that they can be taken out of the sum."""
    for node in view.of_type(*WEIGHTED_OPS):
        dequantize = view.maker(node.input[1], DEQUANTIZE)
        entry = view.initializers.get(dequantize.input[0]) if dequantize is not None else None
        if dequantize is None or entry is None or not view.per_axis(dequantize):
            continue
        axis, rank, expected = attribute(dequantize, "axis"), len(entry.dims), channel_axis(node, len(entry.dims))
        if rank and axis is not None and axis % rank != expected:
            message = f"per channel on axis {axis}; the output channels of {label(node)} lie on axis {expected}."
            yield Finding("weight-axis", label(dequantize), message)


def channel_axis(node: onnx.NodeProto, rank: int) -> int:
    """Which axis of a Conv's, Gemm's or MatMul's second input holds the output channels."""
    if node.op_type == "Conv":
        return 0
    if node.op_type == "Gemm":
        return 0 if attribute(node, "transB") else 1
    return rank - 1


COMMON_RULES = (
    opset, foreign_domain, missing_zero_point, missing_axis, not_constant, scale_type, scale_value, parameter_shape,
    per_axis_activation, pair_differs, quantized_output, weight_type, weight_zero_point, weight_axis,
)  # fmt: skip

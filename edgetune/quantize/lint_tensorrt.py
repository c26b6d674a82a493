"""What TensorRT needs to read a Q/DQ graph at all, and to fuse what belongs together."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
from onnx import TensorProto

from edgetune.quantize.lint_rules import channel_axis
from edgetune.quantize.lint_view import (
    ACTIVATION_OPS,
    DEQUANTIZE,
    QUANTIZE,
    WEIGHTED_OPS,
    Branch,
    Finding,
    GraphView,
    attribute,
    label,
)


def half_quantized(view: GraphView) -> Iterator[Finding]:
    for node in view.of_type(*WEIGHTED_OPS):
        data, weight = node.input[:2]
        if view.dequantized(data) != view.dequantized(weight):
            side = "first" if view.dequantized(data) else "second"
            yield Finding("half-quantized", label(node), f"only the {side} input of this {node.op_type} is quantized.")


def nonzero_zero_point(view: GraphView) -> Iterator[Finding]:
    for node in view.of_type(QUANTIZE, DEQUANTIZE):
        zero_point = view.zero_point(node)
        if zero_point is not None and np.any(zero_point != 0) and not view.on_weight(node):
            yield Finding("nonzero-zero-point", label(node), "a zero point is not 0; TensorRT is symmetric only.")


def uint8_tensor(view: GraphView) -> Iterator[Finding]:
    """uint8 is for the image alone, and only a Cast may read it. Q and DQ of uint8 break the activation-type rule."""
    unsigned = {entry.name for entry in view.model.graph.input if entry.type.tensor_type.elem_type == TensorProto.UINT8}
    unsigned.update(name for name, entry in view.initializers.items() if entry.data_type == TensorProto.UINT8)
    for node in view.nodes:
        if node.op_type in (QUANTIZE, DEQUANTIZE):
            continue
        makes = node.op_type == "Cast" and attribute(node, "to") == TensorProto.UINT8
        if makes or (node.op_type != "Cast" and not unsigned.isdisjoint(node.input)):
            yield Finding("uint8-tensor", label(node), f"this {node.op_type} has a uint8 tensor.")


def int32_bias(view: GraphView) -> Iterator[Finding]:
    for node in view.of_type(DEQUANTIZE):
        entry = view.initializers.get(node.input[0])
        if entry is not None and entry.data_type == TensorProto.INT32:
            yield Finding("int32-bias", label(node), "TensorRT dequantizes no int32; leave the bias in float.")


def per_tensor_weight(view: GraphView) -> Iterator[Finding]:
    for node in view.of_type(*WEIGHTED_OPS):
        dequantize = view.maker(node.input[1], DEQUANTIZE)
        entry = view.initializers.get(dequantize.input[0]) if dequantize is not None else None
        if dequantize is None or entry is None or view.per_axis(dequantize):
            continue
        channels = entry.dims[channel_axis(node, len(entry.dims))]
        if channels > 1 and view.scale(dequantize) is not None:
            yield Finding("per-tensor-weight", label(dequantize), f"one scale for all {channels} output channels.")


def quantized_conv_branch(view: GraphView) -> Iterator[Finding]:
    """Q/DQ between a Conv and the Add keeps TensorRT from fusing the two; one branch must go without."""
    for add, branches in _residual_adds(view):
        convolved = [branch for branch in branches if _is_conv_branch(view, branch, add)]
        first = convolved[0].quantize
        if all(branch.quantize is not None for branch in convolved) and first is not None:
            message = f"Q/DQ between {_source(view, convolved[0])} and the residual {label(add)}."
            yield Finding("quantized-conv-branch", label(first), message)


def float_residual(view: GraphView) -> Iterator[Finding]:
    """With a float skip the fused convolution writes float, and the Q behind the Add stays on its own."""
    for add, branches in _residual_adds(view):
        if all(branch.quantize is None for branch in branches):
            yield Finding("float-residual", label(add), "the skip connection of this Add is not quantized.")


def _residual_adds(view: GraphView) -> Iterator[tuple[onnx.NodeProto, tuple[Branch, Branch]]]:
    """The Adds of two activations of which at least one is what a quantized Conv makes for this Add alone."""
    for add in view.of_type("Add"):
        if any(name in view.initializers for name in add.input):
            continue
        left, right = (view.branch(name) for name in add.input)
        if any(_is_conv_branch(view, branch, add) for branch in (left, right)):
            yield add, (left, right)


def _is_conv_branch(view: GraphView, branch: Branch, add: onnx.NodeProto) -> bool:
    conv = view.maker(branch.tensor, "Conv")
    if conv is None or not view.quantized(conv) or branch.tensor in view.outputs:
        return False
    return all(reader is add for reader in view.final_readers(conv))


def _source(view: GraphView, branch: Branch) -> str:
    maker = view.maker(branch.tensor)
    return branch.tensor if maker is None else label(maker)


def quantized_shape(view: GraphView) -> Iterator[Finding]:
    for node in view.of_type(QUANTIZE):
        if node.input[0] in view.shape_arithmetic:
            yield Finding("quantized-shape", label(node), "a tensor that holds shapes is quantized.")


def quantize_before_activation(view: GraphView) -> Iterator[Finding]:
    for node in view.of_type(*ACTIVATION_OPS):
        quantize = view.branch(node.input[0]).quantize
        if quantize is not None:
            message = f"Q/DQ before {label(node)}, expected behind it."
            yield Finding("quantize-before-activation", label(quantize), message)


TENSORRT_RULES = (
    half_quantized, nonzero_zero_point, uint8_tensor, int32_bias, per_tensor_weight, quantized_conv_branch,
    float_residual, quantized_shape, quantize_before_activation,
)  # fmt: skip

"""Ways to spoil a Q/DQ graph. Each makes a function that changes one thing in a graph of `qdq_graphs`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import NodeProto, TensorProto, helper

from tests.unit.quantize.qdq_graphs import WEIGHTS, find, put, put_pair

Break = Callable[[onnx.ModelProto], None]


def rewire(node: str, index: int, tensor: str) -> Break:
    def spoil(model: onnx.ModelProto) -> None:
        find(model, node).input[index] = tensor

    return spoil


def set_to(name: str, value: npt.ArrayLike) -> Break:
    return lambda model: put(model, name, value)


def add(node: NodeProto) -> Break:
    return lambda model: model.graph.node.append(node)


def each(*breaks: Break) -> Break:
    def spoil(model: onnx.ModelProto) -> None:
        for one in breaks:
            one(model)

    return spoil


def drop_input(node: str) -> Break:
    def spoil(model: onnx.ModelProto) -> None:
        del find(model, node).input[-1]

    return spoil


def drop_axis(node: str) -> Break:
    def spoil(model: onnx.ModelProto) -> None:
        del find(model, node).attribute[:]

    return spoil


def with_axis(node: str, value: int) -> Break:
    def spoil(model: onnx.ModelProto) -> None:
        del find(model, node).attribute[:]
        find(model, node).attribute.append(helper.make_attribute("axis", value))

    return spoil


def with_opset(version: int) -> Break:
    def spoil(model: onnx.ModelProto) -> None:
        model.opset_import[0].version = version

    return spoil


def with_domain(node: str) -> Break:
    def spoil(model: onnx.ModelProto) -> None:
        model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
        if node:
            find(model, node).domain = "com.microsoft"

    return spoil


def with_pair(tensor: str, reader: str, index: int) -> Break:
    """Q/DQ in front of one input of a node."""

    def spoil(model: onnx.ModelProto) -> None:
        put_pair(model, tensor, 2**-5, np.int8(0))
        find(model, reader).input[index] = f"dq_{tensor}"

    return spoil


def as_output(name: str, tensor: str) -> Break:
    """Renames what a node makes to the name of the graph's output."""

    def spoil(model: onnx.ModelProto) -> None:
        find(model, "logits").output[0] = tensor
        put_pair(model, tensor, 2**-4, np.int8(0))
        find(model, name).output[0] = "logits"

    return spoil


def also_read(tensor: str) -> Break:
    def spoil(model: onnx.ModelProto) -> None:
        model.graph.node.append(helper.make_node("ReduceMean", [tensor], ["extra"], name="extra", keepdims=0))
        model.graph.output.append(helper.make_tensor_value_info("extra", TensorProto.FLOAT, []))

    return spoil


def as_operator(node: str, operator: str, inputs: Iterable[str]) -> Break:
    def spoil(model: onnx.ModelProto) -> None:
        find(model, node).op_type = operator
        find(model, node).input[:] = inputs

    return spoil


def float_weight(conv: str, weight: str) -> Break:
    return each(set_to("plain", np.ones(WEIGHTS[weight], np.float32)), rewire(conv, 1, "plain"))


def unsigned_weight(model: onnx.ModelProto) -> None:
    put(model, "w2", np.full(WEIGHTS["w2"], 3, np.uint8))
    put(model, "w2_zero", np.zeros(4, np.uint8))


def weight_behind_q(model: onnx.ModelProto) -> None:
    put(model, "plain", np.ones(WEIGHTS["w2"], np.float32))
    inputs = ["plain", "w2_scale", "w2_zero"]
    model.graph.node.append(helper.make_node("QuantizeLinear", inputs, ["q_w2"], name="q_w2", axis=0))
    find(model, "dq_w2").input[0] = "q_w2"


def image_transposed_first(model: onnx.ModelProto) -> None:
    find(model, "transpose").input[0] = "image"
    find(model, "cast").input[0] = "transpose"
    find(model, "x").input[0] = "cast"


def quantized_shape(model: onnx.ModelProto) -> None:
    for operator, source, name in (("Shape", "x", "shape"), ("Cast", "shape", "sides")):
        attributes: dict[str, Any] = {"to": TensorProto.FLOAT} if operator == "Cast" else {}
        model.graph.node.append(helper.make_node(operator, [source], [name], name=name, **attributes))
    put_pair(model, "sides", 1.0, np.int8(0))


def relu_behind(zero_point: np.generic) -> Break:
    """`conv1` with a Relu in place of its Clip."""
    return each(as_operator("c", "Relu", ["conv1"]), set_to("c_zero", zero_point))

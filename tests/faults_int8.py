"""Faults of INT8 and FP16 models: grids that are not the calibrated ones, and tensors that float16 cannot hold."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper

from edgetune.core.tensors import LOGITS_OUTPUT
from edgetune.graph.network import Network
from tests.faults import LAYER, Plant, conv, insert_after, rename_output, with_constants

# A layer whose input has much to lose, and one that a coarse grid hardly harms.
SENSITIVE = "backbone.blocks.1.1.conv_pw"
# Nothing but these two convolutions reads or makes the tensor between them, and it has no activation.
LINEAR_PAIR = ("backbone.blocks.0.0.conv_pw", "backbone.blocks.1.0.conv_pw")
HALF_MAX = 65504.0


def activation_scale(factor: float, *, layer: str = LAYER, only_dequantize: bool = False) -> Plant:
    """The scale of the layer's input; where both sides have it only digits are lost, else values grow."""

    def plant(model: onnx.ModelProto) -> onnx.ModelProto:
        network = Network.of_model(model)
        dequantize = network.makers[conv(network, layer).input[0]]
        wrong = network.constants[dequantize.input[1]] * np.float32(factor)
        network.constants["wrong_scale"] = wrong.astype(np.float32)
        quantize = network.makers[dequantize.input[0]]
        dequantize.input[1] = "wrong_scale"
        if not only_dequantize:
            quantize.input[1] = "wrong_scale"
        return network.model()

    return plant


def weight_scale(factor: float) -> Plant:
    name = f"{LAYER}.weight_scale"
    return lambda model: with_constants(
        model, lambda network: {name: (network.constants[name] * np.float32(factor)).astype(np.float32)}
    )


def zero_point(model: onnx.ModelProto) -> onnx.ModelProto:
    """Quantize and dequantize agree, and no negative value is left."""
    network = Network.of_model(model)
    dequantize = network.makers[conv(network, LAYER).input[0]]
    lowest = np.iinfo(network.constants[dequantize.input[2]].dtype).min
    network.constants["wrong_zero"] = np.full_like(network.constants[dequantize.input[2]], lowest)
    dequantize.input[2] = network.makers[dequantize.input[0]].input[2] = "wrong_zero"
    return network.model()


# FP16


def over_half(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same FP32 results bit for bit, with a tensor that leaves float16's range: each channel grows by the largest
    power of two that its weights and bias allow, and the next convolution takes it back.
    """
    network = Network.of_model(model)
    first, second = (conv(network, layer) for layer in LINEAR_PAIR)
    weights, bias, after = (network.constants[name] for name in (*first.input[1:3], second.input[1]))
    largest = np.maximum(np.abs(weights).max(axis=(1, 2, 3)), np.abs(bias))
    factor = np.exp2(np.floor(np.log2(HALF_MAX / largest))).astype(np.float32)
    network.constants[first.input[1]] = weights * factor.reshape(-1, 1, 1, 1)
    network.constants[first.input[2]] = bias * factor
    network.constants[second.input[1]] = after / factor.reshape(1, -1, 1, 1)
    return network.model()


def without_guards(model: onnx.ModelProto) -> onnx.ModelProto:
    """Everything to float16 whatever it reaches, as converters do that look at no image."""
    network = Network.of_model(model)
    boundary = next(index for index, node in enumerate(network.nodes) if node.op_type == "Conv")
    for name, values in network.constants.items():
        if values.dtype == np.float32 and not _read_before(network, name, boundary):
            network.constants[name] = values.astype(np.float16)
    entrance = network.nodes[boundary].input[0]
    cast = helper.make_node("Cast", [entrance], ["half"], name="to_half", to=TensorProto.FLOAT16)
    insert_after(network, cast, boundary)
    rename_output(network, LOGITS_OUTPUT, "half_logits")
    network.nodes.append(
        helper.make_node("Cast", ["half_logits"], [LOGITS_OUTPUT], name="to_float", to=TensorProto.FLOAT)
    )
    network.index()
    return network.model()


def _read_before(network: Network, name: str, position: int) -> bool:
    return any(name in node.input for node in network.nodes[:position])

"""A float classifier brought into the form that the quantizer works on; what it computes stays the same."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
from onnx import version_converter

from edgetune.core.errors import ModelError, first_line
from edgetune.core.tensors import Array
from edgetune.graph.compose import OPSET
from edgetune.graph.network import Network, attribute
from edgetune.quantize.placement import find_layers
from edgetune.quantize.qdq import QuantParams
from edgetune.quantize.targets import Target

_MIDDLE = 128  # of uint8; int8 holds pixel - 128 exactly


@dataclass(frozen=True)
class Pixels:
    """The normalised image `tensor` is (pixel - 128) * scale, so its integers are the pixels, without any error."""

    tensor: str
    scale: float

    def params(self, target: Target) -> QuantParams:
        return QuantParams(np.float32(self.scale), _MIDDLE if target.activation is np.uint8 else 0)


def canonical_network(model: onnx.ModelProto) -> tuple[Network, Pixels | None]:
    """Copies the graph; every layer gets weights and a bias of its own, and batch norms behind convolutions vanish.

    Raises:
        ModelError: an opset that cannot be converted, weights with NaN or infinity, or nothing to quantize.
    """
    network = Network.of_model(_at_opset(model))
    if len(network.inputs) != 1:
        raise ModelError(f"the model has the inputs {network.inputs}, expected one: images.")
    if any(node.op_type == "QuantizeLinear" for node in network.nodes):
        raise ModelError("the model is quantized already.", hint="quantize the float32 model it came from")
    _fold_batch_norms(network)
    _give_own_constants(network)
    layers = find_layers(network)
    if not layers:
        raise ModelError("the model has no convolution or matrix product with constant weights: nothing to quantize.")
    for layer in layers:
        for name in (layer.weight, layer.bias):
            if not np.isfinite(network.constants[name]).all():
                raise ModelError(f"the weights {name!r} of {layer.name} hold NaN or infinity.")
    return network, _centre_pixels(network)


def _at_opset(model: onnx.ModelProto) -> onnx.ModelProto:
    versions = [entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")]
    if versions == [OPSET]:
        return model
    try:
        converted: onnx.ModelProto = version_converter.convert_version(model, OPSET)
    except (RuntimeError, ValueError) as error:
        raise ModelError(
            f"the model has opset {versions}, which cannot be converted to {OPSET}: {first_line(error)}"
        ) from error
    return converted


def _give_own_constants(network: Network) -> None:
    """A bias of zeros where there is none, and copies of constants that other nodes read too."""
    taken: set[str] = set()
    for layer in find_layers(network):
        node = network.makers[layer.product]
        outputs = len(network.constants[layer.weight])
        if layer.op_type == "Gemm" and not attribute(node, "transB", 0):
            outputs = network.constants[layer.weight].shape[1]
        if not layer.bias:
            del node.input[2:]
            node.input.append(f"{layer.name}.bias")
            network.constants[f"{layer.name}.bias"] = np.zeros(outputs, np.float32)
        elif layer.bias in network.constants:
            network.constants[layer.bias] = np.broadcast_to(
                network.constants[layer.bias].reshape(-1), (outputs,)
            ).copy()
        for index in (1, 2):
            name = node.input[index]
            if name in taken or len(network.readers[name]) > 1:
                network.constants[f"{layer.name}.{index}"] = network.constants[name].copy()
                node.input[index] = f"{layer.name}.{index}"
            taken.add(node.input[index])
    network.index()


def _fold_batch_norms(network: Network) -> None:
    """A batch norm, (x - mean) / sqrt(variance + epsilon) * scale + shift, is linear: the convolution can do it."""
    for node in list(network.nodes):
        if node.op_type != "BatchNormalization" or any(name not in network.constants for name in node.input[1:]):
            continue
        conv = network.makers.get(node.input[0])
        if conv is None or conv.op_type != "Conv" or network.sole_reader(node.input[0]) is not node:
            continue
        if not network.constants.keys() >= set(filter(None, conv.input[1:])) or len(network.readers[conv.input[1]]) > 1:
            continue
        _fold_into(network, conv, node)
        network.nodes.remove(node)
        network.index()


def _fold_into(network: Network, conv: onnx.NodeProto, norm: onnx.NodeProto) -> None:
    gamma, shift, mean, variance = (network.constants[name].astype(np.float64) for name in norm.input[1:5])
    factor = gamma / np.sqrt(variance + attribute(norm, "epsilon", 1e-5))
    weight = network.constants[conv.input[1]]
    has_bias = len(conv.input) > 2 and conv.input[2]
    bias: Array = network.constants[conv.input[2]] if has_bias else np.zeros(len(weight))
    per_output = factor.reshape(-1, *[1] * (weight.ndim - 1))
    network.constants[conv.input[1]] = (weight * per_output).astype(np.float32)
    name = f"{conv.name}.folded_bias"
    network.constants[name] = ((bias - mean) * factor + shift).astype(np.float32)
    del conv.input[2:]
    conv.input.append(name)
    conv.output[0] = norm.output[0]


def _centre_pixels(network: Network) -> Pixels | None:
    """Where the image is normalised alike in all channels, around nearly 128 (mean 0.5), moves the middle to exactly
    128 and pays the half step back in the bias of the first convolution.

    Quantizing (pixel - 127.5) / 127.5 to 256 steps rounds every value from the middle between two of them: it
    merges pairs of grey levels and loses a bit. Around 128 the integers are the pixels. Only taps on the padding
    differ, by half a grey level.
    """
    subtract = _chain(network, network.inputs[0], ("Cast", "Transpose", "Sub"))
    divide = network.sole_reader(subtract.output[0]) if subtract is not None else None
    if subtract is None or divide is None or divide.op_type != "Div":
        return None
    mean, deviation = (network.constants.get(node.input[1]) for node in (subtract, divide))
    if mean is None or deviation is None or np.ptp(mean) > 0 or np.ptp(deviation) > 0:
        return None
    offset, scale = _MIDDLE - float(mean.flat[0]), 1.0 / float(deviation.flat[0])
    readers = [layer for layer in find_layers(network) if layer.data == divide.output[0] and layer.op_type == "Conv"]
    if not 0 <= offset <= 0.5 or len(readers) != len(network.readers[divide.output[0]]):
        return None
    network.constants["pixel_middle"] = np.full_like(mean, _MIDDLE)
    subtract.input[1] = "pixel_middle"
    for layer in readers:
        taps = network.constants[layer.weight].sum(axis=(1, 2, 3))
        network.constants[layer.bias] = (network.constants[layer.bias] + taps * offset * scale).astype(np.float32)
    network.index()
    return Pixels(divide.output[0], scale)


def _chain(network: Network, tensor: str, op_types: tuple[str, ...]) -> onnx.NodeProto | None:
    """The last of the nodes that read `tensor` one after the other, if they are of these types."""
    node = None
    for op_type in op_types:
        node = network.sole_reader(tensor)
        if node is None or node.op_type != op_type:
            return None
        tensor = node.output[0]
    return node

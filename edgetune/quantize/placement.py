"""Which operators of a float graph become integer operators, and which tensors carry a Q/DQ pair for them."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import onnx

from edgetune.core.tensors import Array
from edgetune.graph.network import Network, attribute
from edgetune.quantize.targets import Target

WEIGHTED_OPS = ("Conv", "Gemm")
JOINING_OPS = ("Add", "Concat")
_ACTIVATIONS = ("Relu", "Clip")


@dataclass(frozen=True)
class Layer:
    """A convolution or matrix product with constant weights. `product` is what it computes, `output` the same behind
    the activation that integer kernels absorb.
    """

    name: str
    op_type: str
    data: str
    weight: str
    bias: str
    product: str
    output: str


@dataclass(frozen=True)
class Placement:
    """`layers` become integer operators, `kept_float` do not, with the reason. `tensors` get a Q/DQ pair, in graph
    order; `same_range` are those that take the scale of another (a pooling's output that of its input).
    """

    layers: tuple[Layer, ...]
    kept_float: dict[str, str]
    tensors: tuple[str, ...]
    same_range: dict[str, str]


def find_layers(network: Network) -> tuple[Layer, ...]:
    """Every convolution and matrix product whose weights and bias are constants, in graph order."""
    found = []
    for node in network.nodes:
        if node.op_type in WEIGHTED_OPS and network.constants.keys() >= set(filter(None, node.input[1:])):
            bias = node.input[2] if len(node.input) > 2 else ""
            product = node.output[0]
            output = behind_activation(network, product)
            found.append(Layer(node.name, node.op_type, node.input[0], node.input[1], bias, product, output))
    return tuple(found)


def place(network: Network, target: Target, kept_float: Collection[str] = ()) -> Placement:
    """`kept_float` names layers that stay float because their error was too large."""
    reasons = dict.fromkeys(kept_float, "its INT8 error is too large")
    shapes = network.shapes()
    layers = []
    for layer in find_layers(network):
        reason = reasons.get(layer.name) or _why_not(network, layer, target, shapes.get(layer.product, ()))
        if reason:
            reasons[layer.name] = reason
        else:
            layers.append(layer)
    wanted: set[str] = set()
    same: dict[str, str] = {}
    for layer in layers:
        wanted.add(layer.data)
        if target.dense and layer.output not in network.outputs:
            wanted.add(layer.output)
    if target.dense:
        _add_joins(network, wanted)
        same = _find_pools(network, wanted)
    else:
        _add_residuals(network, layers, wanted)
    order = [*network.inputs, *(name for node in network.nodes for name in node.output)]
    return Placement(tuple(layers), reasons, tuple(name for name in order if name in wanted), same)


def behind_activation(network: Network, tensor: str) -> str:
    """The tensor behind the Relu or Clip that alone reads `tensor`; the tensor itself where there is none.

    A Clip counts where it starts at 0: only such a bound is where a range of integers ends, to the bit.
    """
    reader = network.sole_reader(tensor)
    if reader is None or reader.op_type not in _ACTIVATIONS or reader.input[0] != tensor:
        return tensor
    if reader.op_type == "Clip" and (len(reader.input) < 2 or np.any(network.constants.get(reader.input[1], 1) != 0)):
        return tensor
    return str(reader.output[0])


def weight_axis(network: Network, layer: Layer) -> int:
    """The axis of a layer's weights that counts its outputs."""
    if layer.op_type == "Conv":
        return 0
    return 0 if attribute(network.makers[layer.product], "transB", 0) else 1


def as_rows(network: Network, layer: Layer, weights: Array) -> Array:
    """Weights with outputs first: `(outputs, inputs / groups, kh, kw)` or `(outputs, inputs)`."""
    return weights if weight_axis(network, layer) == 0 else weights.T


def _why_not(network: Network, layer: Layer, target: Target, shape: tuple[int | None, ...]) -> str:
    """`shape` is that of the layer's product."""
    if layer.op_type == "Conv":
        return _why_not_conv(network, layer, target, shape)
    if layer.product in network.outputs:
        return "it makes the logits"
    node = network.makers[layer.product]
    plain = attribute(node, "alpha", 1.0) == 1.0 and attribute(node, "beta", 1.0) == 1.0
    if attribute(node, "transA", 0) or not plain:
        return "its Gemm scales or transposes its input"
    return ""


def _why_not_conv(network: Network, layer: Layer, target: Target, shape: tuple[int | None, ...]) -> str:
    if network.constants[layer.weight].ndim != 4:
        return "only two-dimensional convolutions are quantized"
    if len(shape) == 4 and shape[2:] == (1, 1):
        return "it works on one pixel (squeeze and excitation): nothing to gain"
    if attribute(network.makers[layer.product], "auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID"):
        return "its padding is left to the runtime"
    if target.dense and layer.output in network.outputs:
        return "it makes the output"
    return ""


def _add_joins(network: Network, wanted: set[str]) -> None:
    """An Add or Concat with an integer input is done in integers, inputs and output alike."""
    for node in network.nodes:
        if node.op_type in JOINING_OPS and _joins_integers(network, node, wanted):
            wanted.update(node.input)
            wanted.add(behind_activation(network, node.output[0]))
        elif node.op_type == "MaxPool" and node.input[0] in wanted:
            wanted.add(node.output[0])


def _joins_integers(network: Network, node: onnx.NodeProto, wanted: set[str]) -> bool:
    return all(name not in network.constants for name in node.input) and any(name in wanted for name in node.input)


def _find_pools(network: Network, wanted: set[str]) -> dict[str, str]:
    pools = [node for node in network.nodes if node.op_type == "MaxPool"]
    return {node.output[0]: node.input[0] for node in pools if {node.output[0], node.input[0]} <= wanted}


def _add_residuals(network: Network, layers: list[Layer], wanted: set[str]) -> None:
    """Of an Add's two inputs the one that a convolution makes for it alone stays float, to be fused; the other gets
    a Q/DQ pair. Where both are such, the first to be computed counts as the convolution's.
    """
    products = {layer.product: index for index, layer in enumerate(layers)}
    for node in network.nodes:
        if node.op_type != "Add" or any(name in network.constants for name in node.input):
            continue
        branches = [name for name in node.input if name in products and network.sole_reader(name) is node]
        if branches:
            branch = min(branches, key=lambda name: products[name])
            wanted.update(name for name in node.input if name != branch)

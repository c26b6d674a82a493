"""The Q/DQ form of a graph: integer weights, and a QuantizeLinear/DequantizeLinear pair on every chosen tensor.

The form follows the ONNX operators QuantizeLinear and DequantizeLinear of opset 19 and later, with axis and zero
point always written out, since runtimes differ in what they assume where those are left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper

from edgetune.graph.network import Network
from edgetune.quantize.placement import Layer, Placement, weight_axis
from edgetune.quantize.targets import Target


@dataclass(frozen=True)
class QuantParams:
    """real = (integer - zero_point) * scale, for a whole tensor; Jacob et al. 2018, equation 1."""

    scale: np.float32
    zero_point: int


@dataclass(frozen=True)
class LayerWeights:
    """`integers` int8 in the shape of the layer's weights; `scale` and `bias` float32 `(outputs,)`."""

    integers: npt.NDArray[np.int8]
    scale: npt.NDArray[np.float32]
    bias: npt.NDArray[np.float32]


def represented_range(params: QuantParams, target: Target) -> tuple[float, float]:
    lowest, highest = target.limits
    scale = float(params.scale)
    return (lowest - params.zero_point) * scale, (highest - params.zero_point) * scale


class QdqNetwork:
    """The Q/DQ network of a float network. The weights of its layers can be exchanged while it is in use."""

    def __init__(
        self, network: Network, target: Target, placement: Placement, params: Mapping[str, QuantParams],
        pixels: str | None = None,
    ) -> None:  # fmt: skip
        """`pixels` is the tensor whose integers are the uint8 image itself, where the target reads it so."""
        self.target = target
        self._pixels = pixels if target.reads_uint8 else None
        self.placement = placement
        self.params = dict(params)
        self._float = network
        self.shapes = network.shapes()
        self.network = Network([], network.constants, network.source)
        self._dequantized: dict[str, str] = {}
        layers = {layer.name: layer for layer in placement.layers}
        for node in network.nodes:
            self._add_node(node, layers.get(node.name))
        self.network.index()

    def set_weights(self, layer: Layer, weights: LayerWeights) -> None:
        constants = self.network.constants
        constants[f"{layer.weight}_q"] = weights.integers
        constants[f"{layer.weight}_scale"] = weights.scale
        constants[f"{layer.weight}_zero_point"] = np.zeros(len(weights.scale), np.int8)
        if not self.target.integer_bias:
            constants[f"{layer.name}_bias"] = weights.bias
            return
        step = self.params[layer.data].scale * weights.scale
        limits = np.iinfo(np.int32)
        integers = np.clip(np.round(weights.bias / step.astype(np.float64)), limits.min, limits.max)
        constants[f"{layer.name}_bias_q"] = integers.astype(np.int32)
        constants[f"{layer.name}_bias_scale"] = step.astype(np.float32)
        constants[f"{layer.name}_bias_zero_point"] = np.zeros(len(step), np.int32)

    @property
    def integer_tensors(self) -> tuple[str, ...]:
        """The tensors of integers, in the order in which they can be computed."""
        return tuple(f"{name}_q" for name in self.placement.tensors if name in self._dequantized)

    def model(self) -> onnx.ModelProto:
        """The model, without the nodes that nothing reads any more."""
        self.network.remove_unread()
        return self.network.model()

    def _add_node(self, node: onnx.NodeProto, layer: Layer | None) -> None:
        reads_integers = layer is not None or node.op_type not in ("Conv", "Gemm")
        own = onnx.NodeProto()
        own.CopyFrom(node)
        for index, name in enumerate(node.input):
            if name in self.params:
                self._ensure_pair(name)
                if reads_integers:
                    own.input[index] = self._dequantized[name]
                elif self.target.dense:
                    own.input[index] = self._shielded(name)
        if layer is not None:
            self._attach_weights(own, layer)
        self.network.nodes.append(own)

    def _ensure_pair(self, tensor: str) -> None:
        if tensor in self._dequantized:
            return
        params = self.params[self.placement.same_range.get(tensor, tensor)]
        scale, zero_point = f"{tensor}_scale", f"{tensor}_zero_point"
        self.network.constants[scale] = np.array(params.scale, np.float32)
        self.network.constants[zero_point] = np.array(params.zero_point, self.target.activation)
        quantized, result = f"{tensor}_q", f"{tensor}_dq"
        if tensor == self._pixels:
            self._append("Transpose", [self._float.inputs[0]], quantized, perm=[0, 3, 1, 2])
        else:
            self._append("QuantizeLinear", [tensor, scale, zero_point], quantized)
        self._append("DequantizeLinear", [quantized, scale, zero_point], result)
        self._dequantized[tensor] = result

    def _shielded(self, tensor: str) -> str:
        """What a layer that is kept in float reads: the dequantized tensor behind a Clip to the range it has anyway.

        ONNX Runtime takes a float convolution between a DequantizeLinear and a QuantizeLinear for one whose weights
        were forgotten, and quantizes them itself, per tensor (its WeightBiasQuantization).
        """
        shielded = f"{tensor}_float"
        if f"{shielded}_low" not in self.network.constants:
            low, high = represented_range(self.params[tensor], self.target)
            self.network.constants[f"{shielded}_low"] = np.array(low, np.float32)
            self.network.constants[f"{shielded}_high"] = np.array(high, np.float32)
            self._append("Clip", [self._dequantized[tensor], f"{shielded}_low", f"{shielded}_high"], shielded)
        return shielded

    def _attach_weights(self, node: onnx.NodeProto, layer: Layer) -> None:
        axis = weight_axis(self._float, layer)
        inputs = [f"{layer.weight}_{part}" for part in ("q", "scale", "zero_point")]
        self._append("DequantizeLinear", inputs, f"{layer.weight}_dq", axis=axis)
        node.input[1] = f"{layer.weight}_dq"
        del node.input[2:]
        if self.target.integer_bias:
            inputs = [f"{layer.name}_bias_{part}" for part in ("q", "scale", "zero_point")]
            self._append("DequantizeLinear", inputs, f"{layer.name}_bias_dq", axis=0)
            node.input.append(f"{layer.name}_bias_dq")
        else:
            node.input.append(f"{layer.name}_bias")

    def _append(self, op_type: str, inputs: list[str], output: str, **attributes: int | list[int]) -> None:
        self.network.nodes.append(_node(op_type, inputs, output, attributes))


def _node(op_type: str, inputs: list[str], output: str, attributes: Mapping[str, Any]) -> onnx.NodeProto:
    return helper.make_node(op_type, inputs, [output], name=output, **attributes)

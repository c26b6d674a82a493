"""A Q/DQ graph as the lint rules ask about it: who makes a tensor, who reads it, what is constant."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from edgetune.core.tensors import Array

WEIGHTED_OPS = ("Conv", "Gemm", "MatMul")
ACTIVATION_OPS = ("Relu", "Clip")
QUANTIZE = "QuantizeLinear"
DEQUANTIZE = "DequantizeLinear"


@dataclass(frozen=True)
class Finding:
    """`rule` is a stable id; `node` is the node's name, or its first output where it has none."""

    rule: str
    node: str
    message: str


@dataclass(frozen=True)
class Branch:
    """One input of an operator: the tensor behind a Q/DQ pair, or the input itself where there is none."""

    tensor: str
    quantize: onnx.NodeProto | None


class GraphView:
    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        self.nodes = list(model.graph.node)
        self.outputs = frozenset(entry.name for entry in model.graph.output)
        self.initializers = {entry.name: entry for entry in model.graph.initializer}
        self._makers = {name: node for node in self.nodes for name in node.output}
        self._readers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
        for node in self.nodes:
            for name in node.input:
                self._readers[name].append(node)

    def of_type(self, *operators: str) -> list[onnx.NodeProto]:
        return [node for node in self.nodes if node.op_type in operators]

    def maker(self, tensor: str, *operators: str) -> onnx.NodeProto | None:
        """The node that makes a tensor, if it is one of these operators; any where none are named."""
        node = self._makers.get(tensor)
        return node if node is not None and (not operators or node.op_type in operators) else None

    def readers(self, tensor: str) -> list[onnx.NodeProto]:
        return self._readers.get(tensor, [])

    def constant(self, tensor: str) -> Array | None:
        """The value of an initializer; None for every other tensor."""
        entry = self.initializers.get(tensor)
        if entry is None:
            return None
        array: Array = numpy_helper.to_array(entry)
        return array

    def scale(self, node: onnx.NodeProto) -> Array | None:
        return self.constant(node.input[1])

    def zero_point(self, node: onnx.NodeProto) -> Array | None:
        return self.constant(node.input[2]) if has_zero_point(node) else None

    def per_axis(self, node: onnx.NodeProto) -> bool:
        scale = self.scale(node)
        return scale is not None and scale.size > 1

    def on_weight(self, node: onnx.NodeProto) -> bool:
        """Whether a Q or DQ stands on a constant that only convolutions and matrix products read, or on a bias."""
        source = node.input[0]
        while (maker := self.maker(source, QUANTIZE)) is not None:
            source = maker.input[0]
        return source in self.initializers and all(
            reader.op_type in WEIGHTED_OPS for reader in self.final_readers(node)
        )

    def final_readers(self, node: onnx.NodeProto) -> list[onnx.NodeProto]:
        """Who reads a node's output, looking through Q and DQ; a reader that reads twice is listed twice."""
        found: list[onnx.NodeProto] = []
        for reader in self.readers(node.output[0]):
            through = reader.op_type in (QUANTIZE, DEQUANTIZE)
            found.extend(self.final_readers(reader) if through else [reader])
        return found

    def branch(self, tensor: str) -> Branch:
        dequantize = self.maker(tensor, DEQUANTIZE)
        quantize = self.maker(dequantize.input[0], QUANTIZE) if dequantize is not None else None
        return Branch(tensor if quantize is None else quantize.input[0], quantize)

    def dequantized(self, tensor: str) -> bool:
        return self.maker(tensor, DEQUANTIZE) is not None

    def quantized(self, node: onnx.NodeProto) -> bool:
        """Whether every data input of an operator (not its bias) is dequantized."""
        return all(self.dequantized(name) for name in data_inputs(node))

    @cached_property
    def shape_arithmetic(self) -> frozenset[str]:
        """Tensors worked out from nothing but shapes and constants."""
        found: set[str] = set()
        for node in self.nodes:
            variable = [name for name in node.input if name and name not in self.initializers]
            if node.op_type in ("Shape", "Size") or (variable and found.issuperset(variable)):
                found.update(node.output)
        return frozenset(found)


def has_zero_point(node: onnx.NodeProto) -> bool:
    return len(node.input) > 2 and bool(node.input[2])


def data_inputs(node: onnx.NodeProto) -> list[str]:
    """What an operator multiplies, adds or joins; a bias is none of them."""
    return list(node.input[:2]) if node.op_type in WEIGHTED_OPS else list(node.input)


def attribute(node: onnx.NodeProto, name: str) -> int | None:
    """An integer attribute; None where the node leaves it to ONNX's default."""
    for entry in node.attribute:
        if entry.name == name:
            return int(entry.i)
    return None


def label(node: onnx.NodeProto) -> str:
    return str(node.name or node.output[0])


def type_name(dtype: int) -> str:
    return str(TensorProto.DataType.Name(dtype)).lower()


def represented_range(scale: Array, zero_point: Array) -> tuple[float, float]:
    """The lowest and highest float that a per-tensor scale and zero point can express."""
    limits = np.iinfo(zero_point.dtype)
    offset, step = int(zero_point.reshape(-1)[0]), float(scale.reshape(-1)[0])
    return (limits.min - offset) * step, (limits.max - offset) * step

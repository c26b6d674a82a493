"""Where two ONNX graphs of one network can be cut into blocks: at tensors that both have."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto

from edgetune.graph.float_view import element_types
from edgetune.graph.network import Network

PRODUCTS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
_ACTIVATIONS = frozenset(
    {"Relu", "Clip", "LeakyRelu", "PRelu", "HardSwish", "Elu", "Selu", "Gelu", "Mish", "Softplus", "Tanh"}
)
_PASSED = _ACTIVATIONS | {"BatchNormalization"}
_JOINS = frozenset({"Add", "Sub", "Mul", "Concat", "Sum"})
_POOLS = frozenset({"MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "ReduceMean"})
_FLOATS = frozenset({TensorProto.FLOAT, TensorProto.FLOAT16})


@dataclass(frozen=True)
class Block:
    """The nodes that make `tensor` from `inputs`, which are tensors of other blocks or the graph's own inputs.

    `name` is the node of its last product, or of its last node where it has none; `module` its PyTorch path.
    """

    name: str
    module: str
    tensor: str
    inputs: tuple[str, ...]
    nodes: tuple[str, ...]
    has_product: bool


class BlockGraph:
    """A network with the types and ranks of its float tensors, to be cut; the network is not changed."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        self.network = Network.of_model(model)
        self.types = element_types(model)
        self.shapes = self.network.shapes()
        self._captured = set(captured_names(self.network.nodes))
        self._order = {name: index for index, name in enumerate(self.network.makers)}
        self._quantized = {
            node.input[0]: node for node in self.network.nodes if node.op_type == "QuantizeLinear"
        }  # fmt: skip

    def tensors(self) -> list[str]:
        """Float tensors of known type and rank that nodes make, in graph order, and those that only exist quantized."""
        found = []
        for node in self.network.nodes:
            for name in node.output:
                if self._can_be_cut(name):
                    found.append(name)
                elif self._hidden_name(name):
                    found.append(self._hidden_name(name))
        return found

    def _can_be_cut(self, name: str) -> bool:
        plain = self.types.get(name) in _FLOATS and name in self.shapes and name not in self._captured
        return plain and not self._is_dequantized(name)

    def _is_dequantized(self, name: str) -> bool:
        node = self.network.makers.get(name)
        return node is not None and node.op_type == "DequantizeLinear"

    def _hidden_name(self, name: str) -> str:
        """For X_q that no QuantizeLinear made, as where the uint8 image itself is read: X. Else empty."""
        maker = self.network.makers.get(name)
        if maker is None or maker.op_type in ("QuantizeLinear", "DequantizeLinear") or not name.endswith("_q"):
            return ""
        tensor = name.removesuffix("_q")
        reader = self.network.makers.get(f"{tensor}_dq")
        alone = reader is not None and reader.op_type == "DequantizeLinear" and tensor not in self.network.makers
        return tensor if alone else ""

    def shape(self, tensor: str) -> tuple[int | None, ...] | None:
        return self.shapes.get(tensor, self.shapes.get(f"{tensor}_q"))

    def rank(self, tensor: str) -> int | None:
        shape = self.shape(tensor)
        return None if shape is None else len(shape)

    def represented(self, tensor: str) -> tuple[float, float, float] | None:
        """Step, lowest and highest value of a quantized tensor; None where it is not, or not with one scale."""
        node = self.quantizer(tensor)
        values = [self.network.constants.get(name) for name in node.input[1:3]] if node is not None else []
        if len(values) < 2 or any(value is None or value.size != 1 for value in values):
            return None
        scale, zero_point = (value.flat[0] for value in values if value is not None)
        limits: Any = np.iinfo(zero_point.dtype)
        ends = [(limit - int(zero_point)) * float(scale) for limit in (limits.min, limits.max)]
        return float(scale), ends[0], ends[1]

    def is_reduced(self, layer: str) -> bool:
        """Whether a product, by its node's name, has integer weights or makes float16."""
        node = next(each for each in self.network.nodes if each.name == layer)
        weight = self.network.makers.get(node.input[1])
        has_integers = weight is not None and weight.op_type == "DequantizeLinear"
        return has_integers or self.types.get(node.output[0]) == TensorProto.FLOAT16

    def layer_ends(self) -> list[tuple[onnx.NodeProto, str]]:
        """Each product with the tensor behind its batch norm and activation, in graph order."""
        products = [node for node in self.network.nodes if node.op_type in PRODUCTS]
        return [(node, self._behind_activation(node.output[0])) for node in products]

    def quantizer(self, tensor: str) -> onnx.NodeProto | None:
        """The QuantizeLinear of a tensor, or the DequantizeLinear of one that only exists quantized."""
        hidden = None if tensor in self.network.makers else self.network.makers.get(f"{tensor}_dq")
        return self._quantized.get(tensor, hidden)

    def resting_points(self) -> list[str]:
        """Where to cut: behind each layer's activation, each join and pooling, in front of the first layers, and at
        the outputs; in graph order.
        """
        points = set(self.network.outputs) | set(self._quantized)
        for node in self.network.nodes:
            data = [name for name in node.input if name and name not in self.network.constants]
            if node.op_type in PRODUCTS:
                points.update(self.plain_name(name) for name in data)
            joins = node.op_type in _JOINS and len(data) > 1
            if node.op_type in PRODUCTS or node.op_type in _POOLS or joins:
                points.add(self._behind_activation(node.output[0]))
        return [name for name in self.tensors() if name in points]

    def plain_name(self, name: str) -> str:
        """The tensor in front of a Q/DQ pair or a cast."""
        node = self.network.makers.get(name)
        while node is not None and node.op_type in ("DequantizeLinear", "QuantizeLinear", "Cast"):
            if node.op_type == "DequantizeLinear" and self._hidden_name(node.input[0]):
                return self._hidden_name(node.input[0])
            name, node = node.input[0], self.network.makers.get(node.input[0])
        return name

    def _behind_activation(self, tensor: str) -> str:
        while tensor not in self._quantized and tensor not in self.network.outputs:
            readers = self.network.readers.get(tensor, [])
            if len(readers) == 1 and (readers[0].op_type in _PASSED or self._is_emulated_cast(readers[0])):
                tensor = str(readers[0].output[0])
                continue
            gated = self._gated(tensor, readers)
            if not gated:
                break
            tensor = gated
        return tensor

    def _is_emulated_cast(self, node: onnx.NodeProto) -> bool:
        return node.op_type == "Cast" and self.types.get(node.input[0]) in _FLOATS

    def _gated(self, tensor: str, readers: list[onnx.NodeProto]) -> str:
        """Of x * sigmoid(x), where `readers` are all that read x: the product."""
        kinds = {node.op_type: node for node in readers}
        if len(readers) != 2 or kinds.keys() not in ({"Sigmoid", "Mul"}, {"HardSigmoid", "Mul"}):
            return ""
        gate = next(node for kind, node in kinds.items() if kind != "Mul")
        product = kinds["Mul"]
        return str(product.output[0]) if set(product.input) == {tensor, gate.output[0]} else ""


def articulation_points(graph: BlockGraph, cuts: Collection[str]) -> tuple[str, ...]:
    """Those of `cuts` through which all of the computation goes, so that an error before one shows in it; in order."""
    network = graph.network
    alive: set[str] = set()
    left = {name: len(readers) for name, readers in network.readers.items()}
    found = []
    for node in network.nodes:
        for name in node.input:
            left[name] -= 1
            if left[name] == 0:
                alive.discard(name)
        if any(name in network.makers or name in network.inputs for name in node.input):
            alive.update(name for name in node.output if left.get(name) or name in network.outputs)
        if len(alive) == 1:
            found.append(graph.plain_name(next(iter(alive))))
    return tuple(name for name in dict.fromkeys(found) if name in set(cuts))


def common_cuts(reference: BlockGraph, candidate: BlockGraph) -> tuple[str, ...]:
    """The candidate's resting points that the reference has as well, with the same rank."""
    known = set(reference.tensors())
    return tuple(
        name
        for name in candidate.resting_points()
        if name in known and candidate.rank(name) is not None and fits(reference, candidate, name)
    )


def fits(reference: BlockGraph, candidate: BlockGraph, tensor: str) -> bool:
    """Whether the two have a tensor of one rank, and of one size where both know it."""
    one, other = reference.shape(tensor), candidate.shape(tensor)
    return one is not None and other is not None and agree(one, other)


def agree(one: tuple[int | None, ...], other: tuple[int | None, ...]) -> bool:
    """Whether two shapes are the same where both are known."""
    return len(one) == len(other) and all(None in pair or pair[0] == pair[1] for pair in zip(one, other, strict=True))


def captured_names(nodes: Iterable[onnx.NodeProto]) -> Iterator[str]:
    """Names that graphs inside of nodes read."""
    for node in nodes:
        for entry in node.attribute:
            for graph in (*([entry.g] if entry.HasField("g") else []), *entry.graphs):
                for inner in graph.node:
                    yield from inner.input
                yield from captured_names(graph.node)

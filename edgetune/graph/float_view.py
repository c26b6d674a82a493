"""A float32 classifier as float16 sees it: which nodes could compute in half, and how far their tensors reach."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper

from edgetune.core.errors import ModelError
from edgetune.core.tensors import Array
from edgetune.graph.compose import OPSET
from edgetune.graph.network import Network
from edgetune.runners.ort_runner import OrtRunner

# They give the same whatever the type of the floats they read.
TYPE_BLIND = frozenset({"Cast", "Shape", "Size"})

_PRODUCTS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
_REDUCED_TYPES = frozenset({TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.INT8, TensorProto.INT4})


class FloatView:
    """The network, the shapes of its tensors, and which tensors are float32."""

    def __init__(self, model: onnx.ModelProto) -> None:
        """Raises `ModelError` unless the graph is plain float32 of our opset, with every tensor's type known."""
        _check_plain(model)
        self.network = Network.of_model(model)
        types = element_types(model)
        constants = self.network.constants
        unknown = [name for node in self.network.nodes for name in node.output if name and not types.get(name)]
        if unknown:
            raise ModelError(f"the type of the tensor {unknown[0]!r} is not known, so it cannot be cast.")
        self._float = {name for name, kind in types.items() if kind == TensorProto.FLOAT}
        self._float |= {name for name, array in constants.items() if array.dtype == np.float32}
        self.shapes = self.network.shapes()

    def is_float(self, name: str) -> bool:
        return name in self._float

    def candidates(self) -> list[onnx.NodeProto]:
        """Nodes that make floats from the first product on. What comes before it, normalisation, is cheap and exact."""
        behind: set[str] = set()
        found = []
        for node in self.network.nodes:
            if node.op_type in _PRODUCTS or behind.intersection(node.input):
                behind.update(node.output)
                if node.op_type not in TYPE_BLIND and any(map(self.is_float, node.output)):
                    found.append(node)
        return found

    def constants_of(self, node: onnx.NodeProto) -> Iterator[tuple[int, str, Array]]:
        """Input index, name and values of each float constant that a node reads."""
        for index, name in enumerate(node.input):
            if name in self.network.constants and self.is_float(name):
                yield index, name, self.network.constants[name]

    def data_of(self, node: onnx.NodeProto) -> list[str]:
        """The float tensors that a node reads and makes, without its constants."""
        names = [name for name in (*node.input, *node.output) if self.is_float(name)]
        return [name for name in names if name not in self.network.constants]


def largest_values(model: onnx.ModelProto, batches: Iterable[npt.NDArray[np.uint8]]) -> dict[str, float]:
    """The largest magnitude of each tensor that float16 could hold, on images uint8 `(N, H, W, 3)`.

    The extremes are taken inside the graph; what is in memory is one batch. NaN and infinity stay what they are.
    """
    view = FloatView(model)
    tensors = list(dict.fromkeys(name for node in view.candidates() for name in view.data_of(node)))
    found = dict.fromkeys(tensors, 0.0)
    with OrtRunner(_observing_model(view.network, tensors).SerializeToString()) as runner:
        for batch in batches:
            outputs = runner.infer({view.network.inputs[0]: batch})
            for name in tensors:
                ends = float(outputs[f"{name}_lowest"]), float(outputs[f"{name}_highest"])
                found[name] = float(np.max(np.abs([found[name], *ends])))  # unlike max(), keeps NaN
    return found


def _observing_model(network: Network, tensors: list[str]) -> onnx.ModelProto:
    ends = [
        helper.make_node(op_type, [name], [f"{name}_{suffix}"], keepdims=0)
        for name in tensors
        for op_type, suffix in (("ReduceMin", "lowest"), ("ReduceMax", "highest"))
    ]
    observed = Network([*network.nodes, *ends], network.constants, network.source)
    return observed.piece({node.output[0]: TensorProto.FLOAT for node in ends})


def element_types(model: onnx.ModelProto) -> dict[str, int]:
    graph = onnx.shape_inference.infer_shapes(model).graph
    return {entry.name: entry.type.tensor_type.elem_type for entry in (*graph.input, *graph.value_info, *graph.output)}


def _check_plain(model: onnx.ModelProto) -> None:
    operators = {node.op_type for node in model.graph.node}
    types = {entry.data_type for entry in model.graph.initializer} | set(element_types(model).values())
    if operators & {"QuantizeLinear", "DequantizeLinear"} or types & _REDUCED_TYPES:
        raise ModelError(
            "the model's precision is already in the file: it is quantized or in half precision.",
            hint="cast the float32 model it came from",
        )
    opsets = {entry.domain: entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")}
    if list(opsets.values()) != [OPSET]:
        raise ModelError(f"the model has opset {sorted(opsets.values())}, expected {OPSET}.")
    nested = [node for node in model.graph.node if any(entry.HasField("g") or entry.graphs for entry in node.attribute)]
    if nested:
        raise ModelError(f"the {nested[0].op_type} node {nested[0].name!r} has graphs inside, which cannot be cast.")

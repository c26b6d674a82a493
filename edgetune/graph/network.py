"""An ONNX graph as something to walk through, edit, and cut pieces from."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

import onnx
from onnx import helper, numpy_helper

from edgetune.core.tensors import Array
from edgetune.graph.compose import MAX_IR_VERSION, OPSET


class Network:
    """Nodes in topological order and constants by name; `index` must be called after nodes were changed.

    Constants may be replaced at any time: they are only written into a model when one is asked for.
    """

    def __init__(
        self, nodes: Iterable[onnx.NodeProto], constants: Mapping[str, Array], source: onnx.ModelProto
    ) -> None:
        self.nodes = list(nodes)
        self.constants = dict(constants)
        self.source = source
        self.index()

    @staticmethod
    def of_model(model: onnx.ModelProto) -> Network:
        """Copies the nodes, so that editing the network leaves the model alone."""
        constants = {entry.name: numpy_helper.to_array(entry) for entry in model.graph.initializer}
        nodes = []
        for node in model.graph.node:
            if node.op_type == "Constant" and node.attribute[0].name == "value":
                constants[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
                continue
            copied = onnx.NodeProto()
            copied.CopyFrom(node)
            nodes.append(copied)
        _name_nodes(nodes)
        return Network(nodes, constants, model)

    def index(self) -> None:
        self.makers = {name: node for node in self.nodes for name in node.output}
        self.readers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
        for node in self.nodes:
            for name in node.input:
                self.readers[name].append(node)
        self.inputs = [entry.name for entry in self.source.graph.input if entry.name not in self.constants]
        self.outputs = [entry.name for entry in self.source.graph.output]

    def shapes(self) -> dict[str, tuple[int | None, ...]]:
        """Shapes by tensor name, as far as the model or shape inference knows them; None where a size is open."""
        inferred = onnx.shape_inference.infer_shapes(self.source)
        found: dict[str, tuple[int | None, ...]] = {}
        for entry in (*inferred.graph.input, *inferred.graph.value_info, *inferred.graph.output):
            tensor = entry.type.tensor_type
            if tensor.HasField("shape"):
                found[entry.name] = tuple(dim.dim_value or None for dim in tensor.shape.dim)
        return found

    def sole_reader(self, tensor: str) -> onnx.NodeProto | None:
        """The node that reads a tensor, if exactly one does and it is no output of the graph."""
        readers = self.readers.get(tensor, [])
        return readers[0] if len(readers) == 1 and tensor not in self.outputs else None

    def remove_unread(self) -> None:
        """Drops nodes that no output depends on."""
        needed, kept = set(self.outputs), []
        for node in reversed(self.nodes):
            if needed.intersection(node.output):
                kept.append(node)
                needed.update(node.input)
        self.nodes = kept[::-1]
        self.index()

    def model(self) -> onnx.ModelProto:
        """The whole graph with the source's inputs, outputs and metadata."""
        graph = self.source.graph
        used = {name for node in self.nodes for name in node.input}
        inputs = [entry for entry in graph.input if entry.name not in self.constants]
        model = _make_model(self.nodes, inputs, list(graph.output), self._initializers(used))
        model.metadata_props.extend(self.source.metadata_props)
        model.producer_name = self.source.producer_name
        return model

    def piece(self, outputs: Mapping[str, int], inputs: Mapping[str, tuple[int, int]] | None = None) -> onnx.ModelProto:
        """The smallest model that computes `outputs`, tensors by name with their ONNX element type, from `inputs`,
        tensors with element type and rank, and from the graph's own inputs where those do not suffice.
        """
        cuts = dict(inputs or {})
        needed, kept = set(outputs), []
        for node in reversed(self.nodes):
            if needed.intersection(node.output) and not cuts.keys() >= needed.intersection(node.output):
                kept.append(node)
                needed.update(node.input)
        kept.reverse()
        entries = [entry for entry in self.source.graph.input if entry.name in needed and entry.name not in cuts]
        entries += [
            helper.make_tensor_value_info(name, kind, [f"{name}_{axis}" for axis in range(rank)])
            for name, (kind, rank) in cuts.items()
            if name in needed
        ]
        results = [helper.make_tensor_value_info(name, kind, None) for name, kind in outputs.items()]
        return _make_model(kept, entries, results, self._initializers(needed))

    def _initializers(self, names: set[str]) -> list[onnx.TensorProto]:
        return [numpy_helper.from_array(array, name) for name, array in self.constants.items() if name in names]


def attribute(node: onnx.NodeProto, name: str, default: Any) -> Any:
    for entry in node.attribute:
        if entry.name == name:
            return helper.get_attribute_value(entry)
    return default


def _name_nodes(nodes: list[onnx.NodeProto]) -> None:
    """Every node gets a name of its own: reports and options speak of nodes by name."""
    taken: set[str] = set()
    for node in nodes:
        base = node.name or f"{node.op_type}_{node.output[0]}"
        name, count = base, 1
        while name in taken:
            name, count = f"{base}_{count}", count + 1
        node.name = name
        taken.add(name)


def _make_model(
    nodes: list[onnx.NodeProto], inputs: list[onnx.ValueInfoProto], outputs: list[onnx.ValueInfoProto],
    initializers: list[onnx.TensorProto],
) -> onnx.ModelProto:  # fmt: skip
    graph = helper.make_graph(nodes, "edgetune", inputs, outputs, initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=MAX_IR_VERSION)

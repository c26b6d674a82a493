"""A block as a file of its own, to be run and looked at alone."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgetune.core.tensors import Array
from edgetune.graph.severing import GIVEN

Units = Mapping[str, tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]]


def with_units(piece: onnx.ModelProto, units: Units) -> onnx.ModelProto:
    """A copy that takes and gives tensors in the reference's units: `units` has a scale and a shift per channel for
    tensors whose reference is value * scale + shift.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(piece)
    graph = copy.graph
    before: list[onnx.NodeProto] = []
    after: list[onnx.NodeProto] = []
    for entry in graph.input:
        tensor = entry.name.removesuffix(GIVEN)
        if tensor in units and tensor != entry.name:
            scale, shift = _constants(graph, entry, units[tensor])
            _rename(graph, entry.name, f"{tensor}_own")
            before.append(helper.make_node("Sub", [entry.name, shift], [f"{tensor}_moved"]))
            before.append(helper.make_node("Div", [f"{tensor}_moved", scale], [f"{tensor}_own"]))
    for entry in graph.output:
        if entry.name in units:
            scale, shift = _constants(graph, entry, units[entry.name])
            _rename(graph, entry.name, f"{entry.name}_own")
            after.append(helper.make_node("Mul", [f"{entry.name}_own", scale], [f"{entry.name}_scaled"]))
            after.append(helper.make_node("Add", [f"{entry.name}_scaled", shift], [entry.name]))
    nodes = [*before, *graph.node, *after]
    del graph.node[:]
    graph.node.extend(nodes)
    return copy


def constant_piece(piece: onnx.ModelProto, value: Array) -> onnx.ModelProto:
    """A model with the inputs and the output of `piece` that gives `value` whatever it is fed: what a reference that is
    no ONNX file answered.
    """
    (output,) = piece.graph.output
    node = helper.make_node("Identity", [f"{output.name}_recorded"], [output.name])
    recorded = numpy_helper.from_array(value.astype(np.float32), f"{output.name}_recorded")
    result = helper.make_tensor_value_info(output.name, TensorProto.FLOAT, list(value.shape))
    graph = helper.make_graph([node], "recorded", list(piece.graph.input), [result], [recorded])
    return helper.make_model(graph, opset_imports=piece.opset_import, ir_version=piece.ir_version)


def _constants(
    graph: onnx.GraphProto, entry: onnx.ValueInfoProto, units: tuple[Array, Array]
) -> tuple[str, str]:  # fmt: skip
    rank = len(entry.type.tensor_type.shape.dim)
    names = f"{entry.name}_unit_scale", f"{entry.name}_unit_shift"
    for name, values in zip(names, units, strict=True):
        shaped = values.reshape(-1, *[1] * (rank - 2)) if rank in (2, 4) else values
        graph.initializer.append(numpy_helper.from_array(shaped.astype(np.float32), name))
    return names


def _rename(graph: onnx.GraphProto, old: str, new: str) -> None:
    for node in graph.node:
        for names in (node.input, node.output):
            for index, name in enumerate(names):
                names[index] = new if name == old else name

"""Two ONNX files of one network whose tensors have other names: which tensor of the one is which of the other."""

from __future__ import annotations

from collections.abc import Mapping

import onnx

from edgetune.core.errors import ModelError
from edgetune.graph.blocks import BlockGraph, agree, common_cuts

_SHARED = 0.5  # of the layers; with fewer in common, names that agree do so by chance


def aligned(reference: BlockGraph, candidate: BlockGraph) -> BlockGraph:
    """The candidate with the reference's names for the outputs of layers: itself where it has them already, else by
    the order of layers, if all types and shapes agree.

    Raises:
        ModelError: they take other inputs, or cannot be aligned.
    """
    _check_inputs(reference, candidate)
    ends = candidate.layer_ends()
    shared = set(common_cuts(reference, candidate))
    if sum(end in shared for _, end in ends) >= _SHARED * max(len(ends), 1) and _same_input(reference, candidate):
        return candidate
    names = {} if ends and all(end in shared for _, end in ends) else _by_order(reference, candidate)
    names.update(zip(candidate.network.inputs, reference.network.inputs, strict=True))
    model = _renamed(candidate.model, names)
    return BlockGraph(model)


def _same_input(reference: BlockGraph, candidate: BlockGraph) -> bool:
    return reference.network.inputs == candidate.network.inputs


def _check_inputs(reference: BlockGraph, candidate: BlockGraph) -> None:
    described = [_inputs(graph) for graph in (reference, candidate)]
    if described[0] != described[1] or len(described[0]) != 1:
        raise ModelError(f"the reference takes {described[0]}, the candidate {described[1]}: not the same one input.")


def _inputs(graph: BlockGraph) -> list[str]:
    """Type and rank of each input."""
    entries = {entry.name: entry.type.tensor_type for entry in graph.model.graph.input}
    return [
        f"{onnx.TensorProto.DataType.Name(entries[name].elem_type).lower()} of rank {len(entries[name].shape.dim)}"
        for name in graph.network.inputs
    ]


def _by_order(reference: BlockGraph, candidate: BlockGraph) -> dict[str, str]:
    ours, theirs = reference.layer_ends(), candidate.layer_ends()
    if len(ours) != len(theirs) or not ours:
        raise ModelError(
            f"the two have no names in common, and {len(ours)} and {len(theirs)} layers: they cannot be aligned."
        )
    names = {}
    for number, ((node, end), (other, found)) in enumerate(zip(ours, theirs, strict=True), start=1):
        shapes = reference.shape(end), candidate.shape(found)
        known = shapes[0] is not None and shapes[1] is not None and agree(shapes[0], shapes[1])
        if node.op_type != other.op_type or not known:
            raise ModelError(
                f"the two have no names in common, and layer {number} is {node.op_type} {_shape(shapes[0])} in the "
                f"reference, {other.op_type} {_shape(shapes[1])} in the candidate: they cannot be aligned."
            )
        names[found] = end
        if _first_reader(reference, node) == _first_reader(candidate, other):
            names[other.output[0]] = node.output[0]
    return names


def _first_reader(graph: BlockGraph, product: onnx.NodeProto) -> str:
    """The operator behind a product: of one with a batch norm of its own the output is another."""
    readers = graph.network.readers.get(product.output[0], [])
    return str(readers[0].op_type) if readers else ""


def _shape(shape: tuple[int | None, ...] | None) -> str:
    return "of unknown shape" if shape is None else str(tuple("any" if size is None else size for size in shape))


def _renamed(model: onnx.ModelProto, names: Mapping[str, str]) -> onnx.ModelProto:
    """A copy with tensors under other names; what had one of these names before gets another."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    wanted = {old: new for old, new in names.items() if old != new}
    made = {name for node in copy.graph.node for name in node.output}
    made |= {entry.name for entry in (*copy.graph.initializer, *copy.graph.input)}
    full = {**{new: f"{new}_candidate" for new in wanted.values() if new in made}, **wanted}
    for node in copy.graph.node:
        for names_of_node in (node.input, node.output):
            for index, name in enumerate(names_of_node):
                names_of_node[index] = full.get(name, name)
    graph = copy.graph
    for entry in (*graph.input, *graph.output, *graph.value_info, *graph.initializer):
        entry.name = full.get(entry.name, entry.name)
    return copy

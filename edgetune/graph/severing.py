"""Graphs edited to show what is inside them: with more outputs, or severed into blocks.

A tensor that is quantized where it is made is looked at behind its QuantizeLinear: an output in front of it would keep
the runtime from computing the layer in integers, and what is compared would not be what ships.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

import onnx
from onnx import TensorProto, helper, numpy_helper

from edgetune.graph.blocks import PRODUCTS, Block, BlockGraph, captured_names
from edgetune.graph.network import Network
from edgetune.graph.provenance import module_of

GIVEN = "_given"
_RAW = "_raw"


def tapped(graph: BlockGraph, tensors: Collection[str]) -> onnx.ModelProto:
    """The whole graph from its own inputs, with `tensors` as float32 outputs under their names."""
    return _Surgeon(graph, tensors, severs=False).model(list(tensors))


def severed(graph: BlockGraph, cuts: Collection[str], outputs: Collection[str] | None = None) -> onnx.ModelProto:
    """The blocks side by side: each makes its tensor under its name from the inputs `X_given`, float32, of the cuts X
    before it, and from the graph's own inputs. `outputs` None makes all.
    """
    return _Surgeon(graph, cuts, severs=True).model(list(cuts if outputs is None else outputs))


def find_blocks(graph: BlockGraph, cuts: Collection[str]) -> tuple[Block, ...]:
    """One block per cut, in the order of `cuts`."""
    surgeon = _Surgeon(graph, cuts, severs=True)
    return tuple(surgeon.block(tensor) for tensor in cuts)


def single_block(graph: BlockGraph, block: Block, cuts: Collection[str]) -> onnx.ModelProto:
    """One block alone; it takes all `block.inputs`, read or not: cuts as `X_given`, the graph's own as they are."""
    return _Surgeon(graph, cuts, severs=True).model([block.tensor], block.inputs)


class _Surgeon:
    """Edits a copy: X becomes X_raw where it is made, its observed value gets its name, and where the graph is severed
    readers read X_given instead.
    """

    def __init__(self, graph: BlockGraph, cuts: Collection[str], *, severs: bool) -> None:
        self._graph = graph
        self._cuts = list(cuts)
        self._severs = severs
        network = Network.of_model(graph.model)
        self._hidden = {name for name in self._cuts if name not in network.makers}
        # What is renamed where it is made: the cut X, or X_q where only that exists.
        self._names = {f"{name}_q" if name in self._hidden else name: name for name in self._cuts}
        self._source = network
        self._own = {node.name for node in network.nodes}
        self._nodes: list[onnx.NodeProto] = []
        for name in self._cuts if severs else ():
            self._nodes += self._feeding(name)
        for node in network.nodes:
            made = [name for name in node.output if name in self._names]
            self._rewire(node)
            self._nodes.append(node)
            for name in made:
                self._nodes += self._observing(name)

    def _rewire(self, node: onnx.NodeProto) -> None:
        reads = "_fed" if self._severs else _RAW
        for index, name in enumerate(node.input):
            if name in self._names:
                node.input[index] = f"{name}{reads}"
        for index, name in enumerate(node.output):
            if name in self._names:
                node.output[index] = f"{name}{_RAW}"

    def _observing(self, renamed: str) -> list[onnx.NodeProto]:
        """Nodes from what was made, `X_raw`, to X as float32."""
        tensor, made = self._names[renamed], f"{renamed}{_RAW}"
        quantizer = self._graph.quantizer(tensor)
        if tensor in self._hidden and quantizer is not None:
            return [_like(quantizer, "DequantizeLinear", made, tensor)]
        if quantizer is not None:
            pair = [_like(quantizer, "QuantizeLinear", made, f"{tensor}_seen_q")]
            return [*pair, _like(quantizer, "DequantizeLinear", f"{tensor}_seen_q", tensor)]
        if self._graph.types.get(tensor) == TensorProto.FLOAT:
            return [helper.make_node("Identity", [made], [tensor])]
        return [helper.make_node("Cast", [made], [tensor], to=TensorProto.FLOAT)]

    def _feeding(self, tensor: str) -> list[onnx.NodeProto]:
        """Nodes from the input `X_given` to what readers of X read."""
        given = f"{tensor}{GIVEN}"
        quantizer = self._graph.quantizer(tensor)
        if tensor in self._hidden and quantizer is not None:
            return [_like(quantizer, "QuantizeLinear", given, f"{tensor}_q_fed")]
        if self._graph.types.get(tensor) == TensorProto.FLOAT:
            return [helper.make_node("Identity", [given], [f"{tensor}_fed"])]
        kind = self._graph.types[tensor]
        return [helper.make_node("Cast", [given], [f"{tensor}_fed"], to=kind)]

    def block(self, tensor: str) -> Block:
        kept, leaves = self._needed([tensor])
        own = [node for node in kept if node.name in self._own]
        product = next((node for node in reversed(own) if node.op_type in PRODUCTS), None)
        last = product if product is not None else own[-1]
        given = tuple(name for name in self._cuts if f"{name}{GIVEN}" in leaves)
        images = tuple(name for name in self._source.inputs if name in leaves)
        module = module_of(last) or next((module_of(node) for node in reversed(own) if module_of(node)), "")
        nodes = tuple(node.name for node in own)
        return Block(last.name, module, tensor, (*images, *given), nodes, product is not None)

    def _needed(self, outputs: Iterable[str]) -> tuple[list[onnx.NodeProto], set[str]]:
        """Nodes that the outputs depend on, in graph order, and all names that these read."""
        needed, kept = set(outputs), []
        for node in reversed(self._nodes):
            if needed.intersection(node.output):
                kept.append(node)
                needed.update(node.input, captured_names([node]))
        return kept[::-1], needed

    def model(self, outputs: list[str], inputs: Iterable[str] = ()) -> onnx.ModelProto:
        """`inputs` are declared even where nothing reads them."""
        kept, needed = self._needed(outputs)
        wanted = needed | set(inputs) | {f"{name}{GIVEN}" for name in inputs}
        source = self._source.source
        entries = [entry for entry in source.graph.input if entry.name in wanted & set(self._source.inputs)]
        entries += [
            helper.make_tensor_value_info(f"{name}{GIVEN}", TensorProto.FLOAT, _open_axes(name, self._graph.rank(name)))
            for name in self._cuts
            if self._severs and f"{name}{GIVEN}" in wanted
        ]
        results = [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, _open_axes(f"{name}_out", self._graph.rank(name)))
            for name in outputs
        ]
        constants = [
            numpy_helper.from_array(array, name) for name, array in self._source.constants.items() if name in needed
        ]
        return helper.make_model(
            helper.make_graph(kept, "blocks", entries, results, constants),
            opset_imports=source.opset_import, functions=source.functions, ir_version=source.ir_version,
        )  # fmt: skip


def _open_axes(name: str, rank: int | None) -> list[str]:
    return [f"{name}_{axis}" for axis in range(rank or 0)]


def _like(quantizer: onnx.NodeProto, op_type: str, source: str, output: str) -> onnx.NodeProto:
    """A node with the scale, zero point and axis of `quantizer`."""
    made = onnx.NodeProto()
    made.CopyFrom(quantizer)
    made.op_type, made.name = op_type, f"{output}_observed"
    made.input[0] = source
    del made.output[:], made.metadata_props[:]
    made.output.append(output)
    kept = [entry for entry in made.attribute if entry.name == "axis"]
    del made.attribute[:]
    made.attribute.extend(kept)
    return made

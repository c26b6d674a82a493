"""Where an ONNX tensor comes from in PyTorch, by the metadata "namespace" that the export keeps on nodes.

A namespace reads `: Root/backbone: EfficientNet/backbone.bn1: BatchNorm2d/relu: aten.relu.default`: the modules from
the outermost to the innermost, each with its path, and the operation last.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import onnx

from edgetune.graph.compose import HEAD_MODULES
from edgetune.graph.network import Network

_KEY = "namespace"
# A convolution that a batch norm was folded into bears the norm's name, but reads the convolution's input. The modules
# around the two have that input.
_FOLDED = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})


@dataclass(frozen=True)
class ModuleTensor:
    """A module's output, or its input where `is_input`, and the ONNX tensor that holds the same."""

    tensor: str
    module: str
    is_input: bool


def module_of(node: onnx.NodeProto) -> str:
    """The path of the innermost module that a node belongs to; empty for the root, and where nothing is known."""
    for entry in node.metadata_props:
        if entry.key == _KEY:
            modules = entry.value.split("/")[:-1]
            return modules[-1].partition(":")[0].strip() if modules else ""
    return HEAD_MODULES.get(node.name, "")


def module_tensors(network: Network, tensors: Iterable[str]) -> tuple[ModuleTensor, ...]:
    """For each of `tensors` a module whose output or input it should be, in the order given; none for others.

    A tensor is a module's output where its maker is the last node of the module, and its input where its only reader
    is the first; outputs and outer modules are preferred. Whoever hooks the modules must still see that each is called
    once and that the shapes agree: a module called twice has nodes in two places.
    """
    first: dict[str, onnx.NodeProto] = {}
    last: dict[str, onnx.NodeProto] = {}
    for node in network.nodes:
        for path in _with_parents(module_of(node)):
            first.setdefault(path, node)
            last[path] = node
    outputs: dict[str, str] = {}
    inputs: dict[str, str] = {}
    for path in sorted(last, key=len):
        outputs.setdefault(str(last[path].output[0]), path)
        data = [name for name in first[path].input if name in network.makers]
        is_outer = module_of(first[path]) != path
        if len(data) == 1 and (is_outer or first[path].op_type not in _FOLDED):
            inputs.setdefault(data[0], path)
    found = []
    for name in tensors:
        if name in outputs:
            found.append(ModuleTensor(name, outputs[name], is_input=False))
        elif name in inputs:
            found.append(ModuleTensor(name, inputs[name], is_input=True))
    return tuple(found)


def _with_parents(path: str) -> list[str]:
    parts = path.split(".") if path else []
    return [".".join(parts[: count + 1]) for count in range(len(parts))]

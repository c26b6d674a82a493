"""What runs inside an engine: its kernels with their datatypes, and the proof of INT8 from them.

Two sources: TensorRT-RTX's verbose log of the build (`Layers:`, one line a kernel; it takes no GPU), and the JSON of
TensorRT's EngineInspector, whose keys differ between TensorRT 10 (`Format/Datatype`) and 11 (`Datatype`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from edgetune.core.engine_record import EngineLayer, PrecisionProof
from edgetune.core.errors import EngineError

_DUMP_LINE = re.compile(
    r"Name: (?P<name>.*?), LayerType: (?P<kind>\w+), Inputs: \[(?P<inputs>.*?)\], Constants: \[.*?\], "
    r"Outputs: \[(?P<outputs>.*?)\], TacticName: .*?, Metadata: (?P<metadata>.*)"
)
_DUMP_TYPE = re.compile(r"Datatype: (\w+)")
_NODE_MARK = "[ONNX Layer: "
_UNNAMED = "node_of_"  # what the parser puts before the output's name where a node has no name
# The type is one word of "Channel major FP16 format where channel % 8 == 0", or all of "Int8".
_WORDS = {
    "int8": "int8", "half": "fp16", "fp16": "fp16", "float16": "fp16", "float": "fp32", "fp32": "fp32",
    "float32": "fp32",
}  # fmt: skip
# Kinds of kernels that compute a convolution, likeliest first: one of 1 x 1 may become a matrix product.
_KINDS = (re.compile(r"conv|correlation", re.IGNORECASE), re.compile(r"gemm|matmul|matrix|fusion", re.IGNORECASE))


class LayerListError(EngineError):
    """What the backend tells of an engine's layers has another form than is known."""


def layers_from_dump(text: str) -> tuple[EngineLayer, ...]:
    """Kernels of TensorRT-RTX's verbose `Layers:` message, in execution order.

    Raises:
        LayerListError: there is no such list, or none of it can be read: its shape is no documented one.
    """
    # Not splitlines: it also splits at the separator characters inside the metadata.
    matches = (_DUMP_LINE.fullmatch(line) for line in text.split("\n")[1:])
    layers = tuple(
        EngineLayer(
            match["name"],
            match["kind"],
            tuple(_DUMP_TYPE.findall(match["inputs"])),
            tuple(_DUMP_TYPE.findall(match["outputs"])),
            _nodes(match["metadata"]),
        )
        for match in matches
        if match is not None
    )
    if not layers:
        raise LayerListError("the builder gave no list of the engine's layers that can be read, so INT8 is not proved.")
    return layers


def layers_from_inspector(text: str) -> tuple[EngineLayer, ...]:
    """Kernels of `EngineInspector.get_engine_information(JSON)`, in execution order.

    Raises:
        LayerListError: the text is not the inspector's JSON.
    """
    try:
        entries = json.loads(text, strict=False)["Layers"]  # the separators in it may be bare control characters
    except (ValueError, KeyError, TypeError) as error:
        raise LayerListError(f"the engine's layer list cannot be read: {error}.") from error
    return tuple(_inspected(entry) for entry in entries if isinstance(entry, dict))


def _inspected(entry: Mapping[str, Any]) -> EngineLayer:
    name = str(entry.get("Name", ""))
    nodes = _nodes(str(entry.get("Metadata", ""))) or tuple(name.split(" + "))
    inputs, outputs = (tuple(_datatype(tensor) for tensor in entry.get(key, ())) for key in ("Inputs", "Outputs"))
    weights = str((entry.get("Weights") or {}).get("Type", ""))
    if inputs and weights and _word(inputs[0]) is None:
        inputs = (weights, *inputs[1:])  # "N/A due to dynamic shapes": a kernel's weights have the type it reads
    return EngineLayer(name, str(entry.get("LayerType", "")), inputs, outputs, nodes)


def _datatype(tensor: Mapping[str, Any]) -> str:
    return str(tensor.get("Datatype") or tensor.get("Format/Datatype") or "")


def _nodes(metadata: str) -> tuple[str, ...]:
    """`[ONNX Layer: a][ONNX Layer: b]__gemm_from_conv1x1`, with separator characters between them or without."""
    return tuple(part.rpartition("]")[0] for part in metadata.split(_NODE_MARK)[1:])


def prove(layers: Sequence[EngineLayer], planned: Mapping[str, str], causes: Mapping[str, str]) -> PrecisionProof:
    """Compares the type that each convolution reads with the plan.

    `planned` has each ONNX convolution's name and the type it is meant to run in: `int8`, `fp16` or `fp32`;
    `causes` tells, by the same names, what is likely to keep one from INT8.
    """
    seen = {name: _precision(layers, name) for name in planned}
    lost = {
        name: f"runs in {seen[name]}: {causes.get(name) or 'the backend found no INT8 kernel for it'}"
        for name, meant in planned.items()
        if meant == "int8" and seen[name] in ("fp16", "fp32")
    }
    unseen = tuple(name for name, found in seen.items() if found is None)
    unproved = tuple(name for name in unseen if planned[name] == "int8")
    return PrecisionProof(_count(planned.values()), _count(seen.values()), lost, unseen, unproved)


def _count(found: Iterable[str | None]) -> dict[str, int]:
    words = list(found)
    return {word: words.count(word) for word in ("int8", "fp16", "fp32")}


def _precision(layers: Sequence[EngineLayer], node: str) -> str | None:
    """The type that a convolution's kernel reads; None where no kernel is this convolution's alone."""
    names = {node, f"{_UNNAMED}{node}"}
    own = [layer for layer in layers if not names.isdisjoint(layer.nodes) and layer.inputs]
    kernels = (layer for kind in _KINDS for layer in own if kind.search(layer.kind))
    return next((_word(layer.inputs[0]) for layer in kernels), None)


def _word(datatype: str) -> str | None:
    words = datatype.lower().replace(":", " ").split()
    return next((_WORDS[word] for word in words if word in _WORDS), None)

"""An ONNX classifier that also gives tensors from inside, to see how far along the way it is still right."""

from __future__ import annotations

import onnx

from edgetune.core.tensors import FEATURES_OUTPUT

NORMALISED_TAP = "normalised"

_FIRST_LAYERS = ("Conv", "ConvInteger", "Gemm", "MatMul")
# They only pad, round or convert the image on its way into the first layer.
_PASSED = ("Cast", "Pad", "QuantizeLinear")


def with_taps(model: onnx.ModelProto) -> tuple[onnx.ModelProto, dict[str, str]]:
    """Returns a copy with extra outputs, and the tensor's name for each of `normalised` and `features` that it has."""
    tapped = onnx.ModelProto()
    tapped.CopyFrom(model)
    makers = {name: node for node in model.graph.node for name in node.output}
    names = {NORMALISED_TAP: normalised_tensor(model), FEATURES_OUTPUT: FEATURES_OUTPUT}
    found = {tap: name for tap, name in names.items() if name in makers}
    outputs = {entry.name for entry in model.graph.output}
    # ONNX Runtime infers the types of outputs that state none.
    tapped.graph.output.extend(onnx.ValueInfoProto(name=name) for name in found.values() if name not in outputs)
    return tapped, found


def normalised_tensor(model: onnx.ModelProto) -> str:
    """The tensor that the first layer with weights reads, before it is padded or quantized; empty where none does."""
    makers = {name: node for node in model.graph.node for name in node.output}
    first = next((node for node in model.graph.node if node.op_type in _FIRST_LAYERS), None)
    name = str(first.input[0]) if first is not None else ""
    while name in makers and _is_passed(makers[name], makers):
        name = str(makers[name].input[0])
    return name


def _is_passed(node: onnx.NodeProto, makers: dict[str, onnx.NodeProto]) -> bool:
    """A DequantizeLinear undoes what a QuantizeLinear did; one that reads the pixels themselves normalises them."""
    if node.op_type == "DequantizeLinear":
        return node.input[0] in makers and makers[node.input[0]].op_type == "QuantizeLinear"
    return node.op_type in _PASSED

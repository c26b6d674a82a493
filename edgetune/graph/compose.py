"""ONNX graphs put together: a head behind the features, labels and preprocessing in the metadata."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from google.protobuf.message import DecodeError
from onnx import TensorProto, helper, numpy_helper

from edgetune.core.config import to_dict
from edgetune.core.errors import ModelError, first_line
from edgetune.core.files import canonical_json
from edgetune.core.preprocess import PreprocessSpec
from edgetune.core.tensors import FEATURES_OUTPUT, LOGITS_OUTPUT

OPSET = 20
MAX_IR_VERSION = 10

METADATA_CLASSES = "edgetune.classes"
METADATA_PREPROCESS = "edgetune.preprocess"
_HEAD_NODE, _HIDDEN_NODE, _RELU_NODE = "head", "head.hidden", "head.relu"
# The head is no part of the export: which modules of the PyTorch classifier its nodes are.
HEAD_MODULES = {_HEAD_NODE: "head", _HIDDEN_NODE: "hidden.0", _RELU_NODE: "hidden.1"}

Floats = npt.NDArray[np.float32]


def add_head(
    features_model: onnx.ModelProto, weight: Floats, bias: Floats, hidden: tuple[Floats, Floats] | None = None
) -> onnx.ModelProto:
    """Returns a copy whose output is `logits` float32 `(N, classes)` = inner @ weight.T + bias.

    `hidden` is weight `(H, D)` and bias `(H,)` of a hidden layer: then inner is relu(features @ weight.T + bias), and
    without one the features.

    Raises:
        ModelError: the head's width is not the features' width.
    """
    model = onnx.ModelProto()
    model.CopyFrom(features_model)
    (output,) = model.graph.output
    batch, width = output.type.tensor_type.shape.dim
    first = weight if hidden is None else hidden[0]
    if width.dim_value != first.shape[1]:
        raise ModelError(f"the head takes {first.shape[1]} features, the backbone gives {width.dim_value}.")
    inner = FEATURES_OUTPUT
    if hidden is not None:
        _add_layer(model.graph, _HIDDEN_NODE, inner, hidden, "head.hidden")
        model.graph.node.append(helper.make_node("Relu", ["head.hidden"], ["head.inner"], name=_RELU_NODE))
        inner = "head.inner"
        for name in ("head.hidden", inner):
            shape = [batch.dim_param, len(hidden[1])]
            model.graph.value_info.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
    _add_layer(model.graph, _HEAD_NODE, inner, (weight, bias), LOGITS_OUTPUT)
    logits = helper.make_tensor_value_info(LOGITS_OUTPUT, TensorProto.FLOAT, [batch.dim_param, len(bias)])
    model.graph.value_info.append(output)
    del model.graph.output[:]
    model.graph.output.append(logits)
    check_model(model)
    return model


def _add_layer(graph: onnx.GraphProto, node: str, source: str, layer: tuple[Floats, Floats], result: str) -> None:
    names = [f"{node}.weight", f"{node}.bias"]
    graph.initializer.extend(numpy_helper.from_array(array, name) for array, name in zip(layer, names, strict=True))
    graph.node.append(helper.make_node("Gemm", [source, *names], [result], name=node, transB=1))


def set_metadata(model: onnx.ModelProto, classes: tuple[str, ...], spec: PreprocessSpec) -> None:
    """Puts labels and preprocessing into the model, so that the file alone is enough to use it."""
    values = {METADATA_CLASSES: list(classes), METADATA_PREPROCESS: to_dict(spec)}
    helper.set_model_props(model, {key: canonical_json(value).decode() for key, value in values.items()})
    model.producer_name = "edgetune"


def strip_debug_information(model: onnx.ModelProto) -> None:
    """Removes the exporter's stack traces, which hold paths of the machine; the layer names stay."""
    model.doc_string = ""
    graph = model.graph
    graph.doc_string = ""
    for entry in (graph, *graph.input, *graph.output, *graph.value_info, *graph.initializer, *graph.node):
        entry.doc_string = ""
        kept = [prop for prop in entry.metadata_props if prop.key == "namespace"]
        del entry.metadata_props[:]
        entry.metadata_props.extend(kept)


def check_model(model: onnx.ModelProto) -> None:
    """Raises `ModelError` unless the model is valid ONNX of an opset and IR version that all our runtimes load."""
    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError as error:
        raise ModelError(f"the composed ONNX model is invalid: {error}") from error
    (opset,) = [entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")]
    if opset > OPSET or model.ir_version > MAX_IR_VERSION:
        raise ModelError(
            f"the ONNX model has opset {opset} and IR version {model.ir_version}, "
            f"expected at most {OPSET} and {MAX_IR_VERSION}."
        )


def read_model(path: Path) -> onnx.ModelProto:
    """Raises `ModelError` where the file is no ONNX."""
    try:
        return onnx.load(path)
    except (DecodeError, ValueError) as error:
        raise ModelError(f"{path} is not ONNX, or was cut off: {first_line(error)}") from error


def write_model(path: Path, model: onnx.ModelProto) -> None:
    path.write_bytes(model.SerializeToString())

"""Classifiers made elsewhere, given the image input that edgetune's own graphs have."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import TensorProto, helper, numpy_helper

from edgetune.core.config import from_dict
from edgetune.core.errors import ConfigError, ModelError, first_line
from edgetune.core.preprocess import PreprocessSpec
from edgetune.core.tensors import IMAGE_INPUT
from edgetune.graph.compose import METADATA_PREPROCESS
from edgetune.graph.inspect import parse_metadata


def load_classifier(path: Path) -> onnx.ModelProto:
    """Reads a float32 ONNX classifier and checks that it is one.

    Raises:
        ModelError: the file is no valid ONNX, or has no nodes.
    """
    if not path.is_file():
        raise ModelError(f"{path} does not exist or is not a file.")
    try:
        model = onnx.load(path)
        onnx.checker.check_model(model)
    except (OSError, DecodeError, onnx.checker.ValidationError, ValueError) as error:
        raise ModelError(f"{path} is not an ONNX model that can be read: {first_line(error)}") from error
    if not model.graph.node:
        raise ModelError(f"{path} holds no ONNX graph.")
    return model


def embedded_preprocess(model: onnx.ModelProto) -> PreprocessSpec | None:
    """The preprocessing that edgetune wrote into the model's metadata; None in models made elsewhere."""
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    content = parse_metadata(metadata.get(METADATA_PREPROCESS))
    if content is None:
        return None
    try:
        return from_dict(PreprocessSpec, content, METADATA_PREPROCESS)
    except ConfigError as error:
        raise ModelError(f"the model's own preprocessing cannot be used: {error}") from error


def image_size(model: onnx.ModelProto) -> int:
    """The side of the square images that a model with one float input `(N, 3, S, S)` takes.

    Raises:
        ModelError: its input is another.
    """
    constants = {entry.name for entry in model.graph.initializer}
    inputs = [entry for entry in model.graph.input if entry.name not in constants]
    kinds = [_describe(entry) for entry in inputs]
    expected = "expected one input, float (N, 3, S, S) with a fixed size S"
    if len(inputs) != 1 or inputs[0].type.tensor_type.elem_type != TensorProto.FLOAT:
        raise ModelError(f"the model's inputs are {', '.join(kinds) or 'none'}; {expected}.")
    dims = [dim.dim_value for dim in inputs[0].type.tensor_type.shape.dim]
    if len(dims) != 4 or dims[1] != 3 or dims[2] != dims[3] or dims[2] < 1:
        raise ModelError(f"the model's input is {kinds[0]}; {expected}.")
    return int(dims[2])


def with_image_input(model: onnx.ModelProto, spec: PreprocessSpec) -> onnx.ModelProto:
    """A copy that takes `image` uint8 `(N, H, W, 3)` and normalises inside, with the batch left open."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    constants = {entry.name for entry in copy.graph.initializer}
    (old,) = [entry for entry in copy.graph.input if entry.name not in constants]
    size = spec.crop_size
    del copy.graph.input[:]
    copy.graph.input.append(helper.make_tensor_value_info(IMAGE_INPUT, TensorProto.UINT8, ["batch", size, size, 3]))
    # Constants as wide as a row: ONNX Runtime moves the transpose behind them, where three numbers at a time are slow.
    for name, values in (("pixel_mean", spec.mean), ("pixel_std", spec.std)):
        row = np.repeat(np.array(values, np.float32).reshape(1, 3, 1, 1) * 255.0, size, axis=3)
        copy.graph.initializer.append(numpy_helper.from_array(row.astype(np.float32), name))
    nodes = [
        helper.make_node("Cast", [IMAGE_INPUT], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["pixels"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("Sub", ["planes", "pixel_mean"], ["centred"]),
        helper.make_node("Div", ["centred", "pixel_std"], [old.name]),
    ]
    rest = list(copy.graph.node)
    del copy.graph.node[:]
    copy.graph.node.extend([*nodes, *rest])
    for output in copy.graph.output:
        if output.type.tensor_type.shape.dim:
            output.type.tensor_type.shape.dim[0].dim_param = "batch"
    del copy.graph.value_info[:]
    return copy


def _describe(value: onnx.ValueInfoProto) -> str:
    tensor = value.type.tensor_type
    shape = ", ".join(dim.dim_param or str(dim.dim_value) for dim in tensor.shape.dim)
    return f"{value.name} {TensorProto.DataType.Name(tensor.elem_type).lower()} ({shape})"

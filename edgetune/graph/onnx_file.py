"""An ONNX file before another parser gets it: whole, finite, and with all its weights where they may be.

TensorRT's parser accepts an empty file and a text file, and reads weights from wherever a file says.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import AttributeProto, TensorProto, external_data_helper, helper, numpy_helper

from edgetune.core.errors import ModelError, first_line
from edgetune.core.files import sha256_of_bytes, sha256_of_file

_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE)
_NUMBERS = {"value_float": np.float32, "value_floats": np.float32, "value_int": np.int64, "value_ints": np.int64}


@dataclass(frozen=True)
class OnnxFile:
    """`model` has its constants as initializers, whichever way the file holds them. `sha256` is of the file and of the
    weights beside it; `is_single` says that there are none beside it.
    """

    path: Path
    model: onnx.ModelProto
    sha256: str
    is_single: bool


def read_onnx_file(path: Path) -> OnnxFile:
    """Reads a model with its external data, which must lie in the model's own folder.

    Raises:
        ModelError: the file is no valid ONNX, its weights are missing, elsewhere, or not finite.
    """
    model = _parse(path)
    outside = _external_files(model, path)
    digests = [sha256_of_file(path), *(sha256_of_file(file) for file in outside)]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of keys that it does not know, in two lines
            external_data_helper.load_external_data_for_model(model, str(path.parent))
        onnx.checker.check_model(model)
    except (OSError, ValueError, onnx.checker.ValidationError) as error:
        raise ModelError(f"{path} is not valid ONNX: {first_line(error)}") from error
    except TypeError as error:  # names that are not UTF-8 come out of the file as bytes
        raise ModelError(f"{path} is not valid ONNX: a name in it is not text.") from error
    _constants_as_initializers(model)
    _check_weights(model, path)
    sha256 = digests[0] if not outside else sha256_of_bytes("".join(digests).encode())
    return OnnxFile(path, model, sha256, not outside)


def _parse(path: Path) -> onnx.ModelProto:
    if not path.is_file():
        raise ModelError(f"{path} does not exist or is not a file.", hint="give a bundle or an .onnx file")
    try:
        model = onnx.load(path, format="protobuf", load_external_data=False)
    except (OSError, DecodeError, ValueError) as error:
        raise ModelError(f"{path} is not ONNX, or was cut off: {first_line(error)}.") from error
    if not model.graph.node:
        raise ModelError(f"{path} holds no ONNX graph ({path.stat().st_size} bytes).")
    return model


def _external_files(model: onnx.ModelProto, path: Path) -> list[Path]:
    """The files that hold weights; each must be a plain file below the model's folder, not behind a link."""
    root = path.parent.resolve()
    found: dict[Path, None] = {}
    for tensor in _tensors(model):
        if tensor.data_location != TensorProto.EXTERNAL:
            continue
        location = next((entry.value for entry in tensor.external_data if entry.key == "location"), "")
        file = _resolve(root, location)
        if file is None:
            raise ModelError(f"{path}: the weights of {tensor.name!r} lie outside the model's folder, at {location!r}.")
        if not file.is_file():
            raise ModelError(
                f"{path}: the file {location!r} with the weights of {tensor.name!r} is missing.",
                hint="copy the model together with its data files",
            )
        found[file] = None
    return list(found)


def _resolve(root: Path, location: str) -> Path | None:
    """The path below `root` that a location means; None where it means none."""
    try:
        file = (root / location).resolve()
    except (OSError, ValueError, RuntimeError, TypeError):  # too long, a NUL in it, links in a circle, not text
        return None
    return file if location and file.is_relative_to(root) and file != root else None


def _tensors(model: onnx.ModelProto) -> Iterator[TensorProto]:
    yield from _tensors_of_graph(model.graph)
    for function in model.functions:
        yield from _tensors_of_nodes(function.node)


def _tensors_of_graph(graph: onnx.GraphProto) -> Iterator[TensorProto]:
    yield from graph.initializer
    for entry in graph.sparse_initializer:
        yield from (entry.values, entry.indices)
    yield from _tensors_of_nodes(graph.node)


def _tensors_of_nodes(nodes: Iterable[onnx.NodeProto]) -> Iterator[TensorProto]:
    for attribute in (attribute for node in nodes for attribute in node.attribute):
        if attribute.type == AttributeProto.TENSOR:
            yield attribute.t
        yield from attribute.tensors
        for graph in (attribute.g,) if attribute.type == AttributeProto.GRAPH else attribute.graphs:
            yield from _tensors_of_graph(graph)


def _constants_as_initializers(model: onnx.ModelProto) -> None:
    """Constant nodes out of the graph's top level: what looks for weights and scales finds them in one place."""
    kept = []
    for node in model.graph.node:
        tensor = _constant(node)
        if tensor is None:
            kept.append(node)
            continue
        model.graph.initializer.add().CopyFrom(tensor)
        model.graph.initializer[-1].name = node.output[0]
    del model.graph.node[:]
    model.graph.node.extend(kept)


def _constant(node: onnx.NodeProto) -> TensorProto | None:
    if node.op_type != "Constant" or node.domain not in ("", "ai.onnx") or len(node.attribute) != 1:
        return None
    attribute = node.attribute[0]
    if attribute.name == "value":
        tensor: TensorProto = attribute.t
        return tensor
    if attribute.name not in _NUMBERS:
        return None
    return numpy_helper.from_array(np.asarray(helper.get_attribute_value(attribute), _NUMBERS[attribute.name]))


def _check_weights(model: onnx.ModelProto, path: Path) -> None:
    """Readable and finite; only a single number may be infinite, as the padding of a maximum is."""
    for tensor in model.graph.initializer:
        try:
            values = numpy_helper.to_array(tensor)
        except (ValueError, KeyError, TypeError) as error:
            raise ModelError(f"{path}: the weights {tensor.name!r} are not of the shape and type they say.") from error
        if tensor.data_type not in _FLOATS:
            continue
        if np.isnan(values).any() or (values.size > 1 and np.isinf(values).any()):
            raise ModelError(f"{path}: the weights {tensor.name!r} hold NaN or infinity.")

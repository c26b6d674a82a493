"""An ONNX file before another parser gets it: whole, finite, and with all its weights where they may be.

TensorRT's parser accepts an empty file and a text file, and reads weights from wherever a file says.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import TensorProto, external_data_helper, numpy_helper

from edgetune.core.errors import ModelError, first_line
from edgetune.core.files import sha256_of_bytes, sha256_of_file

_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE)


@dataclass(frozen=True)
class OnnxFile:
    """`sha256` is of the file and of the weights beside it; `is_single` says that there are none beside it."""

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
        external_data_helper.load_external_data_for_model(model, str(path.parent))
        onnx.checker.check_model(model)
    except (OSError, ValueError, onnx.checker.ValidationError) as error:
        raise ModelError(f"{path} is not valid ONNX: {first_line(error)}") from error
    _check_finite(model, path)
    sha256 = digests[0] if not outside else sha256_of_bytes("".join(digests).encode())
    return OnnxFile(path, model, sha256, not outside)


def _parse(path: Path) -> onnx.ModelProto:
    if not path.is_file():
        raise ModelError(f"{path} does not exist or is not a file.", hint="give a bundle or an .onnx file")
    try:
        model = onnx.load(path, load_external_data=False)
    except (OSError, DecodeError, ValueError) as error:
        raise ModelError(f"{path} is not ONNX, or was cut off: {first_line(error)}.") from error
    if not model.graph.node:
        raise ModelError(f"{path} holds no ONNX graph ({path.stat().st_size} bytes).")
    return model


def _external_files(model: onnx.ModelProto, path: Path) -> list[Path]:
    """The files that hold weights; each must be a plain file below the model's folder, not behind a link."""
    root = path.parent.resolve()
    found: dict[Path, None] = {}
    for tensor in model.graph.initializer:
        if tensor.data_location != TensorProto.EXTERNAL:
            continue
        location = next((entry.value for entry in tensor.external_data if entry.key == "location"), "")
        file = (root / location).resolve()
        if not location or not file.is_relative_to(root) or file == root:
            raise ModelError(f"{path}: the weights of {tensor.name!r} lie outside the model's folder, at {location!r}.")
        if not file.is_file():
            raise ModelError(
                f"{path}: the file {location!r} with the weights of {tensor.name!r} is missing.",
                hint="copy the model together with its data files",
            )
        found[file] = None
    return list(found)


def _check_finite(model: onnx.ModelProto, path: Path) -> None:
    for tensor in model.graph.initializer:
        if tensor.data_type in _FLOATS and not np.isfinite(numpy_helper.to_array(tensor)).all():
            raise ModelError(f"{path}: the weights {tensor.name!r} hold NaN or infinity.")

"""What an ONNX file is."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import onnx
from google.protobuf.message import DecodeError

from edgetune.core.errors import ModelError
from edgetune.graph.compose import METADATA_CLASSES, METADATA_PREPROCESS


def describe_onnx(path: Path) -> dict[str, Any]:
    """Opset, inputs and outputs, operator counts and edgetune's metadata of an ONNX file.

    Raises:
        ModelError: the file is not ONNX.
    """
    try:
        model = onnx.load(path, load_external_data=False)
    except (OSError, DecodeError) as error:
        raise ModelError(f"{path} is not an ONNX file that can be read: {error}") from error
    if not model.graph.node:
        raise ModelError(f"{path} holds no ONNX graph.")
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    counts = Counter(node.op_type for node in model.graph.node)
    return {
        "kind": "onnx",
        "path": str(path),
        "size_bytes": path.stat().st_size,
        "opset": {entry.domain or "ai.onnx": entry.version for entry in model.opset_import},
        "ir_version": model.ir_version,
        "inputs": [_describe_tensor(value) for value in model.graph.input],
        "outputs": [_describe_tensor(value) for value in model.graph.output],
        "operators": dict(counts.most_common()),
        "quantized": "QuantizeLinear" in counts,
        "classes": parse_metadata(metadata.get(METADATA_CLASSES)),
        "preprocess": parse_metadata(metadata.get(METADATA_PREPROCESS)),
    }


def parse_metadata(text: str | None) -> Any:
    """None where the model has no such metadata, or somebody else's under our name."""
    try:
        return None if text is None else json.loads(text)
    except (ValueError, RecursionError):
        return None


def _describe_tensor(value: onnx.ValueInfoProto) -> str:
    tensor = value.type.tensor_type
    shape = ", ".join(dim.dim_param or str(dim.dim_value) for dim in tensor.shape.dim)
    return f"{value.name}: {onnx.TensorProto.DataType.Name(tensor.elem_type).lower()} ({shape})"

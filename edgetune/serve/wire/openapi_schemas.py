"""The JSON that the server takes and gives, as schemas of OpenAPI 3.1."""

from __future__ import annotations

from typing import Any

from edgetune.serve.wire.v2_pages import (
    LOADING,
    ONNX_PLATFORM,
    PLAN_PLATFORM,
    READY,
    SERVER_NAME,
    UNAVAILABLE,
    UNLOADING,
)
from edgetune.serve.wire.v2_request import MAX_ID_CHARACTERS
from edgetune.serve.wire.v2_tensors import BYTES, DATATYPES

Json = dict[str, Any]

_TEXT: Json = {"type": "string"}
_WORD: Json = {"type": "string", "minLength": 1}
_COUNT: Json = {"type": "integer", "minimum": 0}
_NUMBER: Json = {"type": "number"}
_ANYTHING: Json = {"type": "object"}
_PLATFORM: Json = {"enum": [ONNX_PLATFORM, PLAN_PLATFORM]}
# -1 stands for any size.
_SIZES: Json = {"type": "array", "items": {"type": "integer", "minimum": -1}, "maxItems": 16}
_SHAPE: Json = {"type": "array", "items": {"type": "integer", "minimum": 0}, "maxItems": 16}


def schemas(model: str, version: str) -> dict[str, Json]:
    """By name; what names the model takes no other name."""
    name, versions = {"const": model}, {"const": version}
    return {
        "error": _exactly({"error": _WORD}),
        "live": _exactly({"live": {"const": True}}),
        "ready": _exactly({"ready": {"const": True}}),
        "model_ready": _exactly({"name": name, "ready": {"const": True}}),
        "server": _server(name),
        "model": _model(name, versions),
        "model_config": _model_config(name),
        "repository_index": _repository_index(name, versions),
        "index_request": {"type": "object", "properties": {"ready": {"type": "boolean"}}},
        "openapi": {"type": "object", "required": ["openapi", "info", "paths", "components"]},
        **_statistics(name, versions),
        **_inference(name, versions),
        **_classification(name),
    }


def schema_ref(name: str) -> Json:
    """A media type of that schema."""
    return {"schema": _ref(name)}


def response_ref(name: str) -> Json:
    return {"$ref": f"#/components/responses/{name}"}


def _ref(name: str) -> Json:
    return {"$ref": f"#/components/schemas/{name}"}


def _exactly(properties: Json, optional: Json | None = None) -> Json:
    """An object of these keys, and no others."""
    return {
        "type": "object",
        "properties": {**properties, **(optional or {})},
        "required": list(properties),
        "additionalProperties": False,
    }


def _list(items: Json, **bounds: int) -> Json:
    return {"type": "array", "items": items, **bounds}


def _server(name: Json) -> Json:
    models = _list(name, minItems=1, maxItems=1)
    return _exactly({"name": {"const": SERVER_NAME}, "version": _WORD, "extensions": _list(_WORD), "models": models})


def _model(name: Json, version: Json) -> Json:
    tensor = _exactly({"name": _WORD, "datatype": {"enum": list(DATATYPES.values())}, "shape": _SIZES})
    return _exactly({
        "name": name,
        "versions": _list(version, minItems=1, maxItems=1),
        "platform": _PLATFORM,
        "inputs": _list(tensor, minItems=1),
        "outputs": _list(tensor, minItems=1),
        "parameters": _ANYTHING,
    })  # fmt: skip


def _model_config(name: Json) -> Json:
    types = {"enum": [f"TYPE_{datatype}" for datatype in DATATYPES.values()]}
    tensor = {"name": _WORD, "data_type": types, "dims": _SIZES}
    group = _exactly({"name": _WORD, "count": {"type": "integer", "minimum": 1}, "kind": _WORD})
    parameters = {"type": "object", "additionalProperties": _exactly({"string_value": _TEXT})}
    return _exactly(
        {
            "name": name,
            "platform": _PLATFORM,
            "backend": _WORD,
            "default_model_filename": _WORD,
            "version_policy": _ANYTHING,
            "max_batch_size": _COUNT,
            "input": _list(_exactly(tensor, {"format": _WORD}), minItems=1),
            "output": _list(_exactly(tensor, {"label_filename": _WORD}), minItems=1),
            "instance_group": _list(group),
            "parameters": parameters,
        },
        {"dynamic_batching": _exactly({"max_queue_delay_microseconds": _COUNT})},
    )


def _repository_index(name: Json, version: Json) -> Json:
    states = {"enum": [READY, LOADING, UNLOADING, UNAVAILABLE]}
    return _list(_exactly({"name": name, "version": version, "state": states, "reason": _TEXT}), maxItems=1)


def _statistics(name: Json, version: Json) -> dict[str, Json]:
    duration = _ref("duration")
    requests = ("success", "fail", "queue", "compute_input", "compute_infer", "compute_output", "cache_hit",
                "cache_miss")  # fmt: skip
    runs = ("compute_input", "compute_infer", "compute_output")
    batch = _exactly({"batch_size": {"type": "integer", "minimum": 1}, **dict.fromkeys(runs, duration)})
    model = _exactly({
        "name": name,
        "version": version,
        "last_inference": _COUNT,
        "inference_count": _COUNT,
        "execution_count": _COUNT,
        "inference_stats": _exactly(dict.fromkeys(requests, duration)),
        "batch_stats": _list(batch),
        "memory_usage": _list(_ANYTHING),
    })  # fmt: skip
    return {
        "duration": _exactly({"count": _COUNT, "ns": _COUNT}),
        "statistics": _exactly({"model_stats": _list(model, minItems=1, maxItems=1)}),
    }


def _inference(name: Json, version: Json) -> dict[str, Json]:
    """A request may have keys that nobody knows, an answer has none."""
    datatypes = {"enum": [*DATATYPES.values(), BYTES]}
    tensor: Json = {
        "type": "object",
        "properties": {
            "name": _WORD, "shape": _SHAPE, "datatype": datatypes, "parameters": _ANYTHING, "data": {"type": "array"},
        },
        "required": ["name", "shape", "datatype"],
    }  # fmt: skip
    wanted: Json = {"type": "object", "properties": {"name": _WORD, "parameters": _ANYTHING}, "required": ["name"]}
    request: Json = {
        "type": "object",
        "properties": {
            "id": {"type": "string", "maxLength": MAX_ID_CHARACTERS},
            "parameters": _ANYTHING,
            "inputs": _list(tensor, minItems=1),
            "outputs": _list(wanted),
        },
        "required": ["inputs"],
    }
    data = _list({"type": ["number", "boolean", "string"]})
    output = _exactly({"name": _WORD, "datatype": datatypes, "shape": _SHAPE, "data": data})
    answer = _exactly(
        {"model_name": name, "model_version": version, "outputs": _list(output, minItems=1)}, {"id": _TEXT}
    )
    return {"infer_request": request, "infer_answer": answer}


def _classification(name: Json) -> dict[str, Json]:
    """Of one image file, or of the parts of a form, each with its labels or why it has none."""
    prediction = _exactly(
        {"label": _TEXT, "index": _COUNT, "probability": {"type": "number", "minimum": 0, "maximum": 1}}
    )
    labels: Json = {"predictions": _list(_ref("prediction"), minItems=1, maxItems=1000)}
    words = "Whether the image is none of the classes, where the bundle has a threshold."
    others: Json = {"logits": _list(_NUMBER, minItems=1), "rejected": {"type": "boolean", "description": words}}
    entry = {"oneOf": [_exactly({"name": _TEXT, **labels}, others), _exactly({"name": _TEXT, "error": _WORD})]}
    head: Json = {"model": name, "artifact": _WORD}
    many = _exactly({**head, "images": _list(entry, minItems=1)})
    return {"prediction": prediction, "classification": {"oneOf": [_exactly({**head, **labels}, others), many]}}

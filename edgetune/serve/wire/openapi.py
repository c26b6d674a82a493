"""What the server answers, as an OpenAPI 3.1 document for clients and for tests that are made from it."""

from __future__ import annotations

from typing import Any

from edgetune.core.versions import edgetune_version
from edgetune.serve.wire.openapi_schemas import response_ref, schema_ref, schemas
from edgetune.serve.wire.v2_tensors import BINARY_HEADER

Json = dict[str, Any]

_ERRORS = {
    400: ("bad_request", "The request is not well-formed, or not for this model."),
    401: ("unauthorized", "A bearer token is asked for."),
    404: ("not_found", "No such path, model or version."),
    405: ("method_not_allowed", "The path has other methods."),
    408: ("timed_out", "The request did not arrive in time."),
    413: ("too_large", "The body, its JSON or the number of images is over a limit."),
    415: ("unsupported_encoding", "The body has a Content-Encoding that is not served."),
    421: ("misdirected", "The Host header names another server."),
    431: ("head_too_large", "The headers are over a limit."),
    500: ("internal_error", "A fault of the server, or an output that JSON cannot carry."),
    501: ("not_supported", "An extension of the protocol that is not served."),
    503: ("unavailable", "The server is full, is stopping, or is not well."),
    504: ("deadline_exceeded", "The answer was not ready in time."),
}
# May come from the connection itself, before there is a request that has a number.
_OF_CONNECTIONS = (400, 408, 431, 503)

_ANY_REQUEST = (400, 401, 405, 408, 421, 431, 500, 503)
_ANY_BODY = (*_ANY_REQUEST, 413)
_INFERENCE = (*_ANY_BODY, 415, 504)

_BINARY: Json = {"schema": {"type": "string", "format": "binary"}}
_REQUEST_ID_SCHEMA: Json = {"type": "string", "pattern": "^[A-Za-z0-9._:-]{1,64}$"}
_REQUEST_ID: Json = {"$ref": "#/components/headers/request_id"}


def openapi_document(model: str, version: str, *, has_token: bool) -> Json:
    """The document of a server of one model; `has_token` tells that all but the health pages ask for a bearer token."""
    components: Json = {
        "schemas": schemas(model, version),
        "responses": {name: _error(status, words) for status, (name, words) in _ERRORS.items()},
        "headers": {"request_id": _header("The client's own X-Request-ID, or one made here.", _REQUEST_ID_SCHEMA)},
    }
    document: Json = {
        "openapi": "3.1.0",
        "info": {
            "title": "edgetune serve",
            "version": edgetune_version(),
            "description": "Open Inference Protocol V2 with Triton's extensions, and images to labels.",
        },
        "paths": {**_server_paths(), **_model_paths(model, version), **_inference_paths(model, version)},
        "components": components,
    }
    if has_token:
        components["securitySchemes"] = {"bearer": {"type": "http", "scheme": "bearer"}}
        document["security"] = [{"bearer": []}]
        for probe in ("live", "ready"):
            for operation in document["paths"][f"/v2/health/{probe}"].values():
                operation["security"] = []
    return document


def _error(status: int, words: str) -> Json:
    headers = {"X-Request-ID": _header("", _REQUEST_ID_SCHEMA, required=False)}
    if status not in _OF_CONNECTIONS:
        headers["X-Request-ID"] = _REQUEST_ID
    if status == 401:
        headers["WWW-Authenticate"] = _header("The scheme.", {"const": "Bearer"})
    if status == 405:
        headers["Allow"] = _header("The methods of the path.", {"type": "string", "minLength": 3})
    if status == 415:
        headers["Accept-Encoding"] = _header("What is served.", {"type": "string", "minLength": 4})
    if status == 503:
        headers["Retry-After"] = _header("Seconds.", {"type": "string", "pattern": "^[0-9]{1,4}$"})
    return {"description": words, "headers": headers, "content": _json("error")}


def _header(words: str, schema: Json, *, required: bool = True) -> Json:
    return {"description": words, "required": required, "schema": schema}


def _json(schema: str) -> Json:
    return {"application/json": schema_ref(schema)}


def _operation(identifier: str, words: str, content: Json, statuses: tuple[int, ...]) -> Json:
    """An operation whose good answer has that `content`, by media type."""
    good: Json = {"description": words, "headers": {"X-Request-ID": _REQUEST_ID}, "content": content}
    bad = {str(status): response_ref(_ERRORS[status][0]) for status in sorted(statuses)}
    return {"operationId": identifier, "summary": words, "responses": {"200": good, **bad}}


def _page(identifier: str, words: str, content: Json, statuses: tuple[int, ...] = _ANY_REQUEST) -> Json:
    """GET, and HEAD for the same headers without a body."""
    get = _operation(identifier, words, content, statuses)
    bare = {status: {"description": "Headers only."} for status in get["responses"]}
    return {"get": get, "head": {"operationId": f"{identifier}_head", "summary": words, "responses": bare}}


def _server_paths() -> Json:
    index = _operation("repository_index", "The models and their states.", _json("repository_index"), _ANY_BODY)
    index["requestBody"] = {"required": False, "content": _json("index_request")}
    text: Json = {"schema": {"type": "string", "minLength": 1}}
    metrics = {"text/plain": text, "application/openmetrics-text": text}
    return {
        "/v2": _page("server", "The server and its extensions.", _json("server")),
        "/v2/": _page("server_slash", "The server and its extensions.", _json("server")),
        "/v2/health/live": _page("live", "The process is well.", _json("live")),
        "/v2/health/ready": _page("ready", "The server takes requests.", _json("ready")),
        "/v2/models/stats": _page("all_statistics", "The statistics of all models.", _json("statistics")),
        "/v2/repository/index": {"post": index},
        "/metrics": _page("metrics", "The server's metrics, for Prometheus.", metrics),
        "/openapi.json": _page("openapi", "This document.", _json("openapi")),
    }


def _model_paths(model: str, version: str) -> Json:
    pages = {
        "": ("model", "The model's inputs and outputs."),
        "/ready": ("model_ready", "The model takes requests."),
        "/config": ("model_config", "The model's configuration, as Triton gives it."),
        "/stats": ("statistics", "The model's statistics, as Triton gives them."),
    }
    paths: Json = {}
    for base, suffix, parameters in _bases(model, version):
        for path, (name, words) in pages.items():
            item = _page(name + suffix, words, _json(name), (*_ANY_REQUEST, 404))
            paths[base + path] = {"parameters": parameters, **item}
    return paths


def _bases(model: str, version: str) -> list[tuple[str, str, list[Json]]]:
    """The two forms of a model's path, with a suffix for identifiers and the path's parameters."""
    named = _parameter("model", "path", {"type": "string", "enum": [model]})
    versioned = _parameter("version", "path", {"type": "string", "enum": [version]})
    return [
        ("/v2/models/{model}", "", [named]),
        ("/v2/models/{model}/versions/{version}", "_of_version", [named, versioned]),
    ]


def _parameter(name: str, where: str, schema: Json) -> Json:
    return {"name": name, "in": where, "required": where == "path", "schema": schema}


def _inference_paths(model: str, version: str) -> Json:
    paths: Json = {"/v1/classify": {"post": _classify()}}
    for base, suffix, parameters in _bases(model, version):
        paths[f"{base}/infer"] = {"parameters": parameters, "post": _infer(suffix)}
    return paths


def _infer(suffix: str) -> Json:
    operation = _operation(
        "infer" + suffix, "Runs the model on tensors.", _json("infer_answer"), (*_INFERENCE, 404, 501)
    )
    operation["parameters"] = [_parameter(BINARY_HEADER, "header", {"type": "integer", "minimum": 0})]
    operation["requestBody"] = {
        "required": True,
        "description": f"JSON; or with {BINARY_HEADER}, so many bytes of JSON and then tensors, 0 for one raw tensor.",
        "content": {**_json("infer_request"), "application/octet-stream": _BINARY},
    }
    good = operation["responses"]["200"]
    good["content"]["application/octet-stream"] = _BINARY
    length = _header("Bytes of JSON before the tensors.", {"type": "string", "pattern": "^[0-9]+$"}, required=False)
    good["headers"][BINARY_HEADER] = length
    return operation


def _classify() -> Json:
    operation = _operation("classify", "Labels of an image file, or of several.", _json("classification"), _INFERENCE)
    operation["parameters"] = [
        _parameter("top", "query", {"type": "integer", "minimum": 1, "maximum": 1000, "default": 3}),
        _parameter("logits", "query", {"type": "integer", "enum": [0, 1], "default": 0}),
    ]
    files: Json = {"type": "array", "items": {"type": "string", "format": "binary"}, "minItems": 1}
    form: Json = {"type": "object", "properties": {"image": files}, "required": ["image"]}
    operation["requestBody"] = {
        "required": True,
        "description": "An image file as it is, or several as the parts of a form.",
        "content": {
            **dict.fromkeys(("image/jpeg", "image/png", "application/octet-stream"), _BINARY),
            "multipart/form-data": {"schema": form},
        },
    }
    return operation

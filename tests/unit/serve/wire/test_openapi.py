"""The document is valid OpenAPI 3.1, and its schemas take what the server's own pages give, and nothing beside."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from openapi_schema_validator import OAS31Validator
from openapi_spec_validator import OpenAPIV31SpecValidator

from edgetune.core.tensors import TensorSpec
from edgetune.serve.observe.stats import ServerStats, Timing
from edgetune.serve.wire.openapi import openapi_document
from edgetune.serve.wire.v2_pages import (
    ONNX_PLATFORM,
    ModelPage,
    Placement,
    model_config,
    model_metadata,
    repository_index,
    server_metadata,
)
from edgetune.serve.wire.v2_request import WireContract

DOCUMENT = openapi_document("ants", "1", has_token=False)
CONTRACT = WireContract(
    inputs=(TensorSpec("image", "uint8", (None, 224, 224, 3)),),
    outputs=(TensorSpec("logits", "float32", (None, 2)),),
    image_input="image",
    classes=("ant", "bee"),
)


def _stats() -> dict[str, Any]:
    stats = ServerStats()
    stats.executed(Timing(2, 1, 2, 3))
    stats.request_inferred(Timing(2, 1, 2, 3), 4)
    return stats.to_triton("ants", "1")


def _pages() -> dict[str, Any]:
    page = ModelPage("ants", "1", ONNX_PLATFORM, CONTRACT, {"artifact": "model.onnx"})
    best = {"label": "ant", "index": 0, "probability": 0.75}
    head = {"model": "ants", "artifact": "model.onnx"}
    output = {"name": "logits", "datatype": "FP32", "shape": [1, 2], "data": [0.5, -1]}
    return {
        "server": server_metadata("0.1.0", ["ants"]),
        "live": {"live": True},
        "ready": {"ready": True},
        "model_ready": {"name": "ants", "ready": True},
        "model": model_metadata(page),
        "model_config": model_config(page, Placement(thread_plan={"runs": 2}, max_queue_delay_us=500)),
        "statistics": _stats(),
        "repository_index": repository_index("ants", "1"),
        "error": {"error": "unknown model 'bees'"},
        "infer_answer": {"model_name": "ants", "model_version": "1", "id": "7", "outputs": [output]},
        "classification": {**head, "predictions": [best], "logits": [1.5, -2.5]},
        "classification with a threshold": {**head, "predictions": [best], "rejected": True},
        "classification of several": {**head, "images": [
            {"name": "a.jpg", "predictions": [best], "logits": [1.5, -2.5]}, {"name": "b", "error": "not an image"},
            {"name": "c.jpg", "predictions": [best], "rejected": False},
        ]},
        "openapi": DOCUMENT,
    }  # fmt: skip


def _fits(schema: str, content: Any) -> bool:
    name = schema.partition(" ")[0]
    validator = OAS31Validator({"$ref": f"#/components/schemas/{name}", "components": DOCUMENT["components"]})
    return bool(validator.is_valid(content))


def _operations(document: dict[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    return {
        (path, method): operation
        for path, item in document["paths"].items()
        for method, operation in item.items()
        if method != "parameters"
    }


@pytest.mark.parametrize("has_token", [False, True])
def test_the_document_is_valid(has_token: bool) -> None:
    OpenAPIV31SpecValidator(openapi_document("ants.v2-x_1", "1", has_token=has_token)).validate()


@pytest.mark.parametrize("name", _pages())
def test_what_the_server_gives_fits(name: str) -> None:
    assert _fits(name, _pages()[name])


@pytest.mark.parametrize("name", sorted(set(_pages()) - {"repository_index", "openapi"}))
def test_an_unknown_key_does_not_fit_and_a_missing_one_neither(name: str) -> None:
    page = _pages()[name]
    assert not _fits(name, {**page, "detail": "x"})
    for key in set(page) - {"id", "logits", "rejected", "dynamic_batching"}:
        assert not _fits(name, {other: value for other, value in page.items() if other != key}), key


@pytest.mark.parametrize(
    ("name", "path", "value"),
    [
        ("server", ["name"], "triton"),
        ("server", ["models", 0], "bees"),
        ("ready", ["ready"], False),
        ("model", ["name"], "bees"),
        ("model", ["versions", 0], "2"),
        ("model", ["inputs", 0, "datatype"], "STRING"),
        ("model", ["outputs", 0, "shape", 0], -2),
        ("model_config", ["input", 0, "data_type"], "UINT8"),
        ("model_config", ["parameters", "runs"], 2),
        ("statistics", ["model_stats", 0, "inference_stats", "queue", "ns"], -1),
        ("statistics", ["model_stats", 0, "inference_stats", "queue", "ns"], 0.5),
        ("statistics", ["model_stats", 0, "batch_stats", 0, "batch_size"], 0),
        ("repository_index", [0, "state"], "ok"),
        ("error", ["error"], {"detail": "x"}),
        ("infer_answer", ["model_version"], 1),
        ("infer_answer", ["outputs", 0, "data", 0], None),
        ("infer_answer", ["outputs", 0, "shape", 0], -1),
        ("classification", ["predictions", 0, "probability"], 1.5),
        ("classification", ["predictions", 0, "index"], -1),
        ("classification", ["predictions"], []),
        ("classification with a threshold", ["rejected"], "yes"),
        ("classification of several", ["images", 2, "rejected"], None),
        ("classification of several", ["images", 1, "error"], ""),
    ],
)  # fmt: skip
def test_wrong_values_do_not_fit(name: str, path: list[str | int], value: Any) -> None:
    page = copy.deepcopy(_pages()[name])
    inner = page
    for key in path[:-1]:
        inner = inner[key]
    assert path[-1] in inner or isinstance(path[-1], int)
    inner[path[-1]] = value
    assert not _fits(name, page)


def test_every_path_and_its_methods() -> None:
    model, version = "/v2/models/{model}", "/v2/models/{model}/versions/{version}"
    pages = ["/v2", "/v2/", "/v2/health/live", "/v2/health/ready", "/v2/models/stats", "/metrics", "/openapi.json"]
    pages += [base + page for base in (model, version) for page in ("", "/ready", "/config", "/stats")]
    posts = ["/v2/repository/index", "/v1/classify", f"{model}/infer", f"{version}/infer"]
    expected = {(path, method) for path in pages for method in ("get", "head")} | {(path, "post") for path in posts}
    assert set(_operations(DOCUMENT)) == expected


def test_every_operation_has_its_own_identifier_and_its_errors() -> None:
    operations = _operations(DOCUMENT)
    assert len({operation["operationId"] for operation in operations.values()}) == len(operations)
    always = {"200", "400", "401", "405", "408", "421", "431", "500", "503"}
    for (path, method), operation in operations.items():
        codes = set(operation["responses"])
        assert codes >= always, path
        assert ("404" in codes) == ("{model}" in path), path
        assert ("504" in codes) == path.endswith(("infer", "classify")), path
        assert ("413" in codes) == (method == "post"), path
        assert ("501" in codes) == path.endswith("infer"), path


def test_headers_that_errors_must_have() -> None:
    responses = DOCUMENT["components"]["responses"]
    must = {
        name: {key for key, header in response["headers"].items() if "$ref" in header or header["required"]}
        for name, response in responses.items()
    }
    assert must["unavailable"] == {"Retry-After"}
    assert must["method_not_allowed"] == {"Allow", "X-Request-ID"}
    assert must["unauthorized"] == {"WWW-Authenticate", "X-Request-ID"}
    assert must["timed_out"] == set()
    assert all(list(response["content"]) == ["application/json"] for response in responses.values())


def test_only_the_served_model_may_be_named() -> None:
    item = DOCUMENT["paths"]["/v2/models/{model}/versions/{version}/infer"]
    assert [(entry["name"], entry["schema"]["enum"]) for entry in item["parameters"]] == [
        ("model", ["ants"]),
        ("version", ["1"]),
    ]


def test_with_a_token_all_but_the_probes_ask_for_it() -> None:
    document = openapi_document("ants", "1", has_token=True)
    assert document["security"] == [{"bearer": []}]
    open_paths = {path for (path, _), operation in _operations(document).items() if operation.get("security") == []}
    assert open_paths == {"/v2/health/live", "/v2/health/ready"}
    assert document["components"]["securitySchemes"] == {"bearer": {"type": "http", "scheme": "bearer"}}
    assert "security" not in DOCUMENT


def test_requests_of_the_standard_client_fit() -> None:
    tensor = {"name": "image", "shape": [1, 224, 224, 3], "datatype": "UINT8", "parameters": {"binary_data_size": 5}}
    assert _fits("infer_request", {"inputs": [tensor], "parameters": {"binary_data_output": True}})
    assert _fits("infer_request", {"id": "7", "inputs": [tensor], "outputs": [{"name": "logits"}], "unknown": 1})
    assert not _fits("infer_request", {"inputs": []})
    assert not _fits("infer_request", {"inputs": [{**tensor, "shape": [-1]}]})
    assert not _fits("infer_request", {"inputs": [tensor], "id": "x" * 257})

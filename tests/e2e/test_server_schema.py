"""The server keeps to its own OpenAPI document, whatever is asked: requests made from the document, and good ones."""

from __future__ import annotations

import json
import secrets
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from tests.served_models import colour_bundle, encoded
from tests.serving import running_server

schemathesis = pytest.importorskip("schemathesis", reason="schemathesis, which makes requests, is not installed")
pytestmark = pytest.mark.e2e

MODEL = "colours"
CHECKS = ("not_a_server_error", "status_code_conformance", "content_type_conformance", "response_headers_conformance",
          "response_schema_conformance", "unsupported_method")  # fmt: skip
PROBES = {f"{method} /v2/health/{page}" for method in ("GET", "HEAD") for page in ("live", "ready")}
TOKEN = secrets.token_hex(16)
BEARER = {"Authorization": f"Bearer {TOKEN}"}


@dataclass
class Seen:
    """The statuses of each operation, and what Schemathesis holds against them."""

    statuses: dict[str, Counter[int]] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return colour_bundle(tmp_path_factory.mktemp("schema") / "bundle")


@pytest.fixture(scope="module")
def address(bundle: Path) -> Iterator[str]:
    with running_server(bundle, "--model-name", MODEL) as address:
        yield address


@pytest.fixture(scope="module")
def guarded(bundle: Path) -> Iterator[str]:
    """A server that asks for a token."""
    token = bundle.parent / "token"
    token.write_text(TOKEN)
    with running_server(bundle, "--model-name", MODEL, "--token-file", str(token)) as address:
        yield address


def _schema(address: str, posts: int, checks: Sequence[str] = CHECKS, headers: dict[str, str] | None = None) -> Any:
    """The server's document, with the same requests at every run: `posts` of each POST, and fewer of the others."""
    enabled = {name: {"enabled": True} for name in checks}
    config = schemathesis.Config.from_dict({
        "seed": 1,
        "workers": 1,
        "checks": {"enabled": False, **enabled},
        "generation": {"max-examples": 1 + posts // 8, "deterministic": True, "database": "none", "no-shrink": True},
        "operations": [{"include-method": "POST", "generation": {"max-examples": posts}}],
        "phases": {"stateful": {"enabled": False}},
        "headers": headers or {},
    })  # fmt: skip
    document = httpx.get(f"{address}/openapi.json", headers=BEARER).json()
    schema = schemathesis.openapi.from_dict(document, config=config)
    schema.config.update(base_url=address)
    return schema


def _ask(schema: Any) -> Seen:
    from schemathesis.engine import events, from_schema

    seen = Seen()
    for event in from_schema(schema).execute():
        if isinstance(event, events.FatalError):
            raise event.exception
        if isinstance(event, events.NonFatalError):
            seen.faults.append(f"{event.label}: {event.value}")
        if isinstance(event, events.ScenarioFinished) and event.label is not None:
            _note(seen, event.label, event.recorder)
    return seen


def _note(seen: Seen, label: str, recorder: Any) -> None:
    statuses = seen.statuses.setdefault(label, Counter())
    for interaction in recorder.interactions.values():
        if interaction.response is None:
            seen.faults.append(f"{label}: no answer to {interaction.request.uri}")
        else:
            statuses[interaction.response.status_code] += 1
    for results in recorder.checks.values():
        for result in results:
            if result.failure_info is not None:
                failure = result.failure_info
                seen.faults.append(
                    f"{label}: {failure.failure.title}: {failure.failure.message}: {failure.code_sample}"
                )


def _operations(address: str) -> set[str]:
    document = httpx.get(f"{address}/openapi.json", headers=BEARER).json()
    return {
        f"{method.upper()} {path}"
        for path, item in document["paths"].items()
        for method in item
        if method != "parameters"
    }


def test_requests_made_from_the_document_are_answered_as_it_says(address: str) -> None:
    seen = _ask(_schema(address, 100))
    assert seen.faults == []
    assert set(seen.statuses) == _operations(address)
    for label, statuses in seen.statuses.items():
        assert statuses[200], label
        assert statuses[405] or label.startswith("HEAD"), label
        assert statuses[404] or "{model}" not in label, label
        assert set(statuses) <= {200, 400, 404, 405}, label
    infer = seen.statuses["POST /v2/models/{model}/infer"]
    assert infer[400] > 100
    assert sum(statuses.total() for statuses in seen.statuses.values()) > 800


def test_without_the_token_nothing_but_the_probes_answers(guarded: str) -> None:
    seen = _ask(_schema(guarded, 10))
    assert seen.faults == []
    assert set(seen.statuses) == _operations(guarded)
    for label, statuses in seen.statuses.items():
        of_probes = {200, 405} if label.startswith("GET") else {200}
        expected = of_probes if label in PROBES else {401}
        assert set(statuses) == expected, label


def test_with_the_token_all_answers(guarded: str) -> None:
    seen = _ask(_schema(guarded, 10, (*CHECKS, "ignored_auth"), BEARER))
    assert seen.faults == []
    assert all(statuses[200] for statuses in seen.statuses.values())


def test_the_document_itself_asks_for_the_token(guarded: str) -> None:
    assert httpx.get(f"{guarded}/openapi.json").status_code == 401
    assert httpx.get(f"{guarded}/openapi.json", headers={"Authorization": "Bearer x"}).status_code == 401
    assert httpx.get(f"{guarded}/openapi.json", headers=BEARER).json()["security"] == [{"bearer": []}]


PIXELS = np.arange(96, dtype=np.uint8).reshape(2, 4, 4, 3)
IMAGE = encoded(PIXELS[0])
INFER = f"/v2/models/{MODEL}/infer"
LENGTH = "Inference-Header-Content-Length"
HEAD = json.dumps({
    "id": "7",
    "inputs": [{"name": "image", "shape": [2, 4, 4, 3], "datatype": "UINT8", "parameters": {"binary_data_size": 96}}],
    "outputs": [{"name": "logits", "parameters": {"binary_data": True}}, {"name": "features"}],
}).encode()  # fmt: skip


def _tensor(**options: Any) -> dict[str, Any]:
    return {"name": "image", "shape": [2, 4, 4, 3], "datatype": "UINT8", "data": PIXELS.tolist(), **options}


def _json(**options: Any) -> dict[str, Any]:
    return {"json": {"inputs": [_tensor()], **options}}


PLAIN = json.dumps({"inputs": [_tensor()]}).encode()
JSON, BINARY = "application/json", "application/octet-stream"
CLASSES_WANTED = [{"name": "logits", "parameters": {"classification": 2}}]
GOOD: dict[str, tuple[str, dict[str, Any], str]] = {
    "json": (INFER, _json(id="é"), JSON),
    "json, version": (f"/v2/models/{MODEL}/versions/1/infer", _json(), JSON),
    "json, length": (INFER, {"content": PLAIN, "headers": {LENGTH: str(len(PLAIN))}}, JSON),
    "json, classes": (INFER, _json(outputs=CLASSES_WANTED), JSON),
    "binary": (INFER, {"content": HEAD + PIXELS.tobytes(), "headers": {LENGTH: str(len(HEAD))}}, BINARY),
    "raw": (INFER, {"content": PIXELS.tobytes(), "headers": {LENGTH: "0"}}, BINARY),
    "raw image": (INFER, {"content": IMAGE, "headers": {LENGTH: "0"}}, BINARY),
    "classify": ("/v1/classify", {"content": IMAGE}, JSON),
    "classify, logits": ("/v1/classify?top=2&logits=1", {"content": IMAGE}, JSON),
    "classify a form": ("/v1/classify?top=5", {"files": [("a", ("a.png", IMAGE)), ("b", ("b.jpg", b"no"))]}, JSON),
    "index": ("/v2/repository/index", {"json": {"ready": True}}, JSON),
}
BAD: dict[str, tuple[str, dict[str, Any], int]] = {
    "too large": (INFER, {"content": bytes((16 << 20) + 1)}, 413),
    "too much json": (INFER, {"content": b" " * ((4 << 20) + 1)}, 413),
    "encoding": (INFER, {"content": b"x", "headers": {"Content-Encoding": "br"}}, 415),
    "host": (INFER, {"content": b"{}", "headers": {"Host": "evil.example"}}, 421),
    "long head": (INFER, {"content": b"{}", "headers": {"X-Own": "x" * 70_000}}, 431),
    "shared memory": (INFER, _json(outputs=[{"name": "logits", "parameters": {"shared_memory_region": "r"}}]), 501),
    "late": (INFER, {"json": {"inputs": [_tensor()], "parameters": {"timeout": 1}}}, 504),
    "no image": ("/v1/classify", {"content": b"no image"}, 400),
    "no form": ("/v1/classify", {"content": b"x", "headers": {"Content-Type": "multipart/form-data; boundary=b"}}, 400),
    "odd query": ("/v1/classify?top=0", {"content": IMAGE}, 400),
}  # fmt: skip


def _case(schema: Any, path: str) -> Any:
    pattern = path.partition("?")[0].replace(MODEL, "{model}").replace("versions/1", "versions/{version}")
    names = {"model": MODEL, "version": "1"}
    return schema[pattern]["POST"].Case(path_parameters={key: names[key] for key in names if f"{{{key}}}" in pattern})


@pytest.mark.parametrize("name", GOOD)
def test_good_answers_fit_the_document(address: str, name: str) -> None:
    path, options, kind = GOOD[name]
    answer = httpx.post(address + path, **options)
    assert (answer.status_code, answer.headers["content-type"]) == (200, kind), answer.text
    assert (LENGTH.lower() in answer.headers) is (kind == BINARY)
    answer.request.read()
    _case(_schema(address, 1), path).validate_response(answer)


@pytest.mark.parametrize("name", BAD)
def test_refusals_fit_the_document(address: str, name: str) -> None:
    path, options, status = BAD[name]
    answer = httpx.post(address + path, **options)
    assert answer.status_code == status, answer.text
    _case(_schema(address, 1, CHECKS[1:]), path).validate_response(answer)


def test_an_answer_of_another_operation_does_not_fit(address: str) -> None:
    from schemathesis.core.failures import FailureGroup

    path, options, _ = GOOD["json"]
    answer = httpx.post(address + path, **options)
    with pytest.raises(FailureGroup) as caught:
        _case(_schema(address, 1), "/v1/classify").validate_response(answer)
    assert [type(error).__name__ for error in caught.value.exceptions] == ["JsonSchemaError"]

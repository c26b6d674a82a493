"""The server's answers: the Open Inference Protocol V2, and images to labels."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import orjson
from starlette.requests import Request
from starlette.responses import Response

from edgetune.core.bundle import MANIFEST_NAME
from edgetune.core.config import to_dict
from edgetune.core.errors import ImageError, TensorError
from edgetune.core.files import sha256_of_file
from edgetune.core.labels import top_predictions
from edgetune.core.tensors import TensorSpec
from edgetune.core.versions import edgetune_version
from edgetune.serve.model import VERSION, ServedModel
from edgetune.serve.scheduler import Scheduler
from edgetune.serve.schemas import BINARY_HEADER, RequestError, datatype_of, encode_infer_response, parse_infer_request
from edgetune.serve.settings import ServeSettings


class Handlers:
    """One method an endpoint; all state is the model, the scheduler and the settings."""

    def __init__(self, model: ServedModel, scheduler: Scheduler, settings: ServeSettings) -> None:
        self._model = model
        self._scheduler = scheduler
        self._settings = settings
        # Which bundle this is, for clients that hold one themselves: the manifest vouches for every other file of it.
        self._bundle_digest = sha256_of_file(model.bundle.path / MANIFEST_NAME)

    async def server_metadata(self, _: Request) -> Response:
        """With `models`, which the protocol does not have: a client that knows only the address can find the model."""
        return json_response({
            "name": "edgetune",
            "version": edgetune_version(),
            "extensions": ["binary_tensor_data"],
            "models": [self._model.name],
        })  # fmt: skip

    async def live(self, _: Request) -> Response:
        return json_response({"live": True})

    async def ready(self, _: Request) -> Response:
        """The socket opens only after the golden self-test, so whoever can ask is answered yes."""
        return json_response({"ready": True})

    async def model_ready(self, request: Request) -> Response:
        self._check_model(request)
        return json_response({"name": self._model.name, "ready": True})

    async def model_metadata(self, request: Request) -> Response:
        self._check_model(request)
        model = self._model
        return json_response({
            "name": model.name,
            "versions": [VERSION],
            "platform": "onnxruntime_onnx",
            "inputs": [_describe(spec) for spec in model.runner.input_specs],
            "outputs": [_describe(spec) for spec in model.runner.output_specs],
            "parameters": {
                "artifact": model.choice.artifact.name,
                "artifact_sha256": model.choice.artifact.sha256,
                "bundle_digest": self._bundle_digest,
                "runner": model.runner.name,
                "verdict": model.choice.artifact.verdict,
                "classes": list(model.bundle.manifest.classes),
                "preprocess": to_dict(model.bundle.manifest.preprocess),
                "max_batch": self._settings.max_batch,
                "max_body_bytes": self._settings.max_body_bytes,
            },
        })  # fmt: skip

    async def infer(self, request: Request) -> Response:
        self._check_model(request)
        with self._scheduler.admit():
            body = await self._read_body(request)
            runner = self._model.runner
            parsed = parse_infer_request(
                body,
                request.headers.get(BINARY_HEADER),
                runner.input_specs,
                runner.output_specs,
                self._settings.max_batch,
            )
            try:
                results = await self._scheduler.infer(lambda: self._model.infer(parsed.feed))
            except TensorError as error:
                raise RequestError(400, error.message) from error
            content, headers = encode_infer_response(parsed, results, self._model.name, VERSION)
        return Response(content, headers=headers)

    async def classify(self, request: Request) -> Response:
        """An image file as the body; `?top=N` labels (3), and the logits with `?logits=1`."""
        top = _integer(request, "top", default=3, low=1, high=1000)
        with self._scheduler.admit():
            body = await self._read_body(request)
            if not body:
                raise RequestError(400, "the body is empty, expected an image file")
            try:
                image = await self._scheduler.decode(lambda: self._model.preprocess(body, self._settings.max_pixels))
            except ImageError as error:
                raise RequestError(400, error.message) from error
            logits = await self._scheduler.infer(lambda: self._model.logits(image))
        if not np.isfinite(logits).all():
            raise RequestError(500, "the model gives NaN or infinity for this image")
        answer: dict[str, Any] = {
            "model": self._model.name,
            "artifact": self._model.choice.artifact.name,
            "predictions": [vars(best) for best in top_predictions(logits, self._model.bundle.manifest.classes, top)],
        }
        if _integer(request, "logits", default=0, low=0, high=1):
            answer["logits"] = logits.tolist()
        return json_response(answer)

    def _check_model(self, request: Request) -> None:
        name, version = request.path_params["name"], request.path_params.get("version", VERSION)
        if name != self._model.name:
            raise RequestError(404, f"unknown model {name[:128]!r}; this server has {self._model.name!r}")
        if version != VERSION:
            raise RequestError(404, f"model {self._model.name!r} has no version {version[:16]!r}, only {VERSION}")

    async def _read_body(self, request: Request) -> bytes:
        if request.headers.get("content-encoding", "identity") != "identity":
            raise RequestError(415, "compressed bodies are not supported; send identity")
        try:
            return await asyncio.wait_for(self._collect(request), self._settings.body_timeout_s)
        except asyncio.TimeoutError as error:
            raise RequestError(408, f"the body did not arrive within {self._settings.body_timeout_s:g} s") from error

    async def _collect(self, request: Request) -> bytes:
        limit = self._settings.max_body_bytes
        too_large = RequestError(413, f"the body is over the limit of {limit} bytes")
        announced = request.headers.get("content-length", "0")
        if announced.isdigit() and int(announced) > limit:
            raise too_large
        body = bytearray()
        async for chunk in request.stream():
            body += chunk
            if len(body) > limit:
                raise too_large
        return bytes(body)


def json_response(content: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(orjson.dumps(content), status, headers, "application/json")


def _describe(spec: TensorSpec) -> dict[str, Any]:
    shape = [-1 if size is None else size for size in spec.shape]
    return {"name": spec.name, "datatype": datatype_of(spec), "shape": shape}


def _integer(request: Request, key: str, *, default: int, low: int, high: int) -> int:
    text = request.query_params.get(key, str(default))
    if not (text.isascii() and text.isdigit() and len(text) < 10 and low <= int(text) <= high):
        raise RequestError(400, f"the query parameter {key!r} is {text[:16]!r}, expected a number in {low}..{high}")
    return int(text)

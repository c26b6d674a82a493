"""The endpoints that tell what is served and how it is: metadata, health, statistics, metrics."""

from __future__ import annotations

import asyncio
from typing import Any

import orjson

from edgetune.core.config import to_dict
from edgetune.core.versions import edgetune_version
from edgetune.runners.choice import ENGINE
from edgetune.runners.ort_providers import CPU
from edgetune.serve.errors import RequestError
from edgetune.serve.http.request import Answer, Request, json_answer
from edgetune.serve.inference import check_model
from edgetune.serve.model import VERSION
from edgetune.serve.observe.metrics import Gauges, Metrics, ModelInfo
from edgetune.serve.service import Service
from edgetune.serve.wire.openapi import openapi_document
from edgetune.serve.wire.v2_pages import (
    CPU_KIND,
    GPU_KIND,
    ONNX_PLATFORM,
    PLAN_PLATFORM,
    READY,
    UNAVAILABLE,
    ModelPage,
    Placement,
    model_config,
    model_metadata,
    repository_index,
    server_metadata,
)

_INDEX_BYTES = 4096


class Pages:
    """One method an endpoint; nothing here waits for the model."""

    def __init__(self, service: Service, *, has_token: bool) -> None:
        self._service = service
        self._openapi = orjson.dumps(openapi_document(service.name, VERSION, has_token=has_token))
        gauges = Gauges(
            model=self._model_info,
            queue_length=lambda: service.scheduler.queue_length,
            inflight_requests=lambda: service.inflight,
            open_connections=lambda: service.open_connections,
            is_ready=lambda: service.is_ready,
        )
        self._metrics = Metrics(service.stats, gauges, has_triton_names=service.settings.triton_metrics)

    async def server(self, _: Request) -> Answer:
        return json_answer(server_metadata(edgetune_version(), [self._service.name]))

    async def live(self, _: Request) -> Answer:
        live = self._service.is_live
        return json_answer({"live": True}) if live else json_answer({"error": "runs of the model hang or fail"}, 503)

    async def ready(self, _: Request) -> Answer:
        self._check_ready()
        return json_answer({"ready": True})

    async def model_ready(self, request: Request) -> Answer:
        check_model(self._service, request)
        self._check_ready()
        return json_answer({"name": self._service.name, "ready": True})

    async def model(self, request: Request) -> Answer:
        check_model(self._service, request)
        return json_answer(model_metadata(self._page()))

    async def config(self, request: Request) -> Answer:
        check_model(self._service, request)
        plan = self._service.plan
        on_cpu = self._service.slot.current.model.choice.runner == CPU
        delay_us = round(self._service.settings.batching.delay_s * 1e6) if plan.batch > 1 else None
        threads = {"usable_cpus": plan.cpus, "runs": plan.runs, "intra_op_thread_count": plan.threads}
        placement = Placement(CPU_KIND if on_cpu else GPU_KIND, plan.runs, threads, delay_us)
        return json_answer(model_config(self._page(), placement))

    async def stats(self, request: Request) -> Answer:
        check_model(self._service, request)
        return await self.all_stats(request)

    async def all_stats(self, _: Request) -> Answer:
        return json_answer(self._service.stats.to_triton(self._service.name, VERSION))

    async def index(self, request: Request) -> Answer:
        """`{"ready": true}` leaves out what is not ready; without a body everything is told."""
        body = await request.read_body(_INDEX_BYTES)
        wanted = _index_request(body)
        state = READY if self._service.is_ready else UNAVAILABLE
        return json_answer(repository_index(self._service.name, VERSION, state=state, only_ready=wanted))

    async def metrics(self, request: Request) -> Answer:
        # The library takes its time to be imported, once.
        await asyncio.get_running_loop().run_in_executor(self._service.parsing, self._metrics.load)
        body, kind = self._metrics.render(request.headers.get("accept", ""))
        return Answer(200, body, {"content-type": kind})

    async def openapi(self, _: Request) -> Answer:
        return Answer(200, self._openapi, {"content-type": "application/json"})

    def _check_ready(self) -> None:
        if not self._service.is_ready:
            raise RequestError(503, "the server is not ready", reason="not_ready")

    def _page(self) -> ModelPage:
        serving = self._service.slot.current
        model, limits = serving.model, self._service.settings.limits
        details: dict[str, Any] = {
            "artifact": model.choice.artifact.name,
            "artifact_sha256": model.choice.artifact.sha256,
            "bundle_digest": model.digest,
            "runner": model.runner.name,
            "verdict": model.choice.artifact.verdict,
            "preprocess": to_dict(model.bundle.manifest.preprocess),
            "max_body_bytes": limits.max_body_bytes,
            "image_formats": list(limits.image_formats),
        }
        platform = PLAN_PLATFORM if model.choice.runner == ENGINE else ONNX_PLATFORM
        return ModelPage(self._service.name, VERSION, platform, serving.contract, details)

    def _model_info(self) -> ModelInfo:
        choice = self._service.slot.current.model.choice
        artifact = choice.artifact
        return ModelInfo(
            self._service.name, VERSION, artifact.name, artifact.sha256, choice.runner, artifact.precision
        )  # fmt: skip


def _index_request(body: bytes | bytearray) -> bool:
    """Whether only ready models are asked for. Raises `RequestError` 400."""
    if not body:
        return False
    try:
        content = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise RequestError(400, "the request is not valid JSON") from error
    ready = content.get("ready", False) if isinstance(content, dict) else None
    if not isinstance(ready, bool):
        raise RequestError(400, 'the request is expected to be {"ready": true}, {"ready": false} or {}')
    return ready

"""The endpoints that run the model: tensors by the protocol, and images to labels."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np

from edgetune.core.labels import is_rejected, top_predictions
from edgetune.core.tensors import IMAGE_INPUT, LOGITS_OUTPUT, Array, Feed
from edgetune.serve.errors import RequestError, as_request_error
from edgetune.serve.http.request import Answer, Request, json_answer
from edgetune.serve.model import VERSION
from edgetune.serve.scheduling.batches import Item, Outcome, Prepare
from edgetune.serve.service import Service, timing_of
from edgetune.serve.slot import Serving
from edgetune.serve.wire.compression import choose_encoding, deflate, inflate
from edgetune.serve.wire.multipart import FORM, read_parts
from edgetune.serve.wire.v2_request import InferRequest, parse_infer_request
from edgetune.serve.wire.v2_response import encode_infer_response

T = TypeVar("T")

BINARY_HEADER = "inference-header-content-length"
# JSON of this size takes a millisecond; more is read by a thread.
_MUCH_JSON_BYTES = 1 << 16
# Answers below one packet gain nothing by being compressed; long ones would hold up the loop.
_LEAST_COMPRESSED_BYTES = 1400
_LONG_ANSWER_BYTES = 1 << 17
# Parts of a large client batch: small enough that others get their turn, and spread over all runs.
_MOST_TOGETHER_ON_CPU = 8


class Inference:
    """One method an endpoint."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def infer(self, request: Request) -> Answer:
        """POST /v2/models/NAME/infer: JSON, binary or raw tensors, or image files in the place of the image tensor."""
        service = self._service
        check_model(service, request)
        serving = service.slot.current
        with serving.in_use():
            async with service.admission.place(request):
                body = await self._read(request)
                parsed = await self._parse(request, body, serving)
                items = _items_of(serving, parsed, self._chunk(parsed.count), service)
                outcomes = await self._run(request, serving, items, parsed.timeout_us)
                if any(outcome.error is not None for outcome in outcomes):
                    service.stats.request_inferred(timing_of(items, outcomes), 0)
                answer = self._encode(parsed, joined(outcomes), serving, (items, outcomes))
                return await self._compressed(request, answer)

    async def classify(self, request: Request) -> Answer:
        """POST /v1/classify: an image file as the body, or several as a form; `?top=N` labels (3), `?logits=1`."""
        service = self._service
        top = request.integer("top", default=3, low=1, high=1000)
        with_logits = bool(request.integer("logits", default=0, low=0, high=1))
        serving = service.slot.current
        with serving.in_use():
            async with service.admission.place(request):
                body = await self._read(request)
                if not body:
                    raise RequestError(400, "the body is empty, expected an image file")
                kind = request.headers.get("content-type", "")
                is_form = kind.lower().startswith(FORM)
                names, files = await self._files(body, kind) if is_form else ([""], [memoryview(body)])
                items = [Item(1, prepare=_preparing(serving, file, service)) for file in files]
                outcomes = await self._run(request, serving, items, None)
                service.stats.request_inferred(timing_of(items, outcomes), 0)
                entries = [self._labels(outcome, serving, top, with_logits=with_logits) for outcome in outcomes]
        head = {"model": service.name, "artifact": serving.model.choice.artifact.name}
        if not is_form:
            return json_answer({**head, **_or_raise(entries[0])})
        return json_answer(
            {**head, "images": [_entry(name, entry) for name, entry in zip(names, entries, strict=True)]}
        )

    async def _files(self, body: bytes | bytearray, content_type: str) -> tuple[list[str], list[memoryview]]:
        most = self._service.settings.limits.max_images
        parts = await self._in_thread(lambda: read_parts(body, content_type, most))
        return [part.name for part in parts], [memoryview(part.data) for part in parts]

    async def _read(self, request: Request) -> bytes | bytearray:
        """The body, inflated where it came compressed."""
        limit = self._service.settings.limits.max_body_bytes
        encoding = request.single("content-encoding") or ""
        body = await request.read_body(limit)
        if encoding.strip().lower() in ("", "identity"):
            return body
        return await self._in_thread(lambda: inflate(body, encoding, limit))

    async def _parse(self, request: Request, body: bytes | bytearray, serving: Serving) -> InferRequest:
        length = request.single(BINARY_HEADER)
        kind = request.headers.get("content-type", "")

        def parse() -> InferRequest:
            return parse_infer_request(body, length, kind, serving.contract)

        json_bytes = int(length) if length and len(length) < 12 and length.isdecimal() else len(body)
        return await self._in_thread(parse) if json_bytes > _MUCH_JSON_BYTES else parse()

    async def _run(
        self, request: Request, serving: Serving, items: Sequence[Item], timeout_us: int | None
    ) -> list[Outcome]:
        limits = self._service.settings.limits
        wanted_s = timeout_us / 1e6 if timeout_us else limits.deadline_s
        ticket = self._service.scheduler.submit(serving, items, min(wanted_s, limits.max_deadline_s))
        request.when_gone(ticket.leave)
        return await ticket.wait()

    def _chunk(self, count: int) -> int:
        plan = self._service.plan
        return plan.batch if plan.batch > 1 else min(_MOST_TOGETHER_ON_CPU, -(-count // plan.runs))

    def _encode(
        self,
        parsed: InferRequest,
        results: dict[str, Array],
        serving: Serving,
        ran: tuple[Sequence[Item], Sequence[Outcome]],
    ) -> Answer:
        started = time.perf_counter_ns()
        service = self._service
        try:
            body, headers = encode_infer_response(
                parsed, results, service.name, VERSION, serving.model.bundle.manifest.classes
            )
        except RequestError as error:
            if error.reason == "nonfinite":
                service.stats.nonfinite()
            raise
        service.stats.request_inferred(timing_of(*ran), time.perf_counter_ns() - started)
        return Answer(200, body, headers)

    async def _compressed(self, request: Request, answer: Answer) -> Answer:
        accepted = request.headers.get("accept-encoding", "")
        encoding = choose_encoding(accepted) if accepted and len(answer.body) >= _LEAST_COMPRESSED_BYTES else ""
        if not encoding:
            return answer
        if len(answer.body) < _LONG_ANSWER_BYTES:
            body = deflate(answer.body, encoding)
        else:
            body = await self._in_thread(lambda: deflate(answer.body, encoding))
        return Answer(answer.status, body, {**answer.headers, "content-encoding": encoding, "vary": "accept-encoding"})

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._service.parsing, work)

    def _labels(
        self, outcome: Outcome, serving: Serving, top: int, *, with_logits: bool
    ) -> dict[str, Any] | RequestError:
        """What is told of one image, or why nothing is."""
        if outcome.outputs is None:
            return outcome.error or RequestError(500, "the image was not run")
        logits = outcome.outputs[LOGITS_OUTPUT][0].astype(np.float32, copy=False)
        if not np.isfinite(logits).all():
            self._service.stats.nonfinite()
            return RequestError(500, "the model gives NaN or infinity for this image", reason="nonfinite")
        manifest = serving.model.bundle.manifest
        best = top_predictions(logits, manifest.classes, top)
        entry: dict[str, Any] = {"predictions": [vars(prediction) for prediction in best]}
        if manifest.reject_below is not None:
            entry["rejected"] = is_rejected(best[0], manifest.reject_below)
        return {**entry, "logits": logits.tolist()} if with_logits else entry


def check_model(service: Service, request: Request) -> None:
    """Raises `RequestError` 404 for another model or version than the one that is served."""
    name, version = request.params["name"], request.params.get("version", VERSION)
    if name != service.name:
        raise RequestError(404, f"unknown model {name[:64]!r}; this server has {service.name!r}")
    if version != VERSION:
        raise RequestError(404, f"model {service.name!r} has no version {version[:16]!r}, only {VERSION}")


def joined(outcomes: Sequence[Outcome]) -> dict[str, Array]:
    """The outputs of all parts of a request, in order. Raises the first part's `RequestError`."""
    for outcome in outcomes:
        if outcome.error is not None:
            raise as_request_error(outcome.error)
    parts = [outcome.outputs or {} for outcome in outcomes]
    return parts[0] if len(parts) == 1 else {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _items_of(serving: Serving, parsed: InferRequest, chunk: int, service: Service) -> list[Item]:
    if parsed.files:
        return [Item(1, prepare=_preparing(serving, file, service)) for file in parsed.files]
    if parsed.count <= chunk or not serving.contract.is_batched:
        return [Item(parsed.count, parsed.feed, is_alone=not serving.contract.is_batched)]
    return [Item(len(next(iter(part.values()))), part) for part in _parts(parsed.feed, parsed.count, chunk)]


def _parts(feed: Feed, count: int, chunk: int) -> list[Feed]:
    return [
        {name: array[start : start + chunk] for name, array in feed.items()} for start in range(0, count, chunk)
    ]  # fmt: skip


def _preparing(serving: Serving, file: memoryview, service: Service) -> Prepare:
    limits = service.settings.limits
    return lambda: {IMAGE_INPUT: serving.model.preprocess(file, limits)}


def _or_raise(entry: dict[str, Any] | RequestError) -> dict[str, Any]:
    if isinstance(entry, RequestError):
        raise as_request_error(entry)
    return entry


def _entry(name: str, entry: dict[str, Any] | RequestError) -> dict[str, Any]:
    return {"name": name, "error": entry.message} if isinstance(entry, RequestError) else {"name": name, **entry}

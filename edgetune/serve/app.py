"""The ASGI application: which endpoint answers, and what becomes of errors."""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from edgetune.serve.errors import ClientGone, RequestError, as_request_error
from edgetune.serve.guard import Guard
from edgetune.serve.http.request import REQUEST_ID, Answer, Receive, Request, Scope, Send, json_answer, write_answer
from edgetune.serve.inference import Inference
from edgetune.serve.model import VERSION
from edgetune.serve.observe.logs import Access, access
from edgetune.serve.pages import Pages
from edgetune.serve.service import Service

logger = logging.getLogger(__name__)

_LEFT_OUT = ("/v2/systemsharedmemory", "/v2/cudasharedmemory", "/v2/logging", "/v2/trace/")

Endpoint = Callable[[Request], Awaitable[Answer]]


@dataclass(frozen=True)
class Route:
    """An endpoint and its method; GET answers HEAD too. `label` is its name in the metrics."""

    method: str
    endpoint: Endpoint
    label: str = "other"

    @property
    def allowed(self) -> tuple[str, ...]:
        return ("GET", "HEAD") if self.method == "GET" else (self.method,)


class App:
    """Answers every request with exactly one answer, whatever happens inside."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._guard = Guard(service.settings)
        pages, inference = Pages(service, has_token=self._guard.has_token), Inference(service)
        self._fixed = {
            "/v2": Route("GET", pages.server),
            "/v2/": Route("GET", pages.server),
            "/v2/health/live": Route("GET", pages.live),
            "/v2/health/ready": Route("GET", pages.ready),
            "/v2/models/stats": Route("GET", pages.all_stats),
            "/v2/repository/index": Route("POST", pages.index),
            "/v1/classify": Route("POST", inference.classify, "classify"),
            "/metrics": Route("GET", pages.metrics),
            "/openapi.json": Route("GET", pages.openapi),
        }
        of_model = {
            "": Route("GET", pages.model),
            "ready": Route("GET", pages.model_ready),
            "config": Route("GET", pages.config),
            "stats": Route("GET", pages.stats),
            "infer": Route("POST", inference.infer, "infer"),
        }
        self._of_model = of_model
        # The model's own paths, read once.
        self._known = {
            "/".join(filter(None, (f"/v2/models/{service.name}{version}", name))): (route, params)
            for version, params in (("", {}), (f"/versions/{VERSION}", {"version": VERSION}))
            for name, route in of_model.items()
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        started = time.perf_counter_ns()
        request = Request(scope, receive)
        self._service.inflight += 1
        label, answer = "other", None
        try:
            label, answer = await self._answer(request)
            answer.headers[REQUEST_ID] = request.id
            await write_answer(answer, scope, send)
        except ClientGone:
            self._service.stats.rejected("disconnected")
        finally:
            self._service.inflight -= 1
            request.drop_body()
        if answer is not None:
            elapsed = time.perf_counter_ns() - started
            self._service.stats.request_done(label, answer.status, elapsed)
            if self._service.settings.access_log:
                self._log(request, answer, elapsed / 1e6, scope.get("client"))

    async def _answer(self, request: Request) -> tuple[str, Answer]:
        label = "other"
        try:
            self._guard.check(request)
            route = self._route(request)
            label = route.label
            if request.method not in route.allowed:
                allowed = ", ".join(route.allowed)
                return label, json_answer({"error": "Method Not Allowed"}, 405, {"allow": allowed})
            return label, await route.endpoint(request)
        except ClientGone:
            raise
        except Exception as error:  # noqa: BLE001 - the one place where whatever went wrong becomes an answer
            return label, self._refusal(as_request_error(error))

    def _route(self, request: Request) -> Route:
        """Sets the request's `params`. Raises `RequestError` 404."""
        found = self._fixed.get(request.path)
        if found is not None:
            return found
        if request.path in self._known:
            found, version = self._known[request.path]
            request.params = {"name": self._service.name, **version}
            return found
        root, _, rest = request.path.partition("/v2/models/")
        parts = rest.split("/") if not root else []
        if len(parts) > 2 and parts[1] == "versions":
            request.params = {"name": parts[0], "version": parts[2]}
            parts = [parts[0], *parts[3:]]
        elif parts:
            request.params = {"name": parts[0]}
        found = self._of_model.get(parts[1] if len(parts) == 2 else "") if parts and len(parts) <= 2 else None
        if found is None or parts[1:] == [""]:
            raise _no_route(request.path)
        return found

    def _refusal(self, error: RequestError) -> Answer:
        if error.reason:
            self._service.stats.rejected(error.reason)
        headers = {
            503: {"retry-after": "1"},
            401: {"www-authenticate": "Bearer"},
            415: {"accept-encoding": "gzip, deflate"},
        }
        return json_answer({"error": error.message}, error.status, headers.get(error.status))

    def _log(self, request: Request, answer: Answer, duration_ms: float, client: tuple[str, int] | None) -> None:
        address = client[0] if client else ""
        access(logger, Access(request.method, request.path, answer.status, duration_ms, address, request.id))


def _no_route(path: str) -> RequestError:
    """Parts of the protocol that this server leaves out are told apart from addresses that mean nothing."""
    if path.startswith("/v2/repository/models/"):
        return RequestError(501, "models are not loaded or unloaded over this port; see SIGHUP and --admin")
    if path.startswith(_LEFT_OUT) or path.endswith("/trace/setting"):
        return RequestError(501, "this extension of the protocol is not supported")
    return RequestError(404, "Not Found")

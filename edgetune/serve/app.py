"""The ASGI application and the process around it."""

from __future__ import annotations

import contextlib
import logging
import secrets
import signal
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from edgetune.core.errors import AddressError
from edgetune.runners.from_bundle import SelfTest
from edgetune.serve.handlers import Handlers, json_response
from edgetune.serve.model import ServedModel, open_model
from edgetune.serve.scheduler import Scheduler
from edgetune.serve.schemas import RequestError
from edgetune.serve.settings import ServeSettings

logger = logging.getLogger(__name__)

_LOOPBACK = {"127.0.0.1", "::1", "localhost"}


def create_app(model: ServedModel, settings: ServeSettings) -> Starlette:
    scheduler = Scheduler(settings.max_requests)
    handlers = Handlers(model, scheduler, settings)
    named = "/v2/models/{name}"
    versioned = named + "/versions/{version}"
    routes = [
        Route("/v2", handlers.server_metadata),
        Route("/v2/", handlers.server_metadata),
        Route("/v2/health/live", handlers.live),
        Route("/v2/health/ready", handlers.ready),
        Route("/v1/classify", handlers.classify, methods=["POST"]),
    ]
    for base in (named, versioned):
        routes += [
            Route(base, handlers.model_metadata),
            Route(f"{base}/ready", handlers.model_ready),
            Route(f"{base}/infer", handlers.infer, methods=["POST"]),
        ]

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        yield
        scheduler.close()

    # Starlette types handlers by the base class Exception; each of these is only called with its own class.
    return Starlette(
        routes=routes,
        lifespan=lifespan,
        exception_handlers={
            RequestError: _answer_request_error,
            HTTPException: _answer_http_exception,
            ClientDisconnect: _answer_disconnect,
            Exception: _answer_bug,
        },
    )


async def _answer_request_error(_: Request, error: Exception) -> Response:
    status = error.status if isinstance(error, RequestError) else 500
    headers = {"retry-after": "1"} if status == 503 else None
    return json_response({"error": str(error)}, status, headers)


async def _answer_http_exception(_: Request, error: Exception) -> Response:
    if not isinstance(error, HTTPException):
        return json_response({"error": "internal error"}, 500)
    return json_response({"error": error.detail}, error.status_code, dict(error.headers or {}))


async def _answer_disconnect(_: Request, __: Exception) -> Response:
    return Response(status_code=400)  # nobody reads it: the client has gone


async def _answer_bug(_: Request, error: Exception) -> Response:
    identifier = secrets.token_hex(4)
    logger.error("internal error %s", identifier, exc_info=error)
    return json_response({"error": f"internal error, id={identifier}"}, 500)


@dataclass(frozen=True)
class ServerReady:
    """What a started server is: where it listens, what it runs and why, and how its self-test went."""

    address: str
    model: str
    artifact: str
    reason: str
    runner: str
    self_test: SelfTest
    is_public: bool


def run_server(bundle_path: Path, settings: ServeSettings, announce: Callable[[ServerReady], None]) -> None:
    """Serves until SIGTERM or SIGINT; the socket opens after the bundle's self-test has passed.

    Raises:
        BundleError, ArtifactError, SelfTestError: nothing is served.
        AddressError: the address cannot be bound.
    """
    with open_model(bundle_path, settings) as model:
        app = create_app(model, settings)
        config = uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,
            server_header=False,
            date_header=False,
            lifespan="on",
            ws="none",
            backlog=128,
            limit_concurrency=settings.max_connections,
            timeout_keep_alive=5,
            timeout_graceful_shutdown=settings.shutdown_timeout_s,
        )
        server = uvicorn.Server(config)
        with _bind(settings.host, settings.port) as listener, _signals_end_cleanly(server):
            announce(_describe(model, settings.host, listener.getsockname()[1]))
            server.run(sockets=[listener])


@contextlib.contextmanager
def _signals_end_cleanly(server: uvicorn.Server) -> Iterator[None]:
    """A signal before uvicorn listens for it still stops the server; and the one that uvicorn raises again after
    its shutdown does no harm, so that a clean shutdown exits with 0.
    """
    signals = (signal.SIGTERM, signal.SIGINT)

    def stop(_number: int, _frame: FrameType | None) -> None:
        server.should_exit = True

    before = [signal.signal(number, stop) for number in signals]
    try:
        yield
    finally:
        for number, handler in zip(signals, before, strict=True):
            signal.signal(number, handler)


def _bind(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=128)
    except OSError as error:
        raise AddressError(
            f"{host}:{port} cannot be bound: {error.strerror or error}.", hint="choose another --host or --port"
        ) from error


def _describe(model: ServedModel, host: str, port: int) -> ServerReady:
    shown = f"[{host}]" if ":" in host else host
    return ServerReady(
        address=f"http://{shown}:{port}",
        model=model.name,
        artifact=model.choice.artifact.name,
        reason=model.choice.reason,
        runner=model.runner.name,
        self_test=model.tested,
        is_public=host not in _LOOPBACK,
    )

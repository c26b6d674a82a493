"""The control: what one writes in an hour with FastAPI. Raw bodies in, raw logits out, work in a thread pool.

`uvicorn benchmarks.serve_peers.control:app`, in an environment with fastapi, uvicorn, httptools and uvloop.
"""

from __future__ import annotations

import functools
import importlib
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from benchmarks.serve_peers.work import POOL, work_from_environment

anyio: Any = importlib.import_module("anyio")
fastapi: Any = importlib.import_module("fastapi")
if TYPE_CHECKING:
    Request = Any
    Response = Any
else:
    Request, Response = fastapi.Request, fastapi.Response

work = work_from_environment()
app: Any = fastapi.FastAPI()


@functools.cache
def _limiter() -> Any:
    """As many threads as asked for; FastAPI's own pool has 40."""
    return anyio.CapacityLimiter(int(os.environ[POOL]))


async def _answer(request: Request, compute: Callable[[bytes], bytes]) -> Response:
    body = await request.body()
    logits = await anyio.to_thread.run_sync(compute, body, limiter=_limiter())
    return Response(logits, media_type="application/octet-stream")


async def tensor(request: Request) -> Response:
    return await _answer(request, work.tensor)


async def jpeg(request: Request) -> Response:
    return await _answer(request, work.jpeg)


async def ready() -> Response:
    return Response()


# FastAPI looks annotations up by name in this module, where they are its own classes.
app.add_api_route("/tensor", tensor, methods=["POST"])
app.add_api_route("/jpeg", jpeg, methods=["POST"])
app.add_api_route("/ready", ready)

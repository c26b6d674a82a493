"""The admin socket: a Unix socket of the server's own user, by which the model is changed and the server is drained."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import orjson

from edgetune.core.errors import AddressError
from edgetune.serve.errors import ClientGone, RequestError, as_request_error
from edgetune.serve.http.request import Answer, Receive, Request, Scope, Send, json_answer, write_answer
from edgetune.serve.service import Service
from edgetune.serve.slot import Swap

_BODY_BYTES = 1 << 16

Change = Callable[[Path | None], Awaitable[Swap]]


class AdminApp:
    """`GET /status`; `POST /swap` with `{"bundle": PATH}`, or nothing for the path the server was started with; `POST
    /drain`, after which the server says that it is not ready, and answers all the same.
    """

    def __init__(self, service: Service, change: Change) -> None:
        self._service = service
        self._change = change

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        request = Request(scope, receive)
        try:
            await write_answer(await self._answer(request), scope, send)
        except ClientGone:
            return

    async def _answer(self, request: Request) -> Answer:
        try:
            call = (request.method, request.path)
            if call == ("GET", "/status"):
                return json_answer(self._status())
            if call == ("POST", "/drain"):
                self._service.is_draining = True
                return json_answer(self._status())
            if call == ("POST", "/swap"):
                swap = await self._change(_bundle_of(await request.read_body(_BODY_BYTES)))
                return json_answer(asdict(swap), 200 if swap.ok else 409)
        except ClientGone:
            raise
        except Exception as error:  # noqa: BLE001 - as in the application for clients
            refusal = as_request_error(error)
            return json_answer({"error": refusal.message}, refusal.status)
        return json_answer({"error": "Not Found"}, 404)

    def _status(self) -> dict[str, Any]:
        service = self._service
        model = service.slot.current.model
        return {
            "live": service.is_live,
            "ready": service.is_ready,
            "draining": service.is_draining,
            "bundle": str(model.bundle.path),
            "bundle_digest": model.digest,
            "artifact": model.choice.artifact.name,
            "reason": model.choice.reason,
            "runner": model.runner.name,
            "threads": str(service.plan),
            "last_swap": None if service.slot.last_swap is None else asdict(service.slot.last_swap),
            "inflight_requests": service.inflight,
            "queue_length": service.scheduler.queue_length,
        }


def _bundle_of(body: bytes | bytearray) -> Path | None:
    if not body.strip():
        return None
    try:
        content = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise RequestError(400, "the request is not valid JSON") from error
    bundle = content.get("bundle") if isinstance(content, dict) and set(content) <= {"bundle"} else None
    if not isinstance(bundle, str) or not bundle or "\0" in bundle:
        raise RequestError(400, 'the request is expected to be {"bundle": "/path/of/a/bundle"}, or nothing')
    return Path(bundle)


def bind_admin(path: Path) -> socket.socket:
    """A Unix socket that only this user can reach; one that a dead server left behind is replaced.

    Raises:
        AddressError: the path cannot be bound, is no socket, or a server answers there.
    """
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    mask = os.umask(0o177)
    try:
        _remove_dead(path)
        listener.bind(str(path))
        listener.listen(8)
    except (OSError, ValueError) as error:
        listener.close()
        raise AddressError(
            f"the admin socket {path} cannot be bound: {getattr(error, 'strerror', None) or error}.",
            hint="its folder must exist and be this user's, and no other server may use it",
        ) from error
    finally:
        os.umask(mask)
    return listener


def _remove_dead(path: Path) -> None:
    if not os.path.lexists(path):
        return
    if not stat.S_ISSOCK(path.lstat().st_mode):
        raise OSError(0, "it is there and is no socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
            return
    raise OSError(0, "a server answers there")

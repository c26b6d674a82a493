"""From a bundle to a port: what is checked and opened before anybody is answered."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import os
import re
import signal
import socket
import warnings
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgetune.core.errors import EdgetuneError, UsageError, first_line
from edgetune.runners.from_bundle import SelfTest
from edgetune.serve.admin import bind_admin
from edgetune.serve.guard import check_access, is_loopback, tls_context
from edgetune.serve.http.listener import bind
from edgetune.serve.model import ServedModel, open_model
from edgetune.serve.observe.logs import configure_logging
from edgetune.serve.observe.notify import Notifier, inherited_sockets
from edgetune.serve.process import Process, Start
from edgetune.serve.scheduling.plan import plan_threads
from edgetune.serve.settings import ServeSettings

logger = logging.getLogger(__name__)

_MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
# What systemd is asked to wait for while a model is opened: a provider may build its engine then.
_OPENING_S = 600


@dataclass(frozen=True)
class ServerReady:
    """What a started server is: where it listens, what it runs and why, and how its self-test went.

    `instead_of` says why the first bundle is not the one that is served; empty where it is.
    """

    address: str
    model: str
    bundle: str
    artifact: str
    reason: str
    runner: str
    threads: str
    self_test: SelfTest
    is_public: bool
    instead_of: str = ""


def run_server(bundle_path: Path, settings: ServeSettings, announce: Callable[[ServerReady], None]) -> None:
    """Serves until SIGTERM or SIGINT; the socket opens after the bundle's self-test has passed.

    Raises:
        BundleError, ArtifactError, SelfTestError: nothing can be served, not even `previous`.
        AddressError, ConfigError, UsageError: the address, the TLS files, the token or the options are unfit.
    """
    check_access(settings)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until there is a model that could be changed
    _log_to_stderr(settings)
    name, tls, notifier = model_name(bundle_path, settings), tls_context(settings.access), Notifier(os.environ)
    with contextlib.ExitStack() as model_stack, contextlib.ExitStack() as sockets:
        model, problem = _open_first(model_stack, bundle_path, settings, notifier)
        listener, settings = _listener(settings)
        sockets.enter_context(listener)
        admin = None
        if settings.admin_socket is not None:
            admin = sockets.enter_context(bind_admin(settings.admin_socket))
            sockets.callback(settings.admin_socket.unlink, missing_ok=True)
        ready = dataclasses.replace(_describe(name, model, settings, listener), instead_of=problem)
        start = Start(name, model, model_stack.pop_all().close, listener, admin, tls)
        process = Process(bundle_path, settings, notifier)
        _run(process.run(start, lambda: announce(ready)))


def _log_to_stderr(settings: ServeSettings) -> None:
    """What these libraries have to say are clients' faults, which are counted, and told to the clients."""
    configure_logging(settings.log_format, "INFO")
    for name in ("uvicorn", "python_multipart"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", module=r"PIL\.")


def model_name(bundle_path: Path, settings: ServeSettings) -> str:
    """The name in URLs: as given, or the last part of the bundle's path. A link keeps its own name, so that turning
    it to another bundle does not change the address.

    Raises:
        UsageError: it cannot stand in a URL.
    """
    name = settings.model_name or os.path.basename(os.path.abspath(bundle_path))  # noqa: PTH100, PTH119 - links stay
    if not _MODEL_NAME.fullmatch(name) or name == "stats":
        raise UsageError(
            f"the model name {name!r} cannot stand in a URL.",
            hint="--model-name with letters, digits, '.', '_' and '-'",
        )
    return name


def _open_first(
    stack: contextlib.ExitStack, path: Path, settings: ServeSettings, notifier: Notifier
) -> tuple[ServedModel, str]:
    """The model, and why it is the previous bundle's, where it is."""

    def say(what: str) -> None:
        notifier.extend_timeout(_OPENING_S)
        notifier.status(what)

    try:
        return stack.enter_context(open_model(path, settings, say)), ""
    except Exception as error:
        if settings.previous is None or not settings.previous.exists():
            raise
        why = error.message if isinstance(error, EdgetuneError) else first_line(error)
        logger.error("the bundle cannot be served, taking the previous one", extra={"why": why})  # noqa: TRY400
        return stack.enter_context(open_model(settings.previous, settings, say)), why


def _listener(settings: ServeSettings) -> tuple[socket.socket, ServeSettings]:
    """The first socket that systemd hands over, else one of our own; with the settings that are true of its address.

    Raises:
        AddressError, UsageError: see `bind` and `check_access`, which an inherited socket must pass too.
    """
    inherited = inherited_sockets(os.environ)
    for spare in inherited[1:]:
        spare.close()
    if not inherited:
        return bind(settings.host, settings.port), settings
    listener = inherited[0]
    if listener.family in (socket.AF_INET, socket.AF_INET6):
        settings = dataclasses.replace(settings, host=listener.getsockname()[0])
        check_access(settings)
    return listener, settings


def _describe(name: str, model: ServedModel, settings: ServeSettings, listener: socket.socket) -> ServerReady:
    scheme = "http" if settings.access.tls_certificate is None else "https"
    return ServerReady(
        address=f"{scheme}://{_shown_address(settings.host, listener)}",
        model=name,
        bundle=str(model.bundle.path),
        artifact=model.choice.artifact.name,
        reason=model.choice.reason,
        runner=model.runner.name,
        threads=str(plan_threads(settings, model.choice.runner)),
        self_test=model.tested,
        is_public=not is_loopback(settings.host),
    )


def _shown_address(host: str, listener: socket.socket) -> str:
    if listener.family not in (socket.AF_INET, socket.AF_INET6):
        return f"unix:{listener.getsockname()}"
    shown = f"[{host}]" if ":" in host else host
    return f"{shown}:{listener.getsockname()[1]}"


def _run(main: Coroutine[Any, Any, None]) -> None:
    loop = _new_loop()
    try:
        loop.run_until_complete(main)
    finally:
        loop.close()


def _new_loop() -> asyncio.AbstractEventLoop:
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
    return loop

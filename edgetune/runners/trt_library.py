"""TensorRT or TensorRT-RTX, whichever is installed: one module with two names, found without naming either in advance.

Versions differ in what they offer and number their enums differently, so everything is asked by name.
"""

from __future__ import annotations

import importlib
import importlib.util
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from edgetune.core.engine_record import TENSORRT, TENSORRT_RTX
from edgetune.core.errors import MissingDependencyError, UsageError, first_line

AUTO = "auto"
# TensorRT first: where both are installed, the full one is the one that a Jetson or server runs.
_MODULES = {TENSORRT: ("tensorrt", "tensorrt_bindings"), TENSORRT_RTX: ("tensorrt_rtx", "tensorrt_rtx_bindings")}

# By name: the enum's numbers differ between versions.
_DTYPES = {
    "FLOAT": "float32", "HALF": "float16", "INT8": "int8", "INT32": "int32", "INT64": "int64", "UINT8": "uint8",
    "BOOL": "bool",
}  # fmt: skip

LogSink = Callable[[str, str], None]


@dataclass(frozen=True)
class TrtLibrary:
    """`module` is the imported library; `name` is `tensorrt` or `tensorrt-rtx`."""

    name: str
    version: str
    module: Any

    @property
    def is_rtx(self) -> bool:
        return self.name == TENSORRT_RTX


def installed_backends() -> tuple[str, ...]:
    """Backends whose module is there; it is not imported, and may still lack its libraries."""
    return tuple(name for name, modules in _MODULES.items() if _find_module(modules))


def load_library(wanted: str = AUTO) -> TrtLibrary:
    """Imports the backend that was asked for, or the first that is installed.

    Raises:
        UsageError: there is no such backend.
        MissingDependencyError: it is not installed, or its own libraries do not load.
    """
    if wanted not in (AUTO, *_MODULES):
        raise UsageError(f"the backend {wanted!r} is not known; known: {AUTO}, {', '.join(_MODULES)}.")
    names = installed_backends() if wanted == AUTO else (wanted,)
    if not names:
        raise _not_installed(wanted)
    loaded = (_import_if_whole(name) for name in names[:-1])
    return next((library for library in loaded if library is not None), None) or _import(names[-1])


def numpy_dtype(dtype: Any) -> str:
    """The name that numpy has for one of the library's datatypes, or its own in small letters where numpy has none."""
    name = str(dtype.name)
    return _DTYPES.get(name, name.lower())


def _import_if_whole(name: str) -> TrtLibrary | None:
    """None for bindings without their libraries, which PyPI has."""
    try:
        return _import(name)
    except MissingDependencyError:
        return None


def _import(name: str) -> TrtLibrary:
    module_name = _find_module(_MODULES[name])
    if module_name is None:
        raise _not_installed(name)
    try:
        module = importlib.import_module(module_name)
        return TrtLibrary(name, str(module.__version__), module)
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        raise MissingDependencyError(
            f"{name} is installed, but does not load: {first_line(error)}.", hint="edgetune doctor"
        ) from error


def _not_installed(wanted: str) -> MissingDependencyError:
    what, extra = (f"{wanted} is not", wanted)
    if wanted == AUTO:
        what, extra = "neither TensorRT nor TensorRT-RTX is", TENSORRT
    return MissingDependencyError(
        f"{what} installed for this Python.",
        hint=f"pip install 'edgetune[{extra}]'; on a Jetson, JetPack brings tensorrt: make the environment with "
        "--system-site-packages",
    )


def _find_module(names: tuple[str, ...]) -> str | None:
    """The first that is a package with code; a folder that happens to have the name is none."""
    specs = ((name, importlib.util.find_spec(name)) for name in names)
    return next((name for name, spec in specs if spec is not None and spec.origin is not None), None)


_loggers: dict[str, Any] = {}
_making_logger = threading.Lock()


def library_logger(library: TrtLibrary, sink: LogSink) -> Any:
    """The one logger of this process, sending to `sink` from now on: the library keeps the first logger for ever."""
    with _making_logger:
        if library.name not in _loggers:
            _loggers[library.name] = _make_logger(library.module)
    logger = _loggers[library.name]
    logger.sink = sink
    return logger


def _make_logger(trt: Any) -> Any:
    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.sink: LogSink = lambda _severity, _message: None

        def log(self, severity: Any, message: str) -> None:
            self.sink(str(severity.name), message)

    return Logger()

"""ONNX Runtime: the only place that opens an `InferenceSession`."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from edgetune.core.errors import MissingDependencyError, ModelError
from edgetune.core.machine import usable_cpus
from edgetune.core.tensors import Array, Feed, TensorSpec, check_feed

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

CPU_PROVIDER = "CPUExecutionProvider"

_DTYPES = {
    "tensor(uint8)": "uint8",
    "tensor(int8)": "int8",
    "tensor(int32)": "int32",
    "tensor(int64)": "int64",
    "tensor(float16)": "float16",
    "tensor(float)": "float32",
    "tensor(double)": "float64",
    "tensor(bool)": "bool",
}


class OrtRunner:
    """Runs an ONNX model, from a file or from bytes, on the providers that were asked for and no others.

    `threads` bounds the session's intra-op threads; None takes every usable CPU. Threads never spin: an idle
    or shared device keeps its cores.
    """

    def __init__(
        self, model: Path | bytes, *, providers: tuple[str, ...] = (CPU_PROVIDER,), threads: int | None = None
    ) -> None:
        self._model = model
        self._providers = providers
        self._threads = threads or usable_cpus()
        self._session: InferenceSession | None = None
        self._input_specs: tuple[TensorSpec, ...] = ()

    @property
    def name(self) -> str:
        return f"onnxruntime {self._providers[0].removesuffix('ExecutionProvider')}"

    @property
    def input_specs(self) -> tuple[TensorSpec, ...]:
        return self._input_specs

    @property
    def output_specs(self) -> tuple[TensorSpec, ...]:
        return tuple(_spec(argument) for argument in self._open_session().get_outputs())

    @property
    def metadata(self) -> dict[str, str]:
        """The model's own metadata: labels and preprocess spec of models that edgetune exported."""
        return dict(self._open_session().get_modelmeta().custom_metadata_map)

    def __enter__(self) -> OrtRunner:
        self._session = _open(self._model, self._providers, self._threads)
        self._input_specs = tuple(_spec(argument) for argument in self._session.get_inputs())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._session = None

    def infer(self, feed: Feed) -> dict[str, Array]:
        session = self._open_session()
        check_feed(feed, self._input_specs)
        names = [output.name for output in session.get_outputs()]
        try:
            outputs = session.run(names, {name: np.ascontiguousarray(array) for name, array in feed.items()})
        except _ort_errors() as error:
            raise ModelError(f"ONNX Runtime failed while running the model: {error}") from error
        return dict(zip(names, outputs, strict=True))

    def _open_session(self) -> InferenceSession:
        if self._session is None:
            raise ModelError("the ONNX Runtime session is not open; use the runner in a with block.")
        return self._session


def ort_version() -> str | None:
    """ONNX Runtime's version, or None where it is not installed."""
    try:
        import onnxruntime
    except ImportError:
        return None
    return str(onnxruntime.__version__)


def available_providers() -> tuple[str, ...]:
    """The execution providers of the installed ONNX Runtime; a provider listed may still lack its libraries."""
    return tuple(_import_ort().get_available_providers())


def _import_ort() -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingDependencyError(
            "ONNX Runtime is not installed.",
            hint="pip install 'edgetune[cpu]' for a CPU, or 'edgetune[gpu]' for an NVIDIA GPU, never both",
        ) from error
    return onnxruntime


def _ort_errors() -> tuple[type[BaseException], ...]:
    """ONNX Runtime's exceptions have no common root but `Exception`; these are the ones it raises."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    names = ("Fail", "InvalidArgument", "InvalidProtobuf", "InvalidGraph", "NoSuchFile", "NoModel", "NotImplemented",
             "RuntimeException", "EPFail", "EngineError", "ModelLoaded", "ModelRequiresCompilation")  # fmt: skip
    return (RuntimeError, ValueError, *(getattr(state, name) for name in names if hasattr(state, name)))


def _open(model: Path | bytes, providers: tuple[str, ...], threads: int) -> InferenceSession:
    ort = _import_ort()
    _check_providers(providers, ort.get_available_providers())
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    source = str(model) if isinstance(model, Path) else model
    name = str(model) if isinstance(model, Path) else "the ONNX model"
    try:
        session: InferenceSession = ort.InferenceSession(source, options, providers=list(providers))
    except _ort_errors() as error:
        raise ModelError(f"ONNX Runtime {ort.__version__} cannot load {name}: {error}") from error
    _check_providers(providers, session.get_providers())
    return session


def _check_providers(wanted: tuple[str, ...], present: list[str]) -> None:
    """ONNX Runtime itself falls back to the CPU without a word; nothing here does."""
    missing = [provider for provider in wanted if provider not in present]
    if missing:
        raise ModelError(
            f"{', '.join(missing)} was asked for, but ONNX Runtime has {', '.join(present)}.",
            hint="edgetune doctor tells which libraries are missing",
        )


def _spec(argument: Any) -> TensorSpec:
    shape = tuple(size if isinstance(size, int) else None for size in argument.shape)
    return TensorSpec(argument.name, _DTYPES.get(argument.type, argument.type), shape)

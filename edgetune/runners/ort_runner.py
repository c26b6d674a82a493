"""ONNX Runtime: the only place that opens an `InferenceSession`."""

from __future__ import annotations

import functools
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

# x86 without VNNI adds pairs of u8 x s8 products in 16 bits, which saturate. With this entry ONNX Runtime makes the
# weights u8 in memory and takes kernels that add in 32 bits: the same sums, exactly, in about 1.5 times the time.
_EXACT_INT8_ENTRY = "session.x64quantprecision"
# An ONNX file: MatMulInteger of a, uint8 (2, 8), and b, int8 (8, 16), to y, int32 (2, 16); opset 13, IR version 8.
_U8_S8_PRODUCT = (
    b'\x08\x08:\\\n\x18\n\x01a\n\x01b\x12\x01y"\rMatMulInteger\x12\x01gZ\x13\n\x01a\x12\x0e\n\x0c\x08\x02\x12\x08\n\x02\x08'
    b"\x02\n\x02\x08\x08Z\x13\n\x01b\x12\x0e\n\x0c\x08\x03\x12\x08\n\x02\x08\x08\n\x02\x08\x10b\x13\n\x01y\x12\x0e\n\x0c\x08"
    b"\x06\x12\x08\n\x02\x08\x02\n\x02\x08\x10B\x04\n\x00\x10\r"
)

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
    or shared device keeps its cores. `exact_int8` keeps u8 x s8 sums from saturating; None does so on the CPUs
    that need it, True costs time on the others, and False is for measuring what saturation does.
    """

    def __init__(
        self,
        model: Path | bytes,
        *,
        providers: tuple[str, ...] = (CPU_PROVIDER,),
        threads: int | None = None,
        exact_int8: bool | None = None,
    ) -> None:
        self._model = model
        self._providers = providers
        self._threads = threads or usable_cpus()
        self._exact_int8 = exact_int8
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
        exact = int8_saturates() if self._exact_int8 is None else self._exact_int8
        self._session = _open(self._model, self._providers, _session_options(self._threads, exact))
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


@functools.cache
def int8_saturates() -> bool:
    """Whether ONNX Runtime's kernels on this CPU clip u8 x s8 sums at 16 bits: asked of a small product.

    CPU flags would not do: not every system or emulator tells them, and they do not say which kernel is taken.
    Where the product cannot be computed, the answer is the safe one, True.
    """
    ort = _import_ort()
    feed = {"a": np.full((2, 8), 255, np.uint8), "b": np.full((8, 16), 127, np.int8)}
    try:
        session = ort.InferenceSession(_U8_S8_PRODUCT, _session_options(1, False), providers=[CPU_PROVIDER])
        (sums,) = session.run(None, feed)
    except _ort_errors():
        return True
    return not (sums == 8 * 255 * 127).all()


def _session_options(threads: int, exact_int8: bool) -> Any:
    options = _import_ort().SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if exact_int8:
        options.add_session_config_entry(_EXACT_INT8_ENTRY, "1")
    return options


def _open(model: Path | bytes, providers: tuple[str, ...], options: Any) -> InferenceSession:
    ort = _import_ort()
    _check_providers(providers, ort.get_available_providers())
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


def write_optimised(model: Path | bytes, destination: Path) -> None:
    """Writes the graph that ONNX Runtime really runs on a CPU here, after its optimisations, as an ONNX file."""
    options = _session_options(1, int8_saturates())
    options.optimized_model_filepath = str(destination)
    _open(model, (CPU_PROVIDER,), options)

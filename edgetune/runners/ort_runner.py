"""ONNX Runtime: the only place that opens an `InferenceSession`."""

from __future__ import annotations

import functools
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from edgetune.core.errors import ModelError, TensorError
from edgetune.core.machine import usable_cpus
from edgetune.core.tensors import Array, Feed, TensorSpec, check_feed
from edgetune.runners.ort_libraries import import_ort, ort_errors, plugin_device, prepare_provider
from edgetune.runners.ort_providers import (
    CPU,
    CPU_PROVIDER,
    NO_CPU_NODES,
    ONE_RELU,
    EpChoice,
    EpOptions,
    model_folder,
    provider_label,
    provider_options,
    session_entries,
    session_providers,
)

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

# Part of what ONNX Runtime says where nodes are left to the CPU and must not be.
_LEFT_TO_CPU = "assigned to the default CPU EP"

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
    that need it, True costs time on the others, and False is for measuring what saturation does. `ep` chooses a
    provider by edgetune's name, with options, in place of `providers`. Without `optimise` the graph runs on a CPU
    node by node as it is in the file: a Q/DQ graph in float, which is what its integer kernels have to come to.
    """

    def __init__(
        self,
        model: Path | bytes,
        *,
        providers: tuple[str, ...] = (CPU_PROVIDER,),
        threads: int | None = None,
        exact_int8: bool | None = None,
        ep: EpChoice | None = None,
        optimise: bool = True,
    ) -> None:
        self._model = model
        self._providers = providers if ep is None else (ep.ort_name,)
        self._ep = ep
        self._threads = threads or usable_cpus()
        self._exact_int8 = exact_int8
        self._optimise = optimise
        self._session: InferenceSession | None = None
        self._input_specs: tuple[TensorSpec, ...] = ()

    @property
    def name(self) -> str:
        return f"onnxruntime {provider_label(self._providers[0])}" + ("" if self._optimise else ", unoptimised")

    @property
    def input_specs(self) -> tuple[TensorSpec, ...]:
        return self._input_specs

    @property
    def output_specs(self) -> tuple[TensorSpec, ...]:
        return tuple(_spec(argument) for argument in self._open_session().get_outputs())

    @property
    def min_batch(self) -> int:
        return 1 if self._ep is None or self._ep.max_batch is None else self._ep.options.min_batch

    @property
    def max_batch(self) -> int | None:
        """TensorRT's, where it built for a range of batches; more would be another engine, made while serving."""
        return None if self._ep is None else self._ep.max_batch

    @property
    def metadata(self) -> dict[str, str]:
        """The model's own metadata: labels and preprocess spec of models that edgetune exported."""
        return dict(self._open_session().get_modelmeta().custom_metadata_map)

    def __enter__(self) -> OrtRunner:
        self._session = self._start()
        self._input_specs = tuple(_spec(argument) for argument in self._session.get_inputs())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._session = None

    def infer(self, feed: Feed) -> dict[str, Array]:
        session = self._open_session()
        check_feed(feed, self._input_specs)
        self._check_batch(feed)
        names = [output.name for output in session.get_outputs()]
        try:
            outputs = session.run(names, {name: np.ascontiguousarray(array) for name, array in feed.items()})
        except ort_errors() as error:
            raise ModelError(f"ONNX Runtime failed while running the model: {error}") from error
        return dict(zip(names, outputs, strict=True))

    def _check_batch(self, feed: Feed) -> None:
        """Beyond its range of batches TensorRT's provider would build another engine, in the middle of serving."""
        batch = len(next(iter(feed.values()))) if self.max_batch is not None else 0
        if self.max_batch is not None and not self.min_batch <= batch <= self.max_batch:
            raise TensorError(f"the batch is {batch}, {self.name} was opened for {self.min_batch} to {self.max_batch}.")

    def _start(self) -> InferenceSession:
        if self._ep is not None and self._ep.name != CPU:
            if not self._optimise:
                raise ModelError(f"{self._ep.name} optimises as it does; only a CPU runs a graph unoptimised.")
            return _open_on_provider(self._model, self._ep, self._threads)
        exact = int8_saturates() if self._exact_int8 is None else self._exact_int8
        options = _session_options(self._threads, exact)
        if CPU_PROVIDER not in self._providers:
            options.add_session_config_entry(*NO_CPU_NODES)
        if not self._optimise:
            options.graph_optimization_level = import_ort().GraphOptimizationLevel.ORT_DISABLE_ALL
        return _open(self._model, list(self._providers), options)

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
    return tuple(import_ort().get_available_providers())


@functools.cache
def int8_saturates() -> bool:
    """Whether ONNX Runtime's kernels on this CPU clip u8 x s8 sums at 16 bits: asked of a small product.

    CPU flags would not do: not every system or emulator tells them, and they do not say which kernel is taken.
    Where the product cannot be computed, the answer is the safe one, True.
    """
    ort = import_ort()
    feed = {"a": np.full((2, 8), 255, np.uint8), "b": np.full((8, 16), 127, np.int8)}
    try:
        session = ort.InferenceSession(_U8_S8_PRODUCT, _session_options(1, False), providers=[CPU_PROVIDER])
        (sums,) = session.run(None, feed)
    except ort_errors():
        return True
    return not (sums == 8 * 255 * 127).all()


def _session_options(threads: int, exact_int8: bool) -> Any:
    options = import_ort().SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if exact_int8:
        options.add_session_config_entry(_EXACT_INT8_ENTRY, "1")
    return options


def _open(model: Path | bytes, providers: list[Any], options: Any) -> InferenceSession:
    """`providers` as ONNX Runtime takes them, with or without options; empty where `options` has them."""
    ort = import_ort()
    wanted = [provider if isinstance(provider, str) else provider[0] for provider in providers]
    _check_providers(wanted, ort.get_available_providers())
    source = str(model) if isinstance(model, Path) else model
    try:
        # Its fallback would print to stdout and try the CPU, here and whenever the provider fails at a run.
        session: InferenceSession = ort.InferenceSession(source, options, providers=providers, enable_fallback=0)
    except ort_errors() as error:
        message = f"ONNX Runtime {ort.__version__} cannot load {_title(model)}: {str(error).strip()}"
        raise ModelError(message, hint=_load_hint(message)) from error
    _check_providers(wanted, session.get_providers())
    return session


def _load_hint(message: str) -> str:
    if _LEFT_TO_CPU in message or "Please install TensorRT" in message:
        return "edgetune doctor tells which providers are usable here"
    return ""


def _title(model: Path | bytes) -> str:
    return str(model) if isinstance(model, Path) else "the ONNX model"


def _check_providers(wanted: list[str], present: list[str]) -> None:
    """ONNX Runtime itself falls back to the CPU without a word; nothing here does."""
    missing = [provider for provider in wanted if provider not in present]
    if missing:
        raise ModelError(
            f"{', '.join(missing)} was asked for, but ONNX Runtime has {', '.join(present)}.",
            hint="edgetune doctor tells which libraries are missing",
        )


def _open_on_provider(model: Path | bytes, ep: EpChoice, threads: int) -> InferenceSession:
    """A session on a GPU's provider.

    Raises:
        MissingDependencyError: the provider is not installed, or lacks libraries.
        ModelError: it does not start, or does not take the whole model and `allow_cpu_nodes` is not set.
    """
    ort = import_ort()
    prepare_provider(ort, ep)
    folder = model_folder(model, ep)
    options = ep_session_options(ort, ep, threads, folder)
    try:
        session = _open(model, session_providers(ep, folder), options)
    except ModelError as error:
        if _LEFT_TO_CPU in error.message:
            raise _why_not_whole(model, ep, threads) from error
        raise
    _check_providers([ep.ort_name], session.get_providers())
    return session


def ep_session_options(ort: Any, ep: EpChoice, threads: int, folder: Path | None) -> Any:
    options = _session_options(threads, exact_int8=False)
    for key, value in session_entries(ep).items():
        options.add_session_config_entry(key, value)
    if ep.is_tensorrt:
        # TensorRT optimises by itself, and must get Q and DQ as they are in the file: ONNX Runtime would quantize
        # biases to int32, which TensorRT refuses, or fold the weights' DequantizeLinear away.
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    if ep.is_plugin:
        options.add_provider_for_devices([plugin_device(ort, ep)], provider_options(ep, folder))
    return options


def _why_not_whole(model: Path | bytes, ep: EpChoice, threads: int) -> ModelError:
    """ONNX Runtime says the same of nodes that the provider does not take and of a provider that does not start."""
    label = provider_label(ep.ort_name)
    helped = EpChoice(ep.name, EpOptions(allow_cpu_nodes=True))
    try:
        _open_on_provider(ONE_RELU, helped, threads)
    except ModelError:
        return ModelError(
            f"{ep.name} was asked for, but {label} does not start here, though its libraries load.",
            hint="nvidia-smi tells whether the driver sees a GPU; ONNX Runtime's log above tells the rest",
        )
    return ModelError(
        f"{label} does not take all of {_title(model)}: ONNX Runtime would run the other nodes on the CPU.",
        hint="run the model with --runner cpu, or build an engine of it with edgetune build",
    )


def _spec(argument: Any) -> TensorSpec:
    shape = tuple(size if isinstance(size, int) else None for size in argument.shape)
    return TensorSpec(argument.name, _DTYPES.get(argument.type, argument.type), shape)


def write_optimised(model: Path | bytes, destination: Path) -> None:
    """Writes the graph that ONNX Runtime really runs on a CPU here, after its optimisations, as an ONNX file."""
    options = _session_options(1, int8_saturates())
    options.optimized_model_filepath = str(destination)
    _open(model, [CPU_PROVIDER], options)

"""One engine on the GPU: the library's objects, device memory and a stream, opened and released together.

API: TensorRT Python API reference, sections Runtime, ICudaEngine and IExecutionContext; only names that TensorRT 10.3
to 11.4 and TensorRT-RTX have in common.
"""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from edgetune.core.engine_record import EngineRecord, EngineTensor
from edgetune.core.errors import EngineError, first_line
from edgetune.core.tensors import Array
from edgetune.runners.cuda import CudaContext, CudaDriver
from edgetune.runners.trt_library import TrtLibrary, library_logger, numpy_dtype
from edgetune.runners.trt_log import LogRecorder

_REBUILD = "build it again with edgetune build"
_SMALLER = "build it again for a smaller --max-batch, or end other programs that use the GPU"

Shape: TypeAlias = tuple[int, ...]
Tensors: TypeAlias = tuple[EngineTensor, ...]


def sized(shape: tuple[int | None, ...], batch: int) -> Shape:
    return tuple(batch if size is None else size for size in shape)


@dataclass(frozen=True)
class _Description:
    """What an engine says of itself; sizes are None where they may change. `batches` are the profile's limits."""

    inputs: Tensors
    outputs: Tensors
    batches: tuple[int, int]


class EngineSession:
    """Nothing else refers to the library's objects, so that dropping them here frees them while the context is still
    there: no function holds one in a variable, which an error's traceback would keep.

    `batches` are the smallest and the largest batch, once it is open.
    """

    def __init__(self, library: TrtLibrary, driver: CudaDriver, title: str) -> None:
        """`title` names the engine in errors. Raises `EngineError` when there is no context to be had."""
        self.batches = (0, 0)
        self._library = library
        self._title = title
        self._log = LogRecorder()
        self._runtime: Any = None
        self._engine: Any = None
        self._context: Any = None
        self._stream = 0
        self._addresses: dict[str, int] = {}
        self._device = contextlib.ExitStack()
        self._cuda = CudaContext(driver)

    def open(self, record: EngineRecord, engine: bytes) -> None:
        """Raises `EngineError` when the library refuses the engine, or the engine is not what its sidecar says."""
        with self._cuda.current():
            self._stream = self._cuda.create_stream()
            self._device.callback(self._cuda.destroy_stream, self._stream)
            self._load(engine, record.key.options.version_compatible)
            found = self._describe()
            _check_tensors(record, found, self._title)
            self.batches = found.batches
            self._set_shapes({item.name: sized(item.shape, self.batches[1]) for item in record.inputs})
            self._check_outputs(record.outputs)
            self._allocate(record.inputs + record.outputs)

    def _load(self, engine: bytes, version_compatible: bool) -> None:
        logger = library_logger(self._library, self._log)
        try:
            self._runtime = self._library.module.Runtime(logger)
            if version_compatible:
                self._runtime.engine_host_code_allowed = True  # it brings a runtime of its own; its digest was checked
            self._engine = self._runtime.deserialize_cuda_engine(engine)
        except (TypeError, RuntimeError) as error:  # the bindings' word for a constructor that returned nothing
            raise self._error("cannot be loaded", first_line(error)) from error
        if self._engine is None:
            raise self._error("cannot be loaded")
        self._context = self._engine.create_execution_context()
        if self._context is None:
            raise self._error("cannot be made ready to run", hint=_SMALLER)

    def _describe(self) -> _Description:
        tensors: dict[bool, list[EngineTensor]] = {True: [], False: []}
        limits = []
        for index in range(self._engine.num_io_tensors):
            name = str(self._engine.get_tensor_name(index))
            is_input = self._engine.get_tensor_mode(name) == self._library.module.TensorIOMode.INPUT
            dtype = numpy_dtype(self._engine.get_tensor_dtype(name))
            shape = tuple(size if size >= 0 else None for size in map(int, self._engine.get_tensor_shape(name)))
            tensors[is_input].append(EngineTensor(name, dtype, shape))
            if is_input and shape:
                limits.append((shape[0], shape[0]) if shape[0] is not None else self._profile(name))
        batches = (max(low for low, _ in limits), min(high for _, high in limits)) if limits else (1, 1)
        return _Description(tuple(tensors[True]), tuple(tensors[False]), batches)

    def _profile(self, name: str) -> tuple[int, int]:
        smallest, _, largest = self._engine.get_tensor_profile_shape(name, 0)
        return int(smallest[0]), int(largest[0])

    def _set_shapes(self, shapes: dict[str, Shape]) -> None:
        for name, shape in shapes.items():
            if not self._context.set_input_shape(name, shape):
                raise self._error(f"refuses the shape {shape} of {name!r}")

    def _check_outputs(self, outputs: Tensors) -> None:
        """At the largest batch, which the buffers are made for: a larger output would be written past their end."""
        for item in outputs:
            shape = tuple(map(int, self._context.get_tensor_shape(item.name)))
            expected = sized(item.shape, self.batches[1])
            if shape != expected:
                message = f"{self._title} gives {item.name!r} the shape {shape}, its sidecar says {expected}."
                raise EngineError(message, hint=_REBUILD)

    def _allocate(self, tensors: Tensors) -> None:
        for item in tensors:
            size_bytes = math.prod(sized(item.shape, self.batches[1])) * np.dtype(item.dtype).itemsize
            address = self._cuda.alloc(size_bytes)
            self._device.callback(self._cuda.free, address)
            self._addresses[item.name] = address
            if not self._context.set_tensor_address(item.name, address):
                raise self._error(f"refuses the memory for {item.name!r}")

    def run(self, inputs: dict[str, Array], outputs: dict[str, Array]) -> None:
        """Fills `outputs`; all arrays are C-contiguous and of one batch within `batches`.

        Raises `EngineError`; the GPU has let go of the arrays when this returns or raises.
        """
        library_logger(self._library, self._log)
        self._log.take_error()
        with self._cuda.current():
            try:
                self._enqueue(inputs, outputs)
            except BaseException:
                with contextlib.suppress(EngineError):  # the first error is the one to tell
                    self._cuda.synchronize(self._stream)
                raise
            self._cuda.synchronize(self._stream)

    def _enqueue(self, inputs: dict[str, Array], outputs: dict[str, Array]) -> None:
        self._set_shapes({name: array.shape for name, array in inputs.items()})
        for name, array in inputs.items():
            self._cuda.copy_in(self._addresses[name], array, self._stream)
        if not self._context.execute_async_v3(self._stream):
            raise self._error("failed while running")
        for name, array in outputs.items():
            self._cuda.copy_out(array, self._addresses[name], self._stream)

    def close(self) -> None:
        """Releases everything, in the reverse of its making, whatever fails on the way. Raises `EngineError`."""
        with contextlib.ExitStack() as last:
            last.callback(self._cuda.close)
            try:
                last.enter_context(self._cuda.current())
            except EngineError:
                with contextlib.suppress(EngineError):
                    self._release()
                raise
            self._release()

    def _release(self) -> None:
        self._context = None
        self._engine = None
        self._runtime = None
        self._device.close()

    def _error(self, what: str, reason: str = "", *, hint: str = _REBUILD) -> EngineError:
        """With the first error that the library logged: it logs most failures and raises few."""
        told = self._log.take_error() or reason or f"{self._library.name} gave no reason"
        return EngineError(f"{self._title} {what}: {told}.", hint=hint)


def _check_tensors(record: EngineRecord, found: _Description, title: str) -> None:
    """Raises `EngineError` unless the engine has the sidecar's tensors at the smallest and at the largest batch."""
    for kind, written, real in (("inputs", record.inputs, found.inputs), ("outputs", record.outputs, found.outputs)):
        if any(_at(written, batch) != _at(real, batch) for batch in found.batches):
            message = f"{title} has the {kind} {_words(real)}, its sidecar says {_words(written)}."
            raise EngineError(message, hint=_REBUILD)
        open_sizes = [item.name for item in (*written, *real) if None in item.shape[1:]]
        if open_sizes:
            raise EngineError(f"{title}: {open_sizes[0]!r} can change in more than its batch, which is not supported.")


def _at(tensors: Tensors, batch: int) -> set[tuple[str, str, Shape]]:
    return {(item.name, item.dtype, sized(item.shape, batch)) for item in tensors}


def _words(tensors: Tensors) -> str:
    shapes = [tuple("any" if size is None else size for size in item.shape) for item in tensors]
    return ", ".join(f"{item.name} {item.dtype} {shape}" for item, shape in zip(tensors, shapes, strict=True)) or "none"

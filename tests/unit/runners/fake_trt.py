"""Plays the `tensorrt` module: an engine with named tensors whose context reads and writes the stand-in GPU's memory.

Documented behaviour only: failures are logged and told by None or False, an object keeps the one that it came from
alive, a shape outside the profile is refused, and nothing works while the CUDA context is not current.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from edgetune.core.tensors import Array
from edgetune.runners.trt_runner import TrtRunner
from tests.unit.core.engine_records import ENGINE
from tests.unit.runners.cuda_stub import CudaStub

# The model: the mean colour of an image times this.
WEIGHT = np.array([[1.0, 0.0, -1.0], [0.5, 0.5, 0.5]], dtype=np.float32)


class Severity(enum.Enum):
    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)


class TensorIOMode(enum.Enum):
    NONE, INPUT, OUTPUT = range(3)


class DataType(enum.Enum):
    FLOAT, HALF, INT8, INT32, BOOL, UINT8, FP8, BF16, INT64 = range(9)


class ILogger:
    def log(self, severity: Severity, message: str) -> None:
        raise NotImplementedError


class Dims:
    """A shape that is no tuple, as the library's is none."""

    def __init__(self, *sizes: int) -> None:
        self._sizes = sizes

    def __len__(self) -> int:
        return len(self._sizes)

    def __getitem__(self, index: int) -> int:
        return self._sizes[index]

    def __iter__(self) -> Iterator[int]:
        return iter(self._sizes)


@dataclass
class Tensor:
    """`profile` are the batches min, opt and max of a tensor whose shape begins with -1."""

    name: str
    mode: TensorIOMode
    dtype: DataType
    shape: tuple[int, ...]
    profile: tuple[int, int, int] | None = None


def image_to_logits() -> list[Tensor]:
    return [
        Tensor("image", TensorIOMode.INPUT, DataType.UINT8, (-1, 4, 4, 3), (1, 2, 8)),
        Tensor("logits", TensorIOMode.OUTPUT, DataType.FLOAT, (-1, 2)),
    ]


class FakeTrt:
    """`failing` names the step that goes wrong, as it is documented to; `shapes` has the outputs whose shape a context
    gives wrongly; `asked` has what was to be deserialised, `batches` how many images each execution computed.
    """

    ILogger = ILogger
    TensorIOMode = TensorIOMode

    def __init__(self, stub: CudaStub) -> None:
        self.stub = stub
        self.tensors = image_to_logits()
        self.failing = ""
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.asked: list[bytes] = []
        self.batches: list[int] = []

    def Runtime(self, logger: Any) -> _Runtime:  # noqa: N802
        if self.failing == "runtime":
            logger.log(Severity.ERROR, "CUDA initialization failure with error: 35")
            raise TypeError("pybind11::init(): factory function returned nullptr")
        return _Runtime(self, logger)


class _Object:
    """Notes when it is dropped, and whether CUDA was still there."""

    def __init__(self, trt: FakeTrt, logger: Any) -> None:
        self.trt, self.logger = trt, logger

    def fails(self, step: str, message: str) -> bool:
        assert self.trt.stub.context_is_current(), f"{step} without a current context"
        if self.trt.failing != step:
            return False
        self.logger.log(Severity.INTERNAL_ERROR, "Thread context has not been set!")
        self.logger.log(Severity.WARNING, "a warning is no reason")
        self.logger.log(Severity.ERROR, message)
        self.logger.log(Severity.ERROR, "the library gave up.")
        return True

    def __del__(self) -> None:
        where = "with" if self.trt.stub.context_is_current() else "without"
        self.trt.stub.note(f"drop{type(self).__name__} {where} CUDA")


class _Runtime(_Object):
    def deserialize_cuda_engine(self, serialized_engine: bytes) -> _Engine | None:
        self.trt.asked.append(bytes(serialized_engine))
        damaged = bytes(serialized_engine) != ENGINE
        return None if self.fails("deserialize", "The engine plan\nis of version 9.") or damaged else _Engine(self)


class _Engine(_Object):
    def __init__(self, runtime: _Runtime) -> None:
        super().__init__(runtime.trt, runtime.logger)
        self._runtime = runtime
        self.tensors = {tensor.name: tensor for tensor in runtime.trt.tensors}

    @property
    def num_io_tensors(self) -> int:
        return len(self.tensors)

    def get_tensor_name(self, index: int) -> str:
        return list(self.tensors)[index]

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return self.tensors[name].mode

    def get_tensor_dtype(self, name: str) -> DataType:
        return self.tensors[name].dtype

    def get_tensor_shape(self, name: str) -> Dims:
        return Dims(*self.tensors[name].shape)

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[Dims]:
        tensor = self.tensors[name]
        assert profile_index == 0
        assert tensor.mode is TensorIOMode.INPUT
        return [Dims(batch, *tensor.shape[1:]) for batch in tensor.profile or (tensor.shape[0],) * 3]

    def create_execution_context(self) -> _Context | None:
        return None if self.fails("context", "Requested size was 11730336 bytes.") else _Context(self)


class _Context(_Object):
    def __init__(self, engine: _Engine) -> None:
        super().__init__(engine.trt, engine.logger)
        self._engine = engine
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        low, _, high = (tuple(dims) for dims in self._engine.get_tensor_profile_shape(name, 0))
        fits = len(shape) == len(low) and all(a <= b <= c for a, b, c in zip(low, shape, high, strict=True))
        if self.fails("shape", "Static dimension mismatch.") or not fits:
            return False
        self._shapes[name] = shape
        return True

    def get_tensor_shape(self, name: str) -> Dims:
        batch = self._shapes["image"][0] if "image" in self._shapes else -1
        sizes = self._engine.tensors[name].shape
        return Dims(*self.trt.shapes.get(name, tuple(batch if size == -1 else size for size in sizes)))

    def set_tensor_address(self, name: str, memory: int) -> bool:
        assert type(memory) is int
        self._addresses[name] = memory
        return not self.fails("address", "Address is not aligned.")

    def execute_async_v3(self, stream_handle: int) -> bool:
        if self.fails("execute", "Cask convolution execution."):
            return False
        assert self.trt.stub.run(stream_handle), "the stream is not alive"
        images = self.trt.stub.array(self._addresses["image"], self._shapes["image"], "uint8")
        logits = self.trt.stub.array(self._addresses["logits"], (len(images), 2), "float32")
        self.trt.batches.append(len(images))
        logits[:] = images.astype(np.float32).mean((1, 2)) @ WEIGHT.T
        return True


MakeRunner: TypeAlias = Callable[[], TrtRunner]


def random_images(batch: int) -> Array:
    """What an `image_to_logits` engine takes; other pixels for each batch."""
    return np.random.default_rng(batch).integers(0, 256, (batch, 4, 4, 3), dtype=np.uint8)


def expected_logits(batch: Array) -> Array:
    """The logits in float64, one by one."""
    return np.array([[sum(image[..., c].mean() * row[c] for c in range(3)) for row in WEIGHT] for image in batch])

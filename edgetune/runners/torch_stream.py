"""PyTorch with several batches in flight: features at the pace of the GPU, while the host decodes."""

from __future__ import annotations

import contextlib
import copy
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType

import numpy as np
import numpy.typing as npt
import torch

from edgetune.core.errors import ModelError, first_line

FP32, BF16, FP16 = "fp32", "bf16", "fp16"
_DTYPES = {FP32: torch.float32, BF16: torch.bfloat16, FP16: torch.float16}

# Batches that a GPU may lag behind, and the pinned memory that large images among them may fill. More would only wait.
_IN_FLIGHT, _IN_FLIGHT_BYTES = 8, 512 << 20

Pixels = npt.NDArray[np.uint8]
Features = npt.NDArray[np.float32]


def feature_precision(device: str) -> str:
    """What `TorchStream` computes in on `device`, "cpu" or "cuda": float32 on a CPU; on a GPU bfloat16, whose range is
    float32's, and float16 on those before Ampere, which only emulate it.
    """
    if torch.device(device).type != "cuda":
        return FP32
    return BF16 if torch.cuda.is_bf16_supported(including_emulation=False) else FP16


class TorchStream:
    """Runs a copy of a module that takes images uint8 `(N, H, W, 3)` to features `(N, D)`, in channels-last layout.

    On a GPU `start` only queues: the upload from pinned memory on a stream of its own, the kernels under autocast, and
    the download into pinned memory, with an event behind it that the answer waits for. The host never waits for a batch
    that was just started. cuDNN takes deterministic algorithms and chooses by shape, not by timing, so that a batch
    gives the same bits each time. On a CPU `start` computes in float32 at once.

    Raises:
        ModelError: the module fails on the device, for instance for want of memory; at `start` or in the answer.
    """

    def __init__(self, module: torch.nn.Module, *, device: str = "cpu") -> None:
        self._source = module
        self._device = torch.device(device)
        self._dtype = _DTYPES[feature_precision(device)]
        self._module: torch.nn.Module | None = None
        self._uploads: torch.cuda.Stream | None = None
        self._in_flight: deque[torch.cuda.Event] = deque()
        self._stack = contextlib.ExitStack()

    @property
    def name(self) -> str:
        return f"torch {self._device.type}"

    def __enter__(self) -> TorchStream:
        with self._errors():
            module = copy.deepcopy(self._source).eval()
            module = module.to(self._device, memory_format=torch.channels_last)  # type: ignore[call-overload]
            if self._device.type == "cuda":
                self._uploads = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        self._module = module
        self._stack.enter_context(_repeatable_cudnn())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()
        self._module = self._uploads = None
        self._in_flight.clear()

    def start(self, images: Sequence[Pixels]) -> Callable[[], Features]:
        """Queues a batch of at least one image; the answer may be asked for later, and in any order."""
        if self._module is None:
            raise ModelError("the PyTorch stream is not open; use it in a with block.")
        with self._errors():
            host = torch.empty((len(images), *images[0].shape), dtype=torch.uint8, pin_memory=self._uploads is not None)
            np.stack(images, out=host.numpy())
            if self._uploads is None:
                features = self._features(self._module, host).numpy()
                return lambda: features
            return self._queue(self._module, host, self._uploads)

    def _queue(self, module: torch.nn.Module, host: torch.Tensor, uploads: torch.cuda.Stream) -> Callable[[], Features]:
        """The allocator of pinned memory itself keeps `host` until the upload, which outlives it here, is done."""
        while len(self._in_flight) >= max(2, min(_IN_FLIGHT, _IN_FLIGHT_BYTES // host.nbytes)):
            self._in_flight.popleft().synchronize()  # only where the GPU is slower than the decoders
        compute = torch.cuda.current_stream(self._device)
        with torch.cuda.stream(uploads):
            images = host.to(self._device, non_blocking=True)
        compute.wait_stream(uploads)
        images.record_stream(compute)
        features = self._features(module, images)
        answer = torch.empty(features.shape, dtype=torch.float32, pin_memory=True)
        answer.copy_(features, non_blocking=True)
        # The host sleeps in it rather than spins: the decoders need the core.
        done = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        done.record(compute)
        self._in_flight.append(done)
        return lambda: self._wait(done, answer)

    def _wait(self, done: torch.cuda.Event, answer: torch.Tensor) -> Features:
        with self._errors():
            done.synchronize()
        features: Features = answer.numpy()
        return features

    def _features(self, module: torch.nn.Module, images: torch.Tensor) -> torch.Tensor:
        autocast = torch.autocast(self._device.type, dtype=self._dtype, enabled=self._dtype != torch.float32)
        with torch.inference_mode(), autocast:
            features: torch.Tensor = module(images)
        return features.float()

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except torch.OutOfMemoryError as error:
            raise ModelError(
                f"PyTorch failed on {self.name}: {first_line(error)}",
                hint="free memory of the GPU, choose a smaller --image-size, or --device cpu",
            ) from error
        except (RuntimeError, AssertionError) as error:  # no kernel for this GPU, or a PyTorch without CUDA
            raise ModelError(f"PyTorch failed on {self.name}: {first_line(error)}", hint="try --device cpu") from error


@contextlib.contextmanager
def _repeatable_cudnn() -> Iterator[None]:
    cudnn = torch.backends.cudnn
    before = cudnn.benchmark, cudnn.deterministic
    cudnn.benchmark, cudnn.deterministic = False, True
    try:
        yield
    finally:
        cudnn.benchmark, cudnn.deterministic = before

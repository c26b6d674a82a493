"""PyTorch: runs a module on the CPU or on CUDA under the same contract as every other runner."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from types import TracebackType

import numpy as np
import torch

from edgetune.core.errors import ModelError, first_line
from edgetune.core.tensors import IMAGE_INPUT, Array, Feed, TensorSpec, check_feed


class TorchRunner:
    """Runs a module that takes uint8 images `(N, H, W, 3)` and returns one tensor, named `output`.

    With `precision` "fp32", TF32 is switched off, so that the answers are a reference; "fp16" runs under
    autocast and is for features on a GPU; "fp64" runs a copy in double precision, to see what float32 rounds away. The
    module is used in eval mode and left where it was found.
    """

    def __init__(
        self, module: torch.nn.Module, crop_size: int, output: str, *, device: str = "cpu", precision: str = "fp32"
    ) -> None:
        self._module = module if precision != "fp64" else copy.deepcopy(module).double()
        self._output = output
        self._device = torch.device(device)
        self._precision = precision
        self._specs = (TensorSpec(IMAGE_INPUT, "uint8", (None, crop_size, crop_size, 3)),)
        self._stack: contextlib.ExitStack | None = None

    @property
    def name(self) -> str:
        return f"torch {self._device.type}"

    @property
    def module(self) -> torch.nn.Module:
        """What is run, for those who look inside while it is open."""
        return self._module

    @property
    def input_specs(self) -> tuple[TensorSpec, ...]:
        return self._specs

    @property
    def output_specs(self) -> tuple[TensorSpec, ...]:
        return (TensorSpec(self._output, "float32", (None, None)),)

    @property
    def min_batch(self) -> int:
        return 1

    @property
    def max_batch(self) -> int | None:
        return None

    def __enter__(self) -> TorchRunner:
        self._stack = contextlib.ExitStack()
        self._stack.callback(_restore_modes, [(layer, layer.training) for layer in self._module.modules()])
        self._module.eval()
        if self._device.type == "cuda":
            self._stack.callback(self._module.to, "cpu")
            self._module.to(self._device)
            self._stack.enter_context(_without_tf32())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._stack is not None:
            self._stack.close()
        self._stack = None

    def infer(self, feed: Feed) -> dict[str, Array]:
        if self._stack is None:
            raise ModelError("the PyTorch runner is not open; use it in a with block.")
        check_feed(feed, self._specs)
        autocast = torch.autocast(self._device.type, dtype=torch.float16, enabled=self._precision == "fp16")
        try:
            images = torch.from_numpy(np.ascontiguousarray(feed[IMAGE_INPUT])).to(self._device, non_blocking=True)
            with torch.inference_mode(), autocast:
                result = self._module(images)
        except RuntimeError as error:  # out of memory, or no kernel for this GPU
            raise ModelError(f"PyTorch failed on {self.name}: {first_line(error)}", hint="try --device cpu") from error
        return {self._output: result.float().cpu().numpy()}


def _restore_modes(modes: list[tuple[torch.nn.Module, bool]]) -> None:
    """Layer by layer: a wrapper may be in train mode while the frozen backbone in it never is."""
    for layer, was_training in modes:
        layer.training = was_training


def has_cuda() -> bool:
    return torch.cuda.is_available()


def torch_version() -> str:
    return str(torch.__version__)


@contextlib.contextmanager
def _without_tf32() -> Iterator[None]:
    matmul, cudnn = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = matmul, cudnn

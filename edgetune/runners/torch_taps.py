"""PyTorch's own inner tensors: modules are hooked, and what they give comes out under the names of ONNX tensors."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from types import TracebackType
from typing import Any

import torch

from edgetune.core.errors import ModelError
from edgetune.core.tensors import Array, Feed, TensorSpec
from edgetune.runners.torch_runner import TorchRunner


class TorchTaps:
    """A runner around a `TorchRunner` whose outputs are inner tensors, float32, beside the runner's own.

    `outputs` and `inputs` map names to the paths of modules whose output, or first input, they are; paths that the
    module lacks are tried below `prefix`. A module that is called twice, or gives no tensor, has no part in the answer.
    """

    def __init__(
        self, runner: TorchRunner, outputs: Mapping[str, str], inputs: Mapping[str, str], *, prefix: str = ""
    ) -> None:
        self._runner = runner
        self._wanted = [(name, path, False) for name, path in outputs.items()]
        self._wanted += [(name, path, True) for name, path in inputs.items()]
        self._prefix = prefix
        self._stack: contextlib.ExitStack | None = None
        self._seen: dict[str, list[torch.Tensor | None]] = {}

    @property
    def name(self) -> str:
        return self._runner.name

    @property
    def input_specs(self) -> tuple[TensorSpec, ...]:
        return self._runner.input_specs

    @property
    def output_specs(self) -> tuple[TensorSpec, ...]:
        """The runner's own; which inner tensors there are is known after a run."""
        return self._runner.output_specs

    @property
    def min_batch(self) -> int:
        return self._runner.min_batch

    @property
    def max_batch(self) -> int | None:
        return self._runner.max_batch

    def __enter__(self) -> TorchTaps:
        self._stack = contextlib.ExitStack()
        self._stack.enter_context(self._runner)
        for name, path, is_input in self._wanted:
            module = self._find(path)
            if module is None:
                continue
            handle = (
                module.register_forward_pre_hook(self._keep_input(name))
                if is_input
                else module.register_forward_hook(self._keep_output(name))
            )
            self._stack.callback(handle.remove)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._stack is not None:
            self._stack.close()
        self._stack = None

    def infer(self, feed: Feed) -> dict[str, Array]:
        if self._stack is None:
            raise ModelError("the PyTorch taps are not open; use them in a with block.")
        self._seen = {}
        own = self._runner.infer(feed)
        taps = {name: values[0] for name, values in self._seen.items() if len(values) == 1}
        self._seen = {}
        return {**{name: value.float().cpu().numpy() for name, value in taps.items() if value is not None}, **own}

    def _find(self, path: str) -> torch.nn.Module | None:
        root = self._runner.module
        for candidate in (path, f"{self._prefix}.{path}" if self._prefix else path):
            with contextlib.suppress(AttributeError):
                return root.get_submodule(candidate)
        return None

    def _keep_output(self, name: str) -> Any:
        def keep(_module: torch.nn.Module, _inputs: Any, output: Any) -> None:
            self._keep(name, output)

        return keep

    def _keep_input(self, name: str) -> Any:
        def keep(_module: torch.nn.Module, inputs: Any) -> None:
            self._keep(name, inputs[0] if inputs else None)

        return keep

    def _keep(self, name: str, value: Any) -> None:
        """A copy: the next module may work in place."""
        kept = value.detach().clone() if isinstance(value, torch.Tensor) else None
        self._seen.setdefault(name, []).append(kept)

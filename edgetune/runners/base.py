"""The one shape of everything that turns images into logits, whatever runs it."""

from __future__ import annotations

from types import TracebackType
from typing import Protocol

import numpy as np
import numpy.typing as npt

from edgetune.core.tensors import IMAGE_INPUT, Array, Feed, TensorSpec


class Runner(Protocol):
    """A loaded model: a context manager that holds the device between entering and leaving.

    `infer` takes one array per input and returns one per output, and raises `TensorError` for a feed whose
    names, dtypes or shapes are not the model's. `max_batch` is the most images it takes at a time, None for any.
    """

    @property
    def name(self) -> str: ...

    @property
    def input_specs(self) -> tuple[TensorSpec, ...]: ...

    @property
    def output_specs(self) -> tuple[TensorSpec, ...]: ...

    @property
    def max_batch(self) -> int | None: ...

    def infer(self, feed: Feed) -> dict[str, Array]: ...

    def __enter__(self) -> Runner: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def infer_images(runner: Runner, images: npt.NDArray[np.uint8], output: str) -> npt.NDArray[np.float32]:
    """Runs uint8 images `(N, H, W, 3)`, in parts where the runner takes fewer, and returns float32 `(N, ...)`."""
    size = runner.max_batch
    if size is None or len(images) <= size:
        return runner.infer({IMAGE_INPUT: images})[output].astype(np.float32, copy=False)
    parts = [images[start : start + size] for start in range(0, len(images), size)]
    return np.concatenate([runner.infer({IMAGE_INPUT: part})[output] for part in parts]).astype(np.float32, copy=False)

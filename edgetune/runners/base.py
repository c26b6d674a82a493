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
    names, dtypes or shapes are not the model's.
    """

    @property
    def name(self) -> str: ...

    @property
    def input_specs(self) -> tuple[TensorSpec, ...]: ...

    def infer(self, feed: Feed) -> dict[str, Array]: ...

    def __enter__(self) -> Runner: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def infer_images(runner: Runner, images: npt.NDArray[np.uint8], output: str) -> npt.NDArray[np.float32]:
    """Runs uint8 images `(N, H, W, 3)` and returns the named output as float32 `(N, ...)`."""
    return runner.infer({IMAGE_INPUT: images})[output].astype(np.float32, copy=False)

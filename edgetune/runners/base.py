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
    names, dtypes or shapes are not the model's. It takes `min_batch` to
    `max_batch` images at a time, None for any number.
    """

    @property
    def name(self) -> str: ...

    @property
    def input_specs(self) -> tuple[TensorSpec, ...]: ...

    @property
    def output_specs(self) -> tuple[TensorSpec, ...]: ...

    @property
    def min_batch(self) -> int: ...

    @property
    def max_batch(self) -> int | None: ...

    def infer(self, feed: Feed) -> dict[str, Array]: ...

    def __enter__(self) -> Runner: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def infer_images(runner: Runner, images: npt.NDArray[np.uint8], output: str) -> npt.NDArray[np.float32]:
    """Runs uint8 images `(N, H, W, 3)` and returns float32 `(N, ...)`; in parts where the runner takes fewer, with the
    last image repeated where it takes no fewer.
    """
    size = runner.max_batch or len(images)
    if len(images) <= size and len(images) >= runner.min_batch:
        return runner.infer({IMAGE_INPUT: images})[output].astype(np.float32, copy=False)
    parts = [images[start : start + size] for start in range(0, len(images), size)]
    return np.concatenate([_infer_part(runner, part, output) for part in parts]).astype(np.float32, copy=False)


def _infer_part(runner: Runner, images: npt.NDArray[np.uint8], output: str) -> Array:
    missing = max(0, runner.min_batch - len(images))
    filled = np.concatenate([images, np.repeat(images[-1:], missing, axis=0)]) if missing else images
    return runner.infer({IMAGE_INPUT: filled})[output][: len(images)]

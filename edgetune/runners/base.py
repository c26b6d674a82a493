"""The one shape of everything that turns images into logits, whatever runs it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from edgetune.core.errors import TensorError
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


@runtime_checkable
class FeatureStream(Protocol):
    """A backbone on a device of its own, which works while the host prepares more: a context manager.

    `start` takes images uint8 `(H, W, 3)`, all of one size, as one batch, and returns at once; calling what it
    returned waits for their features, float32 `(N, D)`. Batches run in the order of their start.
    """

    @property
    def name(self) -> str: ...

    def start(self, images: Sequence[npt.NDArray[np.uint8]]) -> Callable[[], npt.NDArray[np.float32]]: ...

    def __enter__(self) -> FeatureStream: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class FileRunner(Protocol):
    """What answers image files, decoding and preprocessing included: a context manager, open like a `Runner`.

    `classify` takes the bytes of one file and returns its logits `(classes,)`; it raises `ImageError` for a file that
    is refused.
    """

    @property
    def name(self) -> str: ...

    def classify(self, data: bytes) -> npt.NDArray[np.float32]: ...

    def __enter__(self) -> FileRunner: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def infer_parts(runner: Runner, feed: Feed) -> dict[str, Array]:
    """Runs any number of items, all inputs alike: in parts where the runner takes fewer, and with the last item
    repeated where it takes no fewer.
    """
    count = len(next(iter(feed.values())))
    size = runner.max_batch or count
    if runner.min_batch <= count <= size:
        return runner.infer(feed)
    starts = range(0, count, size) if size else ()
    parts = [
        _infer_part(runner, {name: array[start : start + size] for name, array in feed.items()}) for start in starts
    ]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]} if parts else runner.infer(feed)


def _infer_part(runner: Runner, feed: Feed) -> dict[str, Array]:
    count = len(next(iter(feed.values())))
    missing = max(0, runner.min_batch - count)
    filled = {name: np.concatenate([array, np.repeat(array[-1:], missing, axis=0)]) for name, array in feed.items()}
    return {name: array[:count] for name, array in runner.infer(filled if missing else feed).items()}


def infer_images(runner: Runner, images: npt.NDArray[np.uint8], output: str) -> npt.NDArray[np.float32]:
    """Runs any number of uint8 images `(N, H, W, 3)` and returns the named output as float32 `(N, ...)`.

    Raises:
        TensorError: the model has no such output, or takes other inputs.
    """
    outputs = infer_parts(runner, {IMAGE_INPUT: images})
    if output not in outputs:
        raise TensorError(f"the model has the outputs {sorted(outputs)}, expected {output!r}.")
    return outputs[output].astype(np.float32, copy=False)

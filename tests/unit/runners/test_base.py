"""Images through runners that take only so many at a time."""

from __future__ import annotations

from types import TracebackType

import numpy as np
import pytest

from edgetune.core.tensors import Array, Feed, TensorSpec
from edgetune.runners.base import infer_images


class _Limited:
    """Answers each image with its first value, and remembers how many images came at a time."""

    name = "limited"
    input_specs: tuple[TensorSpec, ...] = ()
    output_specs: tuple[TensorSpec, ...] = ()

    def __init__(self, smallest: int, largest: int | None) -> None:
        self.min_batch, self.max_batch = smallest, largest
        self.batches: list[int] = []

    def infer(self, feed: Feed) -> dict[str, Array]:
        self.batches.append(len(feed["image"]))
        return {"logits": feed["image"][:, 0, 0, :1].astype(np.float64)}

    def __enter__(self) -> _Limited:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """There is nothing to close."""


@pytest.mark.parametrize(
    ("limits", "count", "batches"),
    [
        ((1, None), 11, [11]),
        ((1, 8), 8, [8]),
        ((1, 8), 11, [8, 3]),
        ((1, 1), 3, [1, 1, 1]),
        ((4, 4), 6, [4, 4]),
        ((4, 8), 3, [4]),
        ((4, None), 2, [4]),
    ],
    ids=str,
)
def test_every_image_is_answered_once_whatever_the_runner_takes(
    limits: tuple[int, int | None], count: int, batches: list[int]
) -> None:
    images = np.zeros((count, 2, 2, 3), np.uint8)
    images[:, 0, 0, 0] = np.arange(count)
    runner = _Limited(*limits)
    logits = infer_images(runner, images, "logits")
    assert runner.batches == batches
    assert logits.dtype == np.float32
    np.testing.assert_array_equal(logits[:, 0], np.arange(count))

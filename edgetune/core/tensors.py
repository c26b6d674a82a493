"""What goes into and comes out of a model: named arrays, and what the model expects of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from edgetune.core.errors import TensorError

Array: TypeAlias = npt.NDArray[Any]
Feed: TypeAlias = Mapping[str, Array]

IMAGE_INPUT = "image"
LOGITS_OUTPUT = "logits"
FEATURES_OUTPUT = "features"


@dataclass(frozen=True)
class TensorSpec:
    """`shape` holds None where a dimension is dynamic; `dtype` is numpy's name for it."""

    name: str
    dtype: str
    shape: tuple[int | None, ...]


def check_feed(feed: Feed, specs: tuple[TensorSpec, ...]) -> None:
    """Raises `TensorError` unless the feed has exactly the inputs' names, dtypes and shapes."""
    expected = {spec.name for spec in specs}
    if set(feed) != expected:
        raise TensorError(f"the feed has the inputs {sorted(feed)}, the model expects {sorted(expected)}.")
    for spec in specs:
        array = feed[spec.name]
        fits = array.ndim == len(spec.shape) and all(
            want is None or have == want for have, want in zip(array.shape, spec.shape, strict=True)
        )
        if array.dtype != np.dtype(spec.dtype) or not fits:
            shape = tuple("any" if size is None else size for size in spec.shape)
            raise TensorError(
                f"input {spec.name!r} is {array.dtype} {array.shape}, the model expects {spec.dtype} {shape}."
            )


def softmax(logits: Array) -> Array:
    """Probabilities over the last axis, in float64; finite for any finite logits."""
    shifted = logits.astype(np.float64) - np.max(logits, axis=-1, keepdims=True)
    exponentials = np.exp(shifted)
    probabilities: Array = exponentials / exponentials.sum(axis=-1, keepdims=True)
    return probabilities

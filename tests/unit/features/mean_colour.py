"""A backbone whose features are an image's mean colour, and images of one colour: what comes out is known."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from edgetune.core.preprocess import PreprocessSpec
from edgetune.core.tensors import Array, Feed, TensorSpec
from edgetune.data.image_folder import ImageFile
from edgetune.runners.base import Runner
from edgetune.runners.ort_runner import OrtRunner

SPEC = PreprocessSpec(4, 4, "bilinear", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def mean_colour(divisor: float = 1.0) -> bytes:
    """An ONNX model whose features are the mean red, green and blue, over `divisor`."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    nodes = [
        helper.make_node("Cast", ["image"], ["wide"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["wide"], ["mean"], axes=[1, 2], keepdims=0),
        helper.make_node("Div", ["mean", "divisor"], ["features"]),
    ]
    graph = helper.make_graph(
        nodes,
        "mean colour",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", 4, 4, 3])],
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["N", 3])],
        [numpy_helper.from_array(np.array([divisor], np.float32), "divisor")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.checker.check_model(model)
    data: bytes = model.SerializeToString()
    return data


class RecordingRunner:
    """Passes everything on to ONNX Runtime and notes the batch sizes."""

    def __init__(self, batches: list[int]) -> None:
        self._runner = OrtRunner(mean_colour(), threads=1)
        self._batches = batches

    @property
    def name(self) -> str:
        return self._runner.name

    @property
    def input_specs(self) -> tuple[TensorSpec, ...]:
        return self._runner.input_specs

    @property
    def output_specs(self) -> tuple[TensorSpec, ...]:
        return self._runner.output_specs

    @property
    def min_batch(self) -> int:
        return self._runner.min_batch

    @property
    def max_batch(self) -> int | None:
        return self._runner.max_batch

    def infer(self, feed: Feed) -> dict[str, Array]:
        self._batches.append(len(feed["image"]))
        return self._runner.infer(feed)

    def __enter__(self) -> RecordingRunner:
        self._runner.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._runner.__exit__(kind, error, trace)


def never() -> Runner:
    pytest.fail("the backbone was opened although nothing was missing")


def colour_image(path: Path, colour: tuple[int, int, int], label: int = 0) -> ImageFile:
    Image.new("RGB", (4, 4), colour).save(path)
    return ImageFile(path, label)


def colour_images(folder: Path, count: int) -> list[ImageFile]:
    return [colour_image(folder / f"{index}.png", (index, 2 * index, 255 - index), index % 2) for index in range(count)]


class Stream:
    """Computes mean colours only when an answer is asked for, and notes what it was given."""

    def __init__(self) -> None:
        self.batches: list[Array] = []
        self.is_open = False
        self.answered = 0
        self.ahead = 0

    name = "a stream"

    def start(self, images: Sequence[npt.NDArray[np.uint8]]) -> Callable[[], npt.NDArray[np.float32]]:
        assert self.is_open
        batch = np.stack(images)
        self.batches.append(batch)
        self.ahead = max(self.ahead, len(self.batches) - self.answered)

        def answer() -> npt.NDArray[np.float32]:
            self.answered += 1
            features: npt.NDArray[np.float32] = batch.mean(axis=(1, 2)).astype(np.float32)
            return features

        return answer

    def __enter__(self) -> Stream:
        self.is_open = True
        return self

    def __exit__(self, *_: object) -> None:
        self.is_open = False

"""What the float network computes at a few pixels of every layer, kept in a temporary file to compare with."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from types import TracebackType

import numpy as np
import numpy.typing as npt
from onnx import TensorProto

from edgetune.core.progress import Progress, no_progress
from edgetune.graph.network import Network, attribute
from edgetune.quantize.placement import Layer
from edgetune.runners.ort_runner import OrtRunner

_BATCH = 2

Pixels = npt.NDArray[np.int64]


class OutputSamples:
    """Outputs of layers before their activation, at random places of each image, float32 on disk. `pixels` tells how
    many places an image, by layer name.
    """

    def __init__(self, layers: Sequence[Layer], pixels: Mapping[str, int]) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the samples
        self._order = {layer.name: index for index, layer in enumerate(layers)}
        self._layers = list(layers)
        self._pixels = pixels
        self._places: dict[str, list[tuple[int, int]]] = {layer.name: [] for layer in layers}
        self._widths: dict[str, int] = {}

    def __enter__(self) -> OutputSamples:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def fill(
        self, network: Network, batches: Sequence[npt.NDArray[np.uint8]], *, progress: Progress = no_progress
    ) -> None:
        """Runs the float network on the images and keeps the sampled outputs."""
        model = network.piece({layer.product: TensorProto.FLOAT for layer in self._layers})
        done, count = 0, sum(len(batch) for batch in batches)
        with OrtRunner(model.SerializeToString()) as runner:
            for batch in batches:
                for start in range(0, len(batch), _BATCH):
                    part = batch[start : start + _BATCH]
                    outputs = runner.infer({network.inputs[0]: part})
                    for layer in self._layers:
                        for image in outputs[layer.product]:
                            self._append(layer, image)
                    done += len(part)
                    progress("reference outputs", done, count)

    def _append(self, layer: Layer, image: npt.NDArray[np.float32]) -> None:
        flat = image.reshape(image.shape[0], -1)
        places = self._places[layer.name]
        chosen = self.pixels_of(layer, len(places), flat.shape[1])
        values = np.ascontiguousarray(flat[:, chosen].T)
        self._widths[layer.name] = flat.shape[0]
        places.append((self._file.seek(0, 2), len(chosen)))
        self._file.write(values.tobytes())

    def pixels_of(self, layer: Layer, image: int, count: int) -> Pixels:
        """Which of an output's `count` pixels are sampled: the same in every run."""
        wanted = self._pixels[layer.name]
        if count <= wanted:
            return np.arange(count)
        generator = np.random.default_rng((self._order[layer.name], image))
        return np.sort(generator.choice(count, wanted, replace=False))

    def read(self, layer: Layer) -> npt.NDArray[np.float32]:
        """The layer's samples `(n, outputs)`, images in order."""
        parts = []
        for place, count in self._places[layer.name]:
            self._file.seek(place)
            data = self._file.read(count * self._widths[layer.name] * 4)
            parts.append(np.frombuffer(data, np.float32).reshape(count, -1))
        return np.concatenate(parts)


class PatchReader:
    """The inputs that a layer multiplies its weights with, cut from the integers it reads."""

    def __init__(self, network: Network, layer: Layer, weight_shape: tuple[int, ...]) -> None:
        node = network.makers[layer.product]
        self.is_conv = layer.op_type == "Conv"
        self.groups = int(attribute(node, "group", 1)) if self.is_conv else 1
        self._kernel = weight_shape[2:] if self.is_conv else (1, 1)
        self._strides = attribute(node, "strides", [1, 1])
        self._pads = attribute(node, "pads", [0, 0, 0, 0])
        self._dilations = attribute(node, "dilations", [1, 1])

    def output_pixels(self, height: int, width: int) -> tuple[int, int]:
        spans = [dilation * (size - 1) + 1 for dilation, size in zip(self._dilations, self._kernel, strict=True)]
        rows = (height + self._pads[0] + self._pads[2] - spans[0]) // self._strides[0] + 1
        columns = (width + self._pads[1] + self._pads[3] - spans[1]) // self._strides[1] + 1
        return rows, columns

    def cut(self, image: npt.NDArray[np.integer], pixels: Pixels, padding: int) -> npt.NDArray[np.integer]:
        """Patches `(pixels, C, kh * kw)` of one image `(C, H, W)`, or `(1, C, 1)` of a vector `(C,)`."""
        if not self.is_conv:
            return image.reshape(1, -1, 1)
        top, left, bottom, right = self._pads
        columns = self.output_pixels(*image.shape[1:])[1]
        padded = np.pad(image, ((0, 0), (top, bottom), (left, right)), constant_values=padding)
        rows = (pixels // columns) * self._strides[0]
        starts = (pixels % columns) * self._strides[1]
        down = rows[:, None] + np.arange(self._kernel[0]) * self._dilations[0]
        across = starts[:, None] + np.arange(self._kernel[1]) * self._dilations[1]
        patches = padded[:, down[:, :, None], across[:, None, :]]
        result: npt.NDArray[np.integer] = patches.transpose(1, 0, 2, 3).reshape(len(pixels), len(image), -1)
        return result

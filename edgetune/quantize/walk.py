"""A quantized network computed piece by piece for a set of images, so that each layer can still be changed when it
is reached.

What is kept between pieces are integers, one byte a value, and only as long as a later piece reads them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from onnx import helper

from edgetune.core.tensors import Array
from edgetune.quantize.images import ImageSpool
from edgetune.quantize.placement import Layer
from edgetune.quantize.qdq import QdqNetwork, QuantParams
from edgetune.runners.ort_runner import OrtRunner

_BATCH = 8
_KEPT_BYTES = 128 * 2**20


@dataclass(frozen=True)
class _Piece:
    """Computes the integers of `output` (or the graph's output) from those of `inputs`."""

    output: str
    inputs: tuple[str, ...]
    layers: tuple[Layer, ...]


class Walk:
    """Iterating yields each layer with the integers that it reads; the layer's weights may be set before going on."""

    def __init__(self, quantized: QdqNetwork, images: ImageSpool, limit: int) -> None:
        self._quantized = quantized
        self._pieces = _cut(quantized)
        self.batches = list(images.batches(_BATCH, min(limit, self._affordable(images.shape))))
        self.count = sum(len(batch) for batch in self.batches)
        self._kept: dict[str, Array] = {}

    def __iter__(self) -> Iterator[tuple[Layer, Array, QuantParams]]:
        for index, piece in enumerate(self._pieces):
            for layer in piece.layers:
                yield layer, self._kept[f"{layer.data}_q"], self._quantized.params[layer.data]
            if index < len(self._pieces) - 1:
                self._kept[piece.output] = self._run(piece)
            read_later = {name for later in self._pieces[index + 1 :] for name in later.inputs}
            self._kept = {name: value for name, value in self._kept.items() if name in read_later}

    def _affordable(self, image_shape: tuple[int, ...]) -> int:
        """How many images fit: the widest moment of the walk decides, a byte a value."""
        shapes = self._quantized.shapes
        sizes: dict[str, int] = {}
        for name in self._quantized.params:
            known = [size or 1 for size in shapes.get(name, ())][1:]
            sizes[f"{name}_q"] = int(np.prod(known)) if known else int(np.prod(image_shape))
        widest = 1
        for index, piece in enumerate(self._pieces):
            alive = {name for later in self._pieces[index:] for name in later.inputs} | {piece.output}
            made = {earlier.output for earlier in self._pieces[: index + 1]}
            widest = max(widest, sum(sizes.get(name, 0) for name in alive & made))
        return max(8, _KEPT_BYTES // widest)

    def _run(self, piece: _Piece) -> Array:
        network = self._quantized.network
        kind = int(helper.np_dtype_to_tensor_dtype(np.dtype(self._quantized.target.activation)))
        cuts = {name: (kind, self._kept[name].ndim) for name in piece.inputs}
        model = network.piece({piece.output: kind}, cuts)
        wants_image = any(entry.name in network.inputs for entry in model.graph.input)
        parts, start = [], 0
        with OrtRunner(model.SerializeToString()) as runner:
            for batch in self.batches:
                rows = slice(start, start + len(batch))
                feed: dict[str, Array] = {name: self._kept[name][rows] for name in piece.inputs}
                if wants_image:
                    feed[network.inputs[0]] = batch
                parts.append(runner.infer(feed)[piece.output])
                start += len(batch)
        return np.concatenate(parts)


def _cut(quantized: QdqNetwork) -> list[_Piece]:
    """One piece per tensor of integers, in the order in which they can be computed, and one for the output."""
    network = quantized.network
    by_name = {layer.name: layer for layer in quantized.placement.layers}
    known: set[str] = set()
    done: set[str] = set()
    pieces = []
    for output in (*quantized.integer_tensors, *network.outputs):
        inputs, nodes = _ancestors(quantized, output, known)
        layers = [by_name[name] for name in nodes if name in by_name and name not in done]
        done.update(layer.name for layer in layers)
        pieces.append(_Piece(output, tuple(inputs), tuple(layers)))
        known.add(output)
    return pieces


def _ancestors(quantized: QdqNetwork, output: str, known: set[str]) -> tuple[list[str], list[str]]:
    """The known integers that `output` is computed from, and the nodes in between, in graph order."""
    network = quantized.network
    needed, inputs, nodes = {output}, [], []
    for node in reversed(network.nodes):
        if not needed.intersection(node.output):
            continue
        if node.output[0] in known:
            inputs.append(node.output[0])
            continue
        nodes.append(node.name)
        needed.update(node.input)
    return inputs[::-1], nodes[::-1]

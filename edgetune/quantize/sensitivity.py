"""Which layers lose the most by being integers: each one tried in float, alone, on calibration images."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx

from edgetune.core.progress import Progress, no_progress
from edgetune.graph.network import Network
from edgetune.quantize.images import ImageSpool
from edgetune.quantize.placement import Layer, as_rows
from edgetune.quantize.quantizer import Calibration, QuantizedModel, without_layer
from edgetune.quantize.targets import Target
from edgetune.runners.ort_runner import OrtRunner

_IMAGES, _BATCH = 48, 8
_TRIED_LAYERS = 64


@dataclass(frozen=True)
class Sensitivity:
    """`noise_share` is the part of the output's error power that goes away when only this layer is float;
    `work_share` its part of the network's multiplications.
    """

    layer: str
    noise_share: float
    work_share: float


def rank_layers(
    calibration: Calibration, quantized: QuantizedModel, target: Target, images: ImageSpool, *,
    progress: Progress = no_progress,
) -> tuple[Sensitivity, ...]:  # fmt: skip
    """Layers by what keeping them in float brings, most first. Of more than 64 layers only those with the lowest
    SQNR are tried.
    """
    exact = _outputs(calibration.network.model(), images)
    whole = _noise(exact, _outputs(quantized.model, images))
    suspects = sorted(quantized.errors, key=lambda error: error.sqnr_db)[:_TRIED_LAYERS]
    work = multiplications(calibration.network, quantized.placement.layers)
    total = max(sum(work.values()), 1)
    found = []
    for done, error in enumerate(suspects, start=1):
        model = without_layer(calibration, target, quantized, error.layer)
        gained = whole - _noise(exact, _outputs(model, images))
        found.append(Sensitivity(error.layer, gained / max(whole, 1e-30), work[error.layer] / total))
        progress("sensitivity", done, len(suspects))
    return tuple(sorted(found, key=lambda each: each.noise_share, reverse=True))


def multiplications(network: Network, layers: tuple[Layer, ...]) -> dict[str, int]:
    """Multiplications per image by layer name; one output pixel is counted where the size is not known."""
    shapes = network.shapes()
    counts = {}
    for layer in layers:
        rows = as_rows(network, layer, network.constants[layer.weight])
        pixels = [size or 1 for size in shapes.get(layer.product, ())[2:]]
        counts[layer.name] = int(rows.size * np.prod(pixels, dtype=np.int64))
    return counts


def _outputs(model: onnx.ModelProto, images: ImageSpool) -> npt.NDArray[np.float32]:
    with OrtRunner(model.SerializeToString()) as runner:
        (name,) = [spec.name for spec in runner.input_specs]
        parts = [next(iter(runner.infer({name: batch}).values())) for batch in images.batches(_BATCH, _IMAGES)]
    return np.concatenate(parts)


def _noise(exact: npt.NDArray[np.float32], computed: npt.NDArray[np.float32]) -> float:
    return float(np.square(computed - exact, dtype=np.float64).sum())

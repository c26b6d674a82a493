"""Which layers lose the most by being integers: each one tried alone, on calibration images."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx

from edgetune.core.progress import Progress, no_progress
from edgetune.graph.network import Network
from edgetune.quantize.images import ImageSpool
from edgetune.quantize.placement import Layer, as_rows
from edgetune.quantize.quantizer import Calibration, QuantizedModel, only_layer
from edgetune.quantize.rounding import WeightOptions
from edgetune.quantize.targets import Target
from edgetune.runners.ort_runner import OrtRunner

_IMAGES, _BATCH = 48, 8
_TRIED_LAYERS = 64


@dataclass(frozen=True)
class Sensitivity:
    """`noise_share` is the layer's part of the error power that all layers tried cause, each one alone in integers;
    `work_share` its part of the network's multiplications.
    """

    layer: str
    noise_share: float
    work_share: float


def rank_layers(
    calibration: Calibration, quantized: QuantizedModel, target: Target, images: ImageSpool, *,
    options: WeightOptions, progress: Progress = no_progress,
) -> tuple[Sensitivity, ...]:  # fmt: skip
    """Layers by the error they cause at the output when they alone are integers, most first.

    The other way round, one layer in float among integers, tells less: the layers behind it were fitted to make up
    for its errors. Of more than 64 layers only those with the lowest SQNR are tried.
    """
    exact = _outputs(calibration.network.model(), images)
    suspects = sorted(quantized.errors, key=lambda error: error.sqnr_db)[:_TRIED_LAYERS]
    work = multiplications(calibration.network, quantized.placement.layers)
    noise = {}
    for done, error in enumerate(suspects, start=1):
        model = only_layer(calibration, target, error.layer, options)
        noise[error.layer] = float(np.square(_outputs(model, images) - exact, dtype=np.float64).sum())
        progress("sensitivity", done, len(suspects))
    all_noise, all_work = max(sum(noise.values()), 1e-300), max(sum(work.values()), 1)
    found = [Sensitivity(name, each / all_noise, work[name] / all_work) for name, each in noise.items()]
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

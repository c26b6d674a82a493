"""The layers of a quantized network set right one after the other, each with what the ones before it now give.

Because a layer is fitted on the outputs of the *quantized* network before it, its bias and its rounding also take
back errors made earlier (sequential bias correction, Nagel et al. 2019, with the quantized prefix).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgetune.core.progress import Progress, no_progress
from edgetune.core.tensors import Array
from edgetune.graph.network import Network
from edgetune.quantize.images import ImageSpool
from edgetune.quantize.placement import Layer, as_rows, weight_axis
from edgetune.quantize.qdq import LayerWeights, QdqNetwork, QuantParams
from edgetune.quantize.rounding import (
    Floats,
    WeightOptions,
    channel_scale,
    compensated,
    fitted_weights,
    moments_of,
    nearest,
    tensor_scale,
    widen_for_bias,
)
from edgetune.quantize.samples import OutputSamples, PatchReader
from edgetune.quantize.walk import Walk

Float32s = npt.NDArray[np.float32]

_IMAGES = 128
_SAMPLES, _MOST_PIXELS = 2048, 64
_SIGNIFICANCE = 3.0  # standard errors
_CHUNK_VALUES = 4 * 2**20


@dataclass(frozen=True)
class LayerError:
    """`sqnr_db` compares a layer's outputs with the float network's, the errors of all layers before it included;
    `weight_sqnr_db` compares its weights alone.
    """

    layer: str
    sqnr_db: float
    weight_sqnr_db: float


@dataclass(frozen=True)
class Correction:
    """The weights that every layer was given, by its name, and what error is left."""

    weights: dict[str, LayerWeights]
    errors: tuple[LayerError, ...]


def correct(
    quantized: QdqNetwork,
    network: Network,
    images: ImageSpool,
    *,
    options: WeightOptions,
    progress: Progress = no_progress,
) -> Correction:
    """Sets every layer's weights. `network` is the float network."""
    if not quantized.placement.layers:
        return Correction({}, ())
    for layer in quantized.placement.layers:
        quantized.set_weights(layer, nearest_weights(network, layer, quantized.params[layer.data], options))
    walk = Walk(quantized, images, _IMAGES)
    errors: list[LayerError] = []
    solved: dict[str, LayerWeights] = {}
    layers = quantized.placement.layers
    pixels = {layer.name: _pixels_needed(network, layer, walk.count, rounding=options.rounding) for layer in layers}
    with OutputSamples(layers, pixels) as samples:
        samples.fill(network, walk.batches, progress=progress)
        for layer, integers, params in walk:
            fit = _LayerFit(network, layer, params, options)
            weights, error = fit.solve(integers, samples)
            quantized.set_weights(layer, weights)
            solved[layer.name] = weights
            errors.append(error)
            progress("rounding" if options.rounding else "bias correction", len(errors), len(layers))
    return Correction(solved, tuple(errors))


def _pixels_needed(network: Network, layer: Layer, images: int, *, rounding: bool) -> int:
    """Pixels an image, so that there are several samples for each weight of an output that is fitted."""
    rows = as_rows(network, layer, network.constants[layer.weight])
    wanted = max(_SAMPLES, 8 * rows[0].size) if rounding else _SAMPLES
    return min(max(wanted // images, 1), _MOST_PIXELS)


def nearest_weights(network: Network, layer: Layer, params: QuantParams, options: WeightOptions) -> LayerWeights:
    """The float weights on the nearest integers, with the bias they had."""
    rows = as_rows(network, layer, network.constants[layer.weight]).astype(np.float64)
    flat = rows.reshape(1, len(rows), -1)
    bias = network.constants[layer.bias].astype(np.float64)
    scale = widen_for_bias(_scale(flat, options), bias[None], float(params.scale))
    return _layer_weights(network, layer, nearest(flat, scale), scale, bias)


def _layer_weights(network: Network, layer: Layer, integers: Floats, scale: Float32s, bias: Floats) -> LayerWeights:
    shape = as_rows(network, layer, network.constants[layer.weight]).shape
    stored = integers.reshape(shape).astype(np.int8)
    if weight_axis(network, layer) == 1:
        stored = np.ascontiguousarray(stored.T)
    return LayerWeights(stored, scale.reshape(-1), bias.reshape(-1).astype(np.float32))


@dataclass(frozen=True)
class _Samples:
    """Inputs float32 `(G, n, K)` as the quantized network has them, and the float network's outputs `(G, n, O)`, at
    the same pixels of `images` images, the same number of each.
    """

    inputs: Float32s
    outputs: Float32s
    images: int


class _LayerFit:
    """One layer against its float outputs, in chunks of groups that fit into memory."""

    def __init__(self, network: Network, layer: Layer, params: QuantParams, options: WeightOptions) -> None:
        self._network = network
        self._layer = layer
        self._params = params
        self._options = options
        weights = as_rows(network, layer, network.constants[layer.weight]).astype(np.float64)
        self._patches = PatchReader(network, layer, weights.shape)
        self._weights = weights.reshape(self._patches.groups, len(weights) // self._patches.groups, -1)
        self._scale = None if options.per_channel else tensor_scale(self._weights)
        self._bias = network.constants[layer.bias].astype(np.float64).reshape(self._weights.shape[:2])

    def solve(self, integers: Array, samples: OutputSamples) -> tuple[LayerWeights, LayerError]:
        """`integers` `(N, C, H, W)` or `(N, C)` are what the layer reads."""
        groups, per_group, size = self._weights.shape
        outputs = samples.read(self._layer)
        outputs = np.ascontiguousarray(outputs.reshape(len(outputs), groups, per_group).transpose(1, 0, 2))
        chunk = max(1, min(groups, _CHUNK_VALUES // (outputs.shape[1] * size)))
        solved = np.empty_like(self._weights)
        scale = np.empty((groups, per_group), np.float32)
        bias = np.empty((groups, per_group))
        noise = 0.0
        for start in range(0, groups, chunk):
            part = slice(start, min(start + chunk, groups))
            seen = _Samples(self._inputs(integers, samples, part), outputs[part], len(integers))
            solved[part], scale[part], bias[part] = self._solve_groups(part, seen)
            noise += _squared_error(_rounded(solved[part], scale[part]), bias[part].astype(np.float32), seen)
        signal = float(np.square(outputs, dtype=np.float64).sum()) / outputs.shape[1]
        weights = _layer_weights(self._network, self._layer, solved, scale, bias)
        changed = solved * scale[..., None].astype(np.float64) - self._weights
        weight_sqnr_db = _decibel(float(np.square(self._weights).sum()), float(np.square(changed).sum()))
        return weights, LayerError(self._layer.name, _decibel(signal, noise), weight_sqnr_db)

    def _solve_groups(self, part: slice, seen: _Samples) -> tuple[Floats, Float32s, Floats]:
        """Integers `(G, O, K)`, scale and bias `(G, O)` of some groups."""
        weights, prior = self._weights[part], self._bias[part]
        if self._options.rounding:
            moments = moments_of(seen.inputs, seen.outputs)
            weights = fitted_weights(weights, moments)
            scale = self._scale[part] if self._scale is not None else channel_scale(weights)
            integers = compensated(weights, scale, moments)
        else:
            scale = self._scale[part] if self._scale is not None else channel_scale(weights)
            integers = nearest(weights, scale)
        bias = _bias(integers, scale, seen, prior)
        widened = widen_for_bias(scale, bias, float(self._params.scale))
        if not self._options.per_channel:
            widened = np.full_like(widened, widened.max())
        if (widened > scale).any():
            integers = nearest(weights, widened)
            bias = _bias(integers, widened, seen, prior)
        return integers, widened, bias

    def _inputs(self, integers: Array, samples: OutputSamples, part: slice) -> Float32s:
        """Inputs float32 `(groups, n, K)` of some groups at the sampled pixels."""
        each = integers.shape[1] // self._patches.groups
        channels = slice(part.start * each, part.stop * each)
        parts = []
        for index, image in enumerate(integers[:, channels]):
            count = int(np.prod(self._patches.output_pixels(*image.shape[1:]))) if image.ndim == 3 else 1
            chosen = samples.pixels_of(self._layer, index, count)
            cut = self._patches.cut(image, chosen, self._params.zero_point)
            parts.append(cut.reshape(len(cut), part.stop - part.start, -1))
        values: Float32s = np.concatenate(parts).transpose(1, 0, 2).astype(np.float32, order="C")
        values -= np.float32(self._params.zero_point)
        values *= self._params.scale
        return values


def _scale(weights: Floats, options: WeightOptions) -> Float32s:
    return channel_scale(weights) if options.per_channel else tensor_scale(weights)


def _bias(integers: Floats, scale: Float32s, samples: _Samples, prior: Floats) -> Floats:
    """`prior` `(G, O)`, moved by the mean output error where that is significant.

    The calibration set is small, and the mean over it is itself uncertain: chasing every channel's mean shifts
    thousands of channels by noise, which later layers add up. A mean is only believed as far as it exceeds three of
    its standard errors between images (positive-part shrinkage after James and Stein 1961).
    """
    error: Float32s = samples.outputs - samples.inputs @ _rounded(integers, scale).transpose(0, 2, 1)
    per_image: Floats = error.reshape(len(error), samples.images, -1, error.shape[2]).mean(axis=2, dtype=np.float64)
    shift: Floats = per_image.mean(axis=1) - prior
    if samples.images < 2:
        return np.add(prior, shift)
    variance = per_image.var(axis=1, ddof=1) / samples.images
    believed: Floats = np.maximum(0.0, 1.0 - _SIGNIFICANCE**2 * variance / np.maximum(shift**2, 1e-60))
    return np.add(prior, believed * shift)


def _rounded(integers: Floats, scale: Float32s) -> Float32s:
    rounded: Float32s = (integers * scale[..., None].astype(np.float64)).astype(np.float32)
    return rounded


def _squared_error(weights: Float32s, bias: Float32s, samples: _Samples) -> float:
    """The mean over the samples of the squared error, summed over outputs."""
    computed = samples.inputs @ weights.transpose(0, 2, 1) + bias[:, None, :]
    return float(np.square(computed - samples.outputs, dtype=np.float64).sum() / computed.shape[1])


def _decibel(signal: float, noise: float) -> float:
    return 10.0 * float(np.log10(signal / noise)) if signal > 0.0 and noise > 0.0 else float("inf")

"""A float classifier to INT8 graphs: one calibration, a graph per target."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx

from edgetune.core.errors import ModelError
from edgetune.core.progress import Progress, no_progress
from edgetune.graph.compose import check_model
from edgetune.graph.layer_names import KEPT_ON_REQUEST, check_layer_names
from edgetune.graph.network import Network
from edgetune.quantize.canonical import Pixels, canonical_network
from edgetune.quantize.correct import LayerError, correct, nearest_weights
from edgetune.quantize.equalize import Equalized, equalize
from edgetune.quantize.histogram import Histogram
from edgetune.quantize.images import ImageSpool
from edgetune.quantize.lint import check_lint
from edgetune.quantize.observe import histograms
from edgetune.quantize.placement import Placement, find_layers, place
from edgetune.quantize.qdq import LayerWeights, QdqNetwork
from edgetune.quantize.ranges import RangeChoice, choose_range, to_params
from edgetune.quantize.rounding import WeightOptions
from edgetune.quantize.targets import Target


@dataclass(frozen=True)
class Calibration:
    """The float network, equalised, and what its tensors were seen to hold."""

    network: Network
    pixels: Pixels | None
    seen: dict[str, Histogram]
    equalized: Equalized


@dataclass(frozen=True)
class QuantizedModel:
    """`weights` and `errors` are those of the layers that became integers, `ranges` of the tensors between them."""

    model: onnx.ModelProto
    placement: Placement
    ranges: dict[str, RangeChoice]
    weights: dict[str, LayerWeights]
    errors: tuple[LayerError, ...]


def calibrate(
    model: onnx.ModelProto, images: ImageSpool, targets: tuple[Target, ...], *, progress: Progress = no_progress
) -> Calibration:
    """One look at the images for all targets.

    Raises:
        ModelError: the model cannot be quantized, has no layer for it, or holds NaN.
    """
    network, pixels = canonical_network(model)
    equalized = equalize(network, images)
    network = Network.of_model(network.model())
    placements = [place(network, target) for target in targets]
    tensors = list(dict.fromkeys(name for placement in placements for name in placement.tensors))
    if not tensors:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in placements[0].kept_float.items())
        raise ModelError(f"no layer of the model can be quantized. {reasons}.")
    return Calibration(network, pixels, histograms(network, tensors, images, progress=progress), equalized)


def check_kept_float(model: onnx.ModelProto, names: tuple[str, ...]) -> None:
    """Raises `UsageError` for a name that is no layer of the float `model`, with the nearest that are."""
    if names:
        check_layer_names(names, [layer.name for layer in find_layers(Network.of_model(model))])


def with_requests(kept_float: Mapping[str, str], names: tuple[str, ...]) -> dict[str, str]:
    """The reasons for layers kept in float, by layer; of those that were asked for, that they were."""
    return {**kept_float, **{name: KEPT_ON_REQUEST for name in names if name in kept_float}}


def quantize(
    calibration: Calibration, target: Target, images: ImageSpool, *, options: WeightOptions = WeightOptions(),  # noqa: B008 - frozen
    kept_float: tuple[str, ...] = (), progress: Progress = no_progress,
) -> QuantizedModel:  # fmt: skip
    """The target's graph; `kept_float` names layers that are not quantized."""
    network = calibration.network
    quantized, ranges = _build(calibration, target, place(network, target, kept_float))
    correction = correct(quantized, network, images, options=options, progress=progress)
    result = quantized.model()
    check_model(result)
    check_lint(result, target.name)
    return QuantizedModel(result, quantized.placement, ranges, correction.weights, correction.errors)


def only_layer(calibration: Calibration, target: Target, layer: str, options: WeightOptions) -> onnx.ModelProto:
    """The graph with this one layer in integers, rounded to nearest, and all others in float: what it costs alone."""
    others = tuple(each.name for each in find_layers(calibration.network) if each.name != layer)
    alone, _ = _build(calibration, target, place(calibration.network, target, others))
    for each in alone.placement.layers:
        alone.set_weights(each, nearest_weights(calibration.network, each, alone.params[each.data], options))
    return alone.model()


def _build(
    calibration: Calibration, target: Target, placement: Placement
) -> tuple[QdqNetwork, dict[str, RangeChoice]]:  # fmt: skip
    own = [name for name in placement.tensors if name not in placement.same_range]
    ranges = {name: choose_range(calibration.seen[name], target) for name in own}
    params = {name: to_params(choice.low, choice.high, target) for name, choice in ranges.items()}
    params.update({name: params[source] for name, source in placement.same_range.items()})
    pixels = calibration.pixels
    if pixels is not None and pixels.tensor in params:
        params[pixels.tensor] = pixels.params(target)
    tensor = pixels.tensor if pixels is not None else None
    return QdqNetwork(calibration.network, target, placement, params, tensor), ranges

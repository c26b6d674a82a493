"""Whether the scales and zero points in an INT8 graph are those that its calibration record gives."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx

from edgetune.core.errors import ConfigError
from edgetune.graph.foreign import embedded_preprocess
from edgetune.graph.network import Network
from edgetune.quantize.canonical import Pixels
from edgetune.quantize.qdq import QuantParams
from edgetune.quantize.ranges import to_params
from edgetune.quantize.targets import Target, find_target

SCALE, ZERO_POINT = "scale", "zero point"

_RELATIVE = 1e-6  # float32 rounding, in the file and in the record


@dataclass(frozen=True)
class Mismatch:
    """`what` is SCALE or ZERO_POINT."""

    tensor: str
    what: str
    found: float
    expected: float

    def __str__(self) -> str:
        times = f", {self.found / self.expected:.4g} times as much" if self.what == SCALE and self.expected else ""
        return (
            f"the {self.what} of {self.tensor!r} is {self.found:.6g}, "
            f"the calibration record gives {self.expected:.6g}{times}"
        )


def check_against_record(model: onnx.ModelProto, record: Mapping[str, Any], target: str) -> list[str]:
    """A sentence for every activation of the graph whose scale or zero point is not what the record's range gives.

    `record` is the content of `calibration.json`.

    Raises:
        ConfigError: the record has nothing about the target.
        UsageError: there is no such target.
    """
    find_target(target)
    tensors = {tensor for _, tensor in _activation_pairs(Network.of_model(model))}
    if tensors and tensors.isdisjoint(_ranges(record, target)):
        return ["the calibration record is another model's: it knows none of the graph's quantized tensors"]
    return [str(mismatch) for mismatch in find_mismatches(model, record, target)]


def find_mismatches(model: onnx.ModelProto, record: Mapping[str, Any], target: str) -> list[Mismatch]:
    """As `check_against_record`, with the numbers."""
    chosen = find_target(target)
    network = Network.of_model(model)
    known = _expected_params(_ranges(record, target), chosen, _pixels(model, network))
    found: list[Mismatch] = []
    for node, tensor in _activation_pairs(network):
        expected = known.get(_source_of_pool(network, tensor))
        params = _params_of(network, node)
        if expected is None or params is None:
            continue
        found += _differences(tensor, params, expected)
    return list(dict.fromkeys(found))


def _differences(tensor: str, params: QuantParams, expected: QuantParams) -> list[Mismatch]:
    found = []
    scale, wanted = float(params.scale), float(expected.scale)
    if not abs(scale - wanted) <= _RELATIVE * abs(wanted):
        found.append(Mismatch(tensor, SCALE, scale, wanted))
    if params.zero_point != expected.zero_point:
        found.append(Mismatch(tensor, ZERO_POINT, params.zero_point, expected.zero_point))
    return found


def target_record(record: Mapping[str, Any], target: str) -> Mapping[str, Any]:
    """The part of a calibration record that is about one target.

    Raises:
        ConfigError: there is none.
    """
    targets = record.get("targets")
    for entry in targets if isinstance(targets, list) else ():
        if isinstance(entry, dict) and entry.get("target") == target:
            return entry
    raise ConfigError(f"the calibration record has nothing about the target {target!r}.")


def _ranges(record: Mapping[str, Any], target: str) -> dict[str, tuple[float, float]]:
    ranges = target_record(record, target).get("ranges")
    if not isinstance(ranges, dict):
        raise ConfigError(f"the calibration record has no ranges for the target {target!r}.")
    try:
        return {name: (float(entry["low"]), float(entry["high"])) for name, entry in ranges.items()}
    except (TypeError, KeyError, ValueError) as error:
        raise ConfigError(f"the calibration record's ranges for the target {target!r} cannot be read.") from error


def _expected_params(
    ranges: Mapping[str, tuple[float, float]], target: Target, pixels: Pixels | None
) -> dict[str, QuantParams]:
    expected = {name: to_params(low, high, target) for name, (low, high) in ranges.items()}
    if pixels is not None and pixels.tensor in expected:
        expected[pixels.tensor] = pixels.params(target)
    return expected


def _activation_pairs(network: Network) -> Iterator[tuple[onnx.NodeProto, str]]:
    """Each QuantizeLinear and DequantizeLinear of an activation, with the name of the float tensor."""
    for node in network.nodes:
        if node.op_type == "QuantizeLinear" and node.input[0] not in network.constants:
            yield node, str(node.input[0])
        elif node.op_type == "DequantizeLinear" and node.input[0] not in network.constants:
            maker = network.makers.get(node.input[0])
            quantized = maker is not None and maker.op_type == "QuantizeLinear"
            yield node, str(maker.input[0]) if maker is not None and quantized else node.input[0].removesuffix("_q")


def _params_of(network: Network, node: onnx.NodeProto) -> QuantParams | None:
    """None where they are not constants of one number."""
    scale = network.constants.get(node.input[1])
    zero_point = network.constants.get(node.input[2]) if len(node.input) > 2 else np.array(0)
    if scale is None or zero_point is None or scale.size != 1 or zero_point.size != 1:
        return None
    return QuantParams(np.float32(scale.flat[0]), int(zero_point.flat[0]))


def _source_of_pool(network: Network, tensor: str) -> str:
    """A pooling's output has the range of its input."""
    node = network.makers.get(tensor)
    while node is not None and node.op_type in ("MaxPool", "DequantizeLinear", "QuantizeLinear"):
        tensor = str(node.input[0])
        node = network.makers.get(tensor)
    return tensor


def _pixels(model: onnx.ModelProto, network: Network) -> Pixels | None:
    """The normalised image where its integers are the pixels themselves: behind `pixel - 128`, or read as uint8."""
    for node, tensor in _activation_pairs(network):
        divide = network.makers.get(tensor)
        if divide is None and node.op_type == "DequantizeLinear":
            spec = embedded_preprocess(model)
            return None if spec is None else Pixels(tensor, 1.0 / float(np.float32(255.0 * spec.std[0])))
        subtract = network.makers.get(divide.input[0]) if divide is not None and divide.op_type == "Div" else None
        if divide is None or subtract is None or subtract.op_type != "Sub":
            continue
        middle, deviation = (network.constants.get(each.input[1]) for each in (subtract, divide))
        if middle is not None and deviation is not None and (middle == 128).all():
            return Pixels(tensor, 1.0 / float(deviation.flat[0]))
    return None

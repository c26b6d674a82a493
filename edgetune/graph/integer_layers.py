"""A Q/DQ graph's integer layers, each on the integers of the unoptimised graph, so that kernels compare in steps.

The last integers of two right executions say little: where a sum rounds otherwise an integer moves by one step, and a
deep network spreads that. Measured on EfficientNet-Lite0 for x86, the integer kernels against the unoptimised graph:
end to end 8 % of the last integers differ, by up to 39 steps; with the reference's integers given to every layer four
values in a million differ, by one step. So one step is what rounding explains, and a wrong kernel shows.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper

from edgetune.core.tensors import Array
from edgetune.graph.compose import read_model
from edgetune.graph.network import Network
from edgetune.runners.ort_runner import OrtRunner

_GIVEN = "__given"


@dataclass(frozen=True)
class IntegerModels:
    """`observed` gives the integer `tensors` beside its own outputs; `fed` gives the same from `tensors` that it takes
    as inputs, named with `_GIVEN` behind, in place of its own.
    """

    observed: onnx.ModelProto
    fed: onnx.ModelProto
    tensors: tuple[str, ...]


@dataclass(frozen=True)
class StepDifference:
    """Over all integer tensors: `max_lsb` is the largest difference in steps, in `tensor`; `share` of the values
    differ at all.
    """

    max_lsb: int
    share: float
    tensor: str


def integer_models(model: onnx.ModelProto) -> IntegerModels | None:
    """None where no activation is quantized."""
    network = Network.of_model(model)
    kinds = _integer_tensors(network)
    if not kinds:
        return None
    shapes = network.shapes()
    outputs = [helper.make_tensor_value_info(name, kind, None) for name, kind in kinds.items()]
    observed = network.model()
    observed.graph.output.extend(outputs)
    for node in network.nodes:
        for index, name in enumerate(node.input):
            node.input[index] = f"{name}{_GIVEN}" if name in kinds else name
    fed = network.model()
    fed.graph.output.extend(outputs)
    fed.graph.input.extend(
        helper.make_tensor_value_info(f"{name}{_GIVEN}", kind, _open_shape(name, shapes))
        for name, kind in kinds.items()
    )
    return IntegerModels(observed, fed, tuple(kinds))


def compare_integers(path: Path, images: npt.NDArray[np.uint8]) -> StepDifference | None:
    """The optimised graph's layers on a CPU against the unoptimised graph's, for uint8 `(N, H, W, 3)`; None where
    there are no integers or no images.
    """
    models = integer_models(read_model(path))
    return None if models is None or len(images) == 0 else compare_models(models, images)


def compare_models(models: IntegerModels, images: npt.NDArray[np.uint8], *, batch: int = 4) -> StepDifference:
    """As `compare_integers`; what is in memory is the integers of one batch."""
    image = models.observed.graph.input[0].name
    largest, differing, count = dict.fromkeys(models.tensors, 0), 0, 0
    observed, fed = models.observed.SerializeToString(), models.fed.SerializeToString()
    with OrtRunner(observed, optimise=False) as reference, OrtRunner(fed) as layers:
        for part in (images[start : start + batch] for start in range(0, len(images), batch)):
            expected = reference.infer({image: part})
            given = {f"{name}{_GIVEN}": expected[name] for name in models.tensors}
            found = layers.infer({image: part, **given})
            for name in models.tensors:
                steps = _steps(expected[name], found[name])
                largest[name] = max(largest[name], int(steps.max()))
                differing, count = differing + int(np.count_nonzero(steps)), count + steps.size
    worst = max(largest, key=lambda name: largest[name])
    return StepDifference(largest[worst], differing / count, worst)


def _steps(expected: Array, found: Array) -> npt.NDArray[np.int32]:
    return np.abs(expected.astype(np.int32) - found.astype(np.int32))


def _integer_tensors(network: Network) -> dict[str, int]:
    """The element type of each quantized activation that an output depends on, in graph order."""
    network.remove_unread()
    quantizers = [node for node in network.nodes if node.op_type == "QuantizeLinear"]
    activations = [node for node in quantizers if node.input[0] not in network.constants]
    return {node.output[0]: _zero_point_type(network, node) for node in activations}


def _zero_point_type(network: Network, node: onnx.NodeProto) -> int:
    """A Q without a zero point makes uint8."""
    if len(node.input) < 3 or node.input[2] not in network.constants:
        return int(TensorProto.UINT8)
    return int(helper.np_dtype_to_tensor_dtype(network.constants[node.input[2]].dtype))


def _open_shape(name: str, shapes: dict[str, tuple[int | None, ...]]) -> list[int | str | None] | None:
    """The tensor's shape with names for its open sizes; None where not even its rank is known."""
    shape = shapes.get(name)
    return None if shape is None else [size or f"{name}_{axis}" for axis, size in enumerate(shape)]

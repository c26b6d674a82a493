"""What the tensors of the float graph hold on the calibration images: extremes per channel, and histograms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper

from edgetune.core.errors import ModelError
from edgetune.core.progress import Progress, no_progress
from edgetune.core.tensors import Array
from edgetune.graph.network import Network
from edgetune.quantize.histogram import Histogram
from edgetune.quantize.images import ImageSpool
from edgetune.runners.ort_runner import OrtRunner

# Enough for a range, and few enough that counting them costs less than the inference: extremes are exact anyway.
_SAMPLED_PIXELS = 200
_BATCH = 2
_EQUALIZING_IMAGES = 64

Extremes = dict[str, tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]]


def channel_extremes(network: Network, tensors: Sequence[str], images: ImageSpool) -> Extremes:
    """Lowest and highest value per channel `(C,)` of tensors `(N, C, H, W)`, reduced inside the graph, on some images.

    Raises:
        ModelError: a tensor holds NaN or infinity.
    """
    found: Extremes = {}
    nodes = [node for name in tensors for node in _extreme_nodes(name, "channel_axes")]
    model = _with_nodes(network, nodes, {"channel_axes": np.array([0, 2, 3], np.int64)})
    with OrtRunner(model.SerializeToString()) as runner:
        for batch in images.batches(_BATCH, _EQUALIZING_IMAGES):
            outputs = runner.infer({network.inputs[0]: batch})
            for name in tensors:
                low, high = outputs[f"{name}_lowest"], outputs[f"{name}_highest"]
                _check_finite(name, low, high)
                if name in found:
                    low, high = np.minimum(found[name][0], low), np.maximum(found[name][1], high)
                found[name] = low, high
    return found


def histograms(
    network: Network, tensors: Sequence[str], images: ImageSpool, *, batch: int = _BATCH,
    progress: Progress = no_progress,
) -> dict[str, Histogram]:  # fmt: skip
    """A histogram per tensor, over a fixed grid of pixels; the extremes are over all of them.

    Neither the order of the images nor `batch` changes the result. What is in memory is one batch and the bins.

    Raises:
        ModelError: a tensor holds NaN or infinity.
    """
    found = {name: Histogram() for name in tensors}
    model = _observing_model(network, tensors)
    done = 0
    with OrtRunner(model.SerializeToString()) as runner:
        for feed in images.batches(batch):
            outputs = runner.infer({network.inputs[0]: feed})
            for name, histogram in found.items():
                low, high = outputs[f"{name}_lowest"], outputs[f"{name}_highest"]
                _check_finite(name, low, high)
                histogram.add(outputs[f"{name}_values"], float(low), float(high))
            done += len(feed)
            progress("calibration", done, images.count)
    return found


def _observing_model(network: Network, tensors: Sequence[str]) -> onnx.ModelProto:
    shapes = network.shapes()
    nodes: list[onnx.NodeProto] = []
    constants: dict[str, Array] = {"grid_axes": np.array([2, 3], np.int64), "grid_end": np.full(2, 2**31, np.int64)}
    for name in tensors:
        nodes += _extreme_nodes(name, None)
        step = _grid_step(shapes.get(name, ()))
        constants[f"grid_start_{step}"] = np.full(2, step // 2, np.int64)
        constants[f"grid_step_{step}"] = np.full(2, step, np.int64)
        inputs = [name, f"grid_start_{step}", "grid_end", "grid_axes", f"grid_step_{step}"]
        whole = helper.make_node("Identity", [name], [f"{name}_values"])
        nodes.append(whole if step == 1 else helper.make_node("Slice", inputs, [f"{name}_values"]))
    return _with_nodes(network, nodes, constants)


def _grid_step(shape: tuple[int | None, ...]) -> int:
    """Every how manyth row and column leaves at most `_SAMPLED_PIXELS` of an image; 1 where that is not known."""
    if len(shape) != 4 or shape[2] is None or shape[3] is None:
        return 1
    return int(np.ceil(np.sqrt(shape[2] * shape[3] / _SAMPLED_PIXELS)))


def _extreme_nodes(name: str, axes: str | None) -> list[onnx.NodeProto]:
    inputs = [name] if axes is None else [name, axes]
    return [
        helper.make_node(op_type, inputs, [f"{name}_{suffix}"], keepdims=0)
        for op_type, suffix in (("ReduceMin", "lowest"), ("ReduceMax", "highest"))
    ]


def _with_nodes(network: Network, nodes: list[onnx.NodeProto], constants: Mapping[str, Array]) -> onnx.ModelProto:
    """The graph as far as `nodes` behind it need it; their outputs are the model's."""
    observed = Network([*network.nodes, *nodes], {**network.constants, **constants}, network.source)
    return observed.piece({node.output[0]: TensorProto.FLOAT for node in nodes})


def _check_finite(name: str, low: npt.NDArray[np.float32], high: npt.NDArray[np.float32]) -> None:
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        raise ModelError(
            f"the tensor {name!r} holds NaN or infinity on the calibration images.",
            hint="the weights may be damaged: compare the model with edgetune parity",
        )

"""Why a node must stay float32: what it reads, adds up or makes does not fit float16.

Keeping the nodes whose tensors leave float16's range in float32, with casts around them, is the idea of NVIDIA
ModelOpt's AutoCast (https://nvidia.github.io/Model-Optimizer/guides/8_autocast.html).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import onnx

from edgetune.core.tensors import Array
from edgetune.graph.float_view import FloatView
from edgetune.graph.network import attribute

HALF_MAX = 65504.0
# Images to come may reach further than the observed ones (measured: 1.4 times as far after 244 images, 2.1 times after
# 32), and kernels may add up in half before they are done.
LIMIT = HALF_MAX / 8
# Below 2 ** -14 float16 loses digits: a tensor that stays under this has most of its values there.
FLOOR = 2.0**-10

# The share of a channel's energy that may be lost: 40 dB, where rounding alone leaves 70 dB.
_LOST_SHARE = 1e-4
_HALF_STEP = 2.0**-11  # the largest relative error of a rounding to float16
_SMALLEST = 2.0**-24

# Operators of CNNs that round once, or compute sums as `_sums` bounds them. Others are few, and stay float32.
HALF_OPERATORS = frozenset(
    {
        "Abs", "Add", "AveragePool", "BatchNormalization", "Clip", "Concat", "Conv", "ConvTranspose", "DepthToSpace",
        "Div", "Elu", "Erf", "Expand", "Flatten", "Gather", "Gelu", "Gemm", "GlobalAveragePool", "GlobalMaxPool",
        "HardSigmoid", "HardSwish", "Identity", "LeakyRelu", "MatMul", "Max", "MaxPool", "Min", "Mish", "Mul", "Neg",
        "PRelu", "Pad", "ReduceMax", "ReduceMean", "ReduceSum", "Relu", "Reshape", "Resize", "Selu", "Sigmoid",
        "Slice", "SpaceToDepth", "Split", "Squeeze", "Sub", "Tanh", "Transpose", "Unsqueeze", "Where",
    }
)  # fmt: skip

# Where small constants count as much as large ones, since something is multiplied by them.
_FACTORS = {
    "BatchNormalization": (1, 4),
    "Conv": (1,),
    "ConvTranspose": (1,),
    "Div": (0, 1),
    "Gemm": (0, 1),
    "MatMul": (0, 1),
    "Mul": (0, 1),
    "PRelu": (1,),
}
_WEIGHTED = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})


def reason_for_float(view: FloatView, node: onnx.NodeProto, largest: Mapping[str, float]) -> str | None:
    """Why `node` must stay float32, with the numbers; None where float16 will do.

    `largest` has the largest observed magnitude of each data tensor.
    """
    if node.op_type not in HALF_OPERATORS or node.domain not in ("", "ai.onnx"):
        return f"{node.op_type} is not among the operators that are computed in float16"
    return (
        _unfit_constant(view, node) or _unfit_data(view, node, largest)
        or _lost_weights(view, node, largest) or _unfit_sums(view, node, largest)
    )  # fmt: skip


def _unfit_constant(view: FloatView, node: onnx.NodeProto) -> str | None:
    for _, name, values in view.constants_of(node):
        if not np.isfinite(values).all():
            return f"the constant {name!r} holds NaN or infinity"
        highest = float(np.abs(values).max(initial=0.0))
        if highest > HALF_MAX:
            return f"the constant {name!r} reaches {highest:.6g}, and float16 ends at {HALF_MAX:g}"
    return None


def _unfit_data(view: FloatView, node: onnx.NodeProto, largest: Mapping[str, float]) -> str | None:
    for name in view.data_of(node):
        value = largest.get(name)
        if value is None:
            return f"the range of {name!r} is not known"
        if not math.isfinite(value):
            return f"{name!r} holds NaN or infinity"
        if value > LIMIT:
            return f"{name!r} reaches {value:.6g}, over the limit of {LIMIT:g}"
        if 0.0 < value < FLOOR:
            return f"{name!r} only reaches {value:.3g}, too little for float16's digits"
    return None


def _lost_weights(view: FloatView, node: onnx.NodeProto, largest: Mapping[str, float]) -> str | None:
    for index, name, values in view.constants_of(node):
        if index not in _FACTORS.get(node.op_type, ()):
            continue
        rows = _by_channel(node, index, values)
        difference = np.abs(rows - rows.astype(np.float16))
        lost = np.square(difference).sum(axis=1) > _LOST_SHARE * np.square(rows).sum(axis=1)
        if node.op_type in _WEIGHTED:
            # What the output's own rounding hides is no loss: channels of weights near zero just give their bias.
            heard = difference.sum(axis=1) * _reach(view, node, largest)
            lost &= heard > np.maximum(_HALF_STEP * np.abs(_bias(view, node)), _SMALLEST)
        if lost.any():
            return f"{name!r} loses over {_LOST_SHARE:.2%} of the energy of {int(lost.sum())} of {len(rows)} channels"
    return None


def _unfit_sums(view: FloatView, node: onnx.NodeProto, largest: Mapping[str, float]) -> str | None:
    """Kernels may add up in float16, in any order, so the worst case counts: all terms of one sign."""
    worst = 0.0
    if node.op_type in _WEIGHTED:
        sums = [np.abs(_by_channel(node, index, values)).sum(axis=1).max()
                for index, _, values in view.constants_of(node) if index < 2]  # fmt: skip
        worst = max(sums, default=0.0) * _reach(view, node, largest) + float(np.abs(_bias(view, node)).max())
    elif node.op_type in ("AveragePool", "GlobalAveragePool", "ReduceMean", "ReduceSum"):
        worst = _terms(view, node) * _reach(view, node, largest)
    if worst > HALF_MAX:
        return f"its sums may reach {worst:.6g}, and float16 ends at {HALF_MAX:g}"
    return None


def _reach(view: FloatView, node: onnx.NodeProto, largest: Mapping[str, float]) -> float:
    """The largest magnitude among a node's data inputs."""
    return max((largest[name] for name in view.data_of(node) if name in node.input), default=0.0)


def _bias(view: FloatView, node: onnx.NodeProto) -> npt.NDArray[np.float64]:
    """Values of the bias `(channels,)` or `(1,)`; zero where there is none."""
    found = [values for index, _, values in view.constants_of(node) if index == 2]
    return found[0].reshape(-1).astype(np.float64) if found else np.zeros(1)


def _by_channel(node: onnx.NodeProto, index: int, values: Array) -> npt.NDArray[np.float64]:
    """Constants as `(channels, n)`: a row has what makes one output channel."""
    exact = values.astype(np.float64)
    if node.op_type == "ConvTranspose":
        exact = exact.swapaxes(0, 1)
    elif (node.op_type == "Gemm" and attribute(node, "transB", 0) == 0) or (node.op_type == "MatMul" and index == 1):
        exact = np.moveaxis(exact, -1, 0)
    elif node.op_type not in _WEIGHTED:
        return exact.reshape(-1, 1)
    return exact.reshape(len(exact), -1)


def _terms(view: FloatView, node: onnx.NodeProto) -> float:
    """How many values each of a reduction's sums has; infinity where the image's size is not in the graph."""
    if node.op_type == "AveragePool":
        return float(np.prod(attribute(node, "kernel_shape", [])))
    shape = view.shapes.get(node.input[0], (None,))
    axes: list[int] = list(range(2, len(shape)))
    if node.op_type != "GlobalAveragePool":
        chosen = view.network.constants.get(node.input[1]) if len(node.input) > 1 else None
        axes = list(range(len(shape))) if chosen is None else chosen.tolist()
    sizes = [shape[axis] for axis in axes]
    return float("inf") if None in sizes else float(np.prod([size or 0 for size in sizes]))

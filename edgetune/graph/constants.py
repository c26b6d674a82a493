"""The weights of one block in two files of a network: which differ, and how."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx

from edgetune.core.tensors import Array
from edgetune.graph.blocks import PRODUCTS, Block, BlockGraph
from edgetune.graph.network import Network, attribute

NON_FINITE, SIGN, FACTOR, VALUES = "non-finite", "sign", "factor", "values"

# What rounding to the precision leaves of a tensor of weights, with a margin: SQNR in dB.
_LEAST_DB = {"fp32": 100.0, "fp16": 55.0, "int8": 18.0}
_RANDOM = frozenset(
    {"Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"}
)
_EXPLAINED_DB = 15.0
_Scales = Mapping[str, npt.NDArray[np.float32]]


@dataclass(frozen=True)
class ConstantNote:
    """`kind` is one of NON_FINITE, SIGN, FACTOR, VALUES."""

    kind: str
    name: str
    sentence: str


def bad_constants(graph: BlockGraph, block: Block) -> list[ConstantNote]:
    """Constants of a block that hold NaN or infinity; a single infinite number may be meant, as a bound is."""
    found = []
    for node in graph.network.nodes:
        if node.name not in block.nodes:
            continue
        for name in node.input:
            values = constant_value(graph.network, name)
            if values is None or values.dtype.kind != "f" or (values.size < 2 and np.isinf(values).all()):
                continue
            count = int((~np.isfinite(values)).sum())
            if count:
                sentence = f"{name!r} holds {count} NaN or infinite values of {values.size}"
                found.append(ConstantNote(NON_FINITE, name, sentence))
    return found


def random_nodes(graph: BlockGraph) -> list[onnx.NodeProto]:
    """Nodes whose output is drawn by lot: dropout in training mode counts, though ONNX Runtime may take it out."""
    return [node for node in graph.network.nodes if node.op_type in _RANDOM or _is_dropping(graph.network, node)]


def _is_dropping(network: Network, node: onnx.NodeProto) -> bool:
    if node.op_type != "Dropout" or len(node.input) < 3 or not node.input[2]:
        return False
    mode = network.constants.get(node.input[2])
    return mode is None or bool(mode.any())


def compare_constants(
    reference: BlockGraph, candidate: BlockGraph, block: Block, precision: str, scales: _Scales
) -> list[ConstantNote]:
    """Weights of the block's nodes against those of the reference's nodes that make the same tensors.

    `scales` has for equalised tensors what their channels are divided by in the candidate. Biases of INT8 layers are
    fitted anew, so they are left out.
    """
    found = []
    for node in candidate.network.nodes:
        twin = reference.network.makers.get(node.output[0]) if node.name in block.nodes else None
        if twin is None or twin.op_type != node.op_type or len(twin.input) != len(node.input):
            continue
        for index, (name, other) in enumerate(zip(node.input, twin.input, strict=True)):
            values, expected = constant_value(candidate.network, name), constant_value(reference.network, other)
            if values is None or expected is None or (precision == "int8" and index > 1):
                continue
            if precision == "int8" and index == 1 and node.op_type in PRODUCTS:
                expected = _equalized(expected, twin, node, scales)
            note = _compare(name, expected, values, precision)
            if note is not None:
                found.append(note)
    return found


def constant_value(network: Network, name: str) -> Array | None:
    """A constant, dequantized where it is stored in integers; None for what is no constant."""
    if name in network.constants:
        return network.constants[name]
    node = network.makers.get(name)
    if node is None or node.op_type != "DequantizeLinear" or node.input[0] not in network.constants:
        return None
    integers = network.constants[node.input[0]].astype(np.float64)
    scale = network.constants.get(node.input[1])
    zero_point = network.constants.get(node.input[2]) if len(node.input) > 2 else np.array(0)
    if scale is None or zero_point is None:
        return None
    axis = attribute(node, "axis", 1) % max(integers.ndim, 1)
    shape = [-1 if index == axis else 1 for index in range(integers.ndim)] if scale.size > 1 else []
    zero_points = zero_point.reshape(shape) if zero_point.size > 1 else zero_point
    made: Array = (integers - zero_points) * scale.reshape(shape)
    return made


def _equalized(weight: Array, reference: onnx.NodeProto, node: onnx.NodeProto, scales: _Scales) -> Array:
    """The reference's weights as the candidate should have them: divided by what its outputs are, times its inputs'."""
    made, read = scales.get(node.output[0]), scales.get(reference.input[0])
    exact: Array = weight.astype(np.float64)
    if node.op_type != "Conv":
        return exact
    if made is not None:
        exact = exact / made.reshape(-1, *[1] * (exact.ndim - 1))
    if read is not None:
        groups = attribute(node, "group", 1)
        own = read.reshape(groups, 1, -1).repeat(len(exact) // groups, axis=1).reshape(len(exact), -1)
        exact = exact * own.reshape(*own.shape, *[1] * (exact.ndim - 2))
    return exact


def _compare(name: str, expected: Array, values: Array, precision: str) -> ConstantNote | None:
    if expected.dtype.kind not in "fiu" or values.dtype.kind not in "fiu":
        return None
    if values.size == expected.size:
        values = values.reshape(expected.shape)
    elif values.size == 1:
        values = np.broadcast_to(values.reshape(-1), expected.shape)
    else:
        return ConstantNote(VALUES, name, f"{name!r} has shape {values.shape}, the reference's {expected.shape}")
    a, b = expected.astype(np.float64), values.astype(np.float64)
    if not (np.isfinite(a) & np.isfinite(b)).all():
        if np.array_equal(a, b, equal_nan=True):
            return None
        return ConstantNote(NON_FINITE, name, f"{name!r} holds {int((~np.isfinite(b)).sum())} NaN or infinite values")
    db = _decibel(a, b - a)
    if db >= _LEAST_DB[precision]:
        return None
    factor = float((a * b).sum() / max(float((a * a).sum()), 1e-300))
    explained = _decibel(a * factor, b - a * factor) >= db + _EXPLAINED_DB
    if explained and abs(factor) > 0:
        kind = SIGN if factor < 0 else FACTOR
        return ConstantNote(kind, name, f"{name!r} is {factor:.4g} times the reference's")
    differing = int((np.abs(a - b) > 10.0 ** (-_LEAST_DB[precision] / 20.0) * np.abs(a).max()).sum())
    told = f"{name!r} differs from the reference's in {differing} of {a.size} values ({db:.1f} dB)"
    return ConstantNote(VALUES, name, told)


def _decibel(signal: Array, noise: Array) -> float:
    power = float(np.square(noise).sum())
    return float("inf") if power == 0.0 else 10.0 * float(np.log10(max(float(np.square(signal).sum()), 1e-300) / power))

"""Cross-layer equalisation: channels of one tensor brought to the same reach, so that they share its 256 steps well.

Dividing a channel by s where a convolution makes it and multiplying by s where the next one reads it changes nothing
in float (Nagel et al. 2019, section 4.1). It passes linear tensors, Relu, MaxPool and residual Adds; a Clip's bound
does not scale along, so tensors behind one are left alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgetune.graph.network import Network, attribute
from edgetune.quantize.images import ImageSpool
from edgetune.quantize.observe import Extremes, channel_extremes
from edgetune.quantize.placement import Layer, find_layers

_FLOOR = 0.02  # a channel is enlarged fifty times at most: what it holds besides its small values is unknown
# Behind a linear convolution the weights take any output scale at no cost; Relu tensors feed wide convolutions whose
# columns would be spread too far, so the way is halved there.
_LINEAR_POWER, _RELU_POWER = 1.0, 0.5


@dataclass(frozen=True)
class _Group:
    """Tensors that must keep one common scale per channel, because they are added to each other."""

    tensors: tuple[str, ...]
    makers: tuple[Layer, ...]
    readers: tuple[Layer, ...]
    is_linear: bool


@dataclass(frozen=True)
class Equalized:
    """How many groups of tensors were scaled, and by tensor the scale `(C,)` that its channels were divided by."""

    groups: int
    channel_scales: dict[str, npt.NDArray[np.float32]]


def equalize(network: Network, images: ImageSpool) -> Equalized:
    """Scales weights and biases in place, by the reach that channels have on the images."""
    groups = _find_groups(network)
    seen = channel_extremes(network, [name for group in groups for name in group.tensors], images) if groups else {}
    scales: dict[str, npt.NDArray[np.float32]] = {}
    for group in groups:
        scale = _channel_scale(group, seen)
        _scale_group(network, group, scale)
        scales.update(dict.fromkeys(group.tensors, scale))
    return Equalized(len(groups), scales)


def equalizable(network: Network) -> tuple[str, ...]:
    """The tensors whose channels `equalize` would scale."""
    return tuple(name for group in _find_groups(network) for name in group.tensors)


def _channel_scale(group: _Group, seen: Extremes) -> npt.NDArray[np.float32]:
    reach = np.max([np.maximum(-seen[name][0], seen[name][1]) for name in group.tensors], axis=0)
    widest = float(reach.max())
    if widest <= 0.0:
        return np.ones_like(reach, dtype=np.float32)
    power = _LINEAR_POWER if group.is_linear else _RELU_POWER
    scale: npt.NDArray[np.float32] = (np.maximum(reach / widest, _FLOOR) ** power).astype(np.float32)
    return scale


def _scale_group(network: Network, group: _Group, scale: npt.NDArray[np.float32]) -> None:
    constants = network.constants
    for layer in group.makers:
        constants[layer.weight] = constants[layer.weight] / scale[:, None, None, None]
        constants[layer.bias] = constants[layer.bias] / scale
    for layer in group.readers:
        weight = constants[layer.weight]
        groups = attribute(network.makers[layer.product], "group", 1)
        if groups == 1:
            constants[layer.weight] = weight * scale[None, :, None, None]
        else:
            own = scale.reshape(groups, 1, -1).repeat(len(weight) // groups, axis=1)
            constants[layer.weight] = weight * own.reshape(len(weight), -1)[:, :, None, None]


def _find_groups(network: Network) -> list[_Group]:
    found = [layer for layer in find_layers(network) if layer.op_type == "Conv" and layer.bias in network.constants]
    layers = [layer for layer in found if network.constants[layer.weight].ndim == 4]
    owners = _union(network, {layer.product for layer in layers})
    groups = []
    for tensors in owners:
        made = {name: network.makers[name] for name in tensors}
        makers = tuple(layer for layer in layers if layer.product in tensors)
        readers = tuple(layer for layer in layers if layer.data in tensors)
        if makers and readers and _is_closed(network, tensors, makers, readers):
            linear = all(node.op_type in ("Conv", "Add") for node in made.values())
            groups.append(_Group(tuple(tensors), makers, readers, linear))
    return groups


def _union(network: Network, products: set[str]) -> list[list[str]]:
    """Convolution outputs and whatever Relu, MaxPool and Add make of them, joined where they must scale alike."""
    parent = {name: name for name in products}

    def root(name: str) -> str:
        while parent[name] != name:
            name = parent[name]
        return name

    for node in network.nodes:
        inputs = [name for name in node.input if name in parent]
        if node.op_type in ("Relu", "MaxPool", "Add") and len(inputs) == len(node.input):
            output = node.output[0]
            parent[output] = root(inputs[0])
            for name in inputs[1:]:
                parent[root(name)] = root(inputs[0])
    found: dict[str, list[str]] = {}
    for name in parent:
        found.setdefault(root(name), []).append(name)
    return list(found.values())


def _is_closed(network: Network, tensors: list[str], makers: tuple[Layer, ...], readers: tuple[Layer, ...]) -> bool:
    """Whether nothing else makes or reads these tensors, so that the scale cannot leak."""
    inside = set(tensors)
    weights = [layer.weight for layer in (*makers, *readers)]
    if any(len(network.readers[name]) > 1 for name in weights) or inside.intersection(network.outputs):
        return False
    reading = {layer.name for layer in readers}
    for name in tensors:
        for node in network.readers.get(name, []):
            passes = node.op_type in ("Relu", "MaxPool", "Add") and node.output[0] in inside
            if not (passes or node.name in reading):
                return False
        if not network.readers.get(name):
            return False
    return True

"""One fault each, planted into a healthy ONNX model: what a converter, a careless edit or an old file would leave.

Every function takes a model and returns a changed copy that loads and runs. `LAYER` names the layer that a fault of one
layer sits in, as PyTorch names it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx
from onnx import helper

from edgetune.core.tensors import FEATURES_OUTPUT, LOGITS_OUTPUT, Array
from edgetune.graph.compose import METADATA_CLASSES
from edgetune.graph.network import Network, attribute

Plant = Callable[[onnx.ModelProto], onnx.ModelProto]

LAYER = "backbone.blocks.3.1.conv_pw"
DEPTHWISE = "backbone.blocks.3.1.conv_dw"


def unchanged(model: onnx.ModelProto) -> onnx.ModelProto:
    return model


def conv(network: Network, layer: str) -> onnx.NodeProto:
    """The convolution of a layer, float or in Q/DQ form."""
    weights = {f"{layer}.weight", f"{layer}.weight_dq"}
    (found,) = [node for node in network.nodes if node.op_type == "Conv" and node.input[1] in weights]
    return found


def insert_after(network: Network, made: onnx.NodeProto, position: int) -> None:
    """A node that reads one tensor takes the place of that tensor for all its readers, but for those before it."""
    old, new = made.input[0], made.output[0]
    for node in network.nodes[position:]:
        for index, name in enumerate(node.input):
            node.input[index] = new if name == old else name
    network.nodes.insert(position, made)
    network.index()


def rename_output(network: Network, old: str, new: str) -> None:
    """The node that makes an output of the graph makes it under another name, so that another can be put behind."""
    maker = network.makers[old]
    maker.output[list(maker.output).index(old)] = new


def _behind_logits(model: onnx.ModelProto, *nodes: onnx.NodeProto, **constants: Array) -> onnx.ModelProto:
    """Appends nodes that read `raw`, the logits that were, and make `logits`."""
    network = Network.of_model(model)
    rename_output(network, LOGITS_OUTPUT, "raw")
    network.nodes.extend(nodes)
    network.constants.update(constants)
    network.index()
    return network.model()


def _behind_features(model: onnx.ModelProto, *nodes: onnx.NodeProto, **constants: Array) -> onnx.ModelProto:
    """Inserts nodes between `features`, which they read, and the head, which reads the last one's output."""
    network = Network.of_model(model)
    head = network.sole_reader(FEATURES_OUTPUT)
    assert head is not None
    head.input[0] = nodes[-1].output[0]
    position = [node.name for node in network.nodes].index(head.name)
    network.nodes[position:position] = nodes
    network.constants.update(constants)
    network.index()
    return network.model()


def with_constants(model: onnx.ModelProto, change: Callable[[Network], Mapping[str, Array]]) -> onnx.ModelProto:
    network = Network.of_model(model)
    changed = change(network)
    assert changed.keys() <= network.constants.keys()
    network.constants.update(changed)
    return network.model()


# Preprocessing inside the graph


def bgr_input(model: onnx.ModelProto) -> onnx.ModelProto:
    network = Network.of_model(model)
    index, transpose = next((at, node) for at, node in enumerate(network.nodes) if node.op_type == "Transpose")
    network.constants["bgr"] = np.array([2, 1, 0], dtype=np.int64)
    gather = helper.make_node("Gather", [transpose.output[0], "bgr"], ["swapped"], name="swap", axis=1)
    insert_after(network, gather, index + 1)
    return network.model()


def transposed_input(model: onnx.ModelProto) -> onnx.ModelProto:
    """Height and width change places, which a square crop lets through."""
    network = Network.of_model(model)
    transpose = next(node for node in network.nodes if node.op_type == "Transpose")
    del transpose.attribute[:]
    transpose.attribute.append(helper.make_attribute("perm", [0, 3, 2, 1]))
    return network.model()


def mean_and_std_swapped(model: onnx.ModelProto) -> onnx.ModelProto:
    network = Network.of_model(model)
    subtract, divide = (next(n for n in network.nodes if n.op_type == kind) for kind in ("Sub", "Div"))
    assert subtract.input[1] != divide.input[1]
    subtract.input[1], divide.input[1] = divide.input[1], subtract.input[1]
    return network.model()


def normalised_twice(model: onnx.ModelProto) -> onnx.ModelProto:
    """A pipeline in front of the graph would do once more what the graph does."""
    network = Network.of_model(model)
    index, divide = next((at, node) for at, node in enumerate(network.nodes) if node.op_type == "Div")
    again = helper.make_node("Div", [divide.output[0], "half_range"], ["again"], name="again")
    network.constants["half_range"] = np.array(0.5, dtype=np.float32)
    insert_after(network, again, index + 1)
    return network.model()


def bgr_stem(model: onnx.ModelProto) -> onnx.ModelProto:
    """The first convolution's weights in the order of another framework's channels."""
    return with_constants(model, lambda network: {"backbone.conv_stem.weight": _reversed(network, 1)})


def _reversed(network: Network, axis: int) -> Array:
    return np.ascontiguousarray(np.flip(network.constants["backbone.conv_stem.weight"], axis))


# Layers


def negated_weight(model: onnx.ModelProto) -> onnx.ModelProto:
    name = f"{LAYER}.weight"
    return with_constants(model, lambda network: {name: -network.constants[name]})


def nan_weight(model: onnx.ModelProto) -> onnx.ModelProto:
    name = f"{LAYER}.weight"

    def change(network: Network) -> dict[str, Array]:
        values = network.constants[name].copy()
        values[0, 0, 0, 0] = np.nan
        return {name: values}

    return with_constants(model, change)


def shifted_padding(model: onnx.ModelProto) -> onnx.ModelProto:
    """All the padding on one side: the shapes stay, the picture moves by a pixel."""
    network = Network.of_model(model)
    node = conv(network, DEPTHWISE)
    top, left, bottom, right = attribute(node, "pads", None)
    _replace_attribute(node, "pads", [top + bottom, left + right, 0, 0])
    return network.model()


def _replace_attribute(node: onnx.NodeProto, name: str, value: Any) -> None:
    kept = [entry for entry in node.attribute if entry.name != name]
    del node.attribute[:]
    node.attribute.extend([*kept, helper.make_attribute(name, value)])


def clipped_activation(model: onnx.ModelProto) -> onnx.ModelProto:
    """One ReLU6 ends at 1."""
    network = Network.of_model(model)
    clip = network.sole_reader(conv(network, LAYER).output[0])
    assert clip is not None
    assert clip.op_type == "Clip"
    network.constants["one"] = np.array(1.0, dtype=np.float32)
    clip.input[2] = "one"
    return network.model()


def weights_of_half(model: onnx.ModelProto) -> onnx.ModelProto:
    """Every weight rounded to float16 and back: a float32 file that is none, in all layers alike."""

    def change(network: Network) -> dict[str, Array]:
        weights = {name: values for name, values in network.constants.items() if name.endswith(".weight")}
        return {name: values.astype(np.float16).astype(np.float32) for name, values in weights.items()}

    return with_constants(model, change)


# What changes from run to run, or with the other images of the batch


def noisy(model: onnx.ModelProto) -> onnx.ModelProto:
    """What dropout that was left on does: other features every time."""
    nodes = [
        helper.make_node("RandomNormalLike", [FEATURES_OUTPUT], ["noise"], name="noise", scale=0.5),
        helper.make_node("Add", [FEATURES_OUTPUT, "noise"], ["noisy"], name="noisy"),
    ]
    return _behind_features(model, *nodes)


def dropout(model: onnx.ModelProto) -> onnx.ModelProto:
    node = helper.make_node("Dropout", [FEATURES_OUTPUT, "ratio", "training"], ["dropped"], name="dropout")
    return _behind_features(model, node, ratio=np.array(0.2, np.float32), training=np.array(True))


def batch_mean_subtracted(model: onnx.ModelProto) -> onnx.ModelProto:
    nodes = [
        helper.make_node("ReduceMean", [FEATURES_OUTPUT, "batch_axis"], ["batch_mean"], name="batch_mean", keepdims=1),
        helper.make_node("Sub", [FEATURES_OUTPUT, "batch_mean"], ["centred"], name="centred"),
    ]
    return _behind_features(model, *nodes, batch_axis=np.array([0], np.int64))


def batch_norm_in_training(model: onnx.ModelProto) -> onnx.ModelProto:
    """A BatchNormalization of the features by the batch's own statistics; right statistics are in it, and unused."""
    width = int(Network.of_model(model).constants["head.weight"].shape[1])
    names = ["bn_scale", "bn_bias", "bn_mean", "bn_var"]
    node = helper.make_node(
        "BatchNormalization", [FEATURES_OUTPUT, *names], ["normal", "mean_out", "var_out"], name="bn", training_mode=1
    )
    values = [np.ones(width), np.zeros(width), np.zeros(width), np.ones(width)]
    return _behind_features(model, node, **{n: v.astype(np.float32) for n, v in zip(names, values, strict=True)})


# The head, and what comes behind it


def labels_in_metadata(model: onnx.ModelProto) -> onnx.ModelProto:
    changed = Network.of_model(model).model()
    (entry,) = [prop for prop in changed.metadata_props if prop.key == METADATA_CLASSES]
    entry.value = json.dumps(_turned(json.loads(entry.value)))
    return changed


def rows_of_head(model: onnx.ModelProto) -> onnx.ModelProto:
    names = ("head.weight", "head.bias")
    return with_constants(model, lambda network: {n: np.roll(network.constants[n], 1, axis=0) for n in names})


def _turned(names: list[str]) -> list[str]:
    return [names[-1], *names[:-1]]


def bias_lost(model: onnx.ModelProto) -> onnx.ModelProto:
    return with_constants(model, lambda network: {"head.bias": np.zeros_like(network.constants["head.bias"])})


def class_lost(model: onnx.ModelProto) -> onnx.ModelProto:
    """A head of one class fewer, as an earlier data set had it."""
    network = Network.of_model(model)
    for name in ("head.weight", "head.bias"):
        network.constants[name] = network.constants[name][:-1]
    changed = network.model()
    changed.graph.output[0].type.tensor_type.shape.dim[1].dim_value -= 1
    return changed


def softmax_inside(model: onnx.ModelProto) -> onnx.ModelProto:
    return _behind_logits(model, helper.make_node("Softmax", ["raw"], [LOGITS_OUTPUT], name="softmax", axis=1))


def with_head(weight: Array, bias: Array) -> Plant:
    """Another fit's head, of the same shape."""
    return lambda model: with_constants(model, lambda _: {"head.weight": weight, "head.bias": bias})

"""Modules read from node metadata as the exporter writes it."""

from __future__ import annotations

import onnx
import pytest
from onnx import TensorProto, helper

from edgetune.graph.network import Network
from edgetune.graph.provenance import ModuleTensor, module_of, module_tensors

_ROOT = ": edgetune.models.head.FeatureExtractor"


def _node(op_type: str, inputs: list[str], output: str, *modules: str) -> onnx.NodeProto:
    node = helper.make_node(op_type, inputs, [output], name=f"node_{output}")
    namespace = "/".join([_ROOT, *(f"{module}: some.Class" for module in modules), f"{output}: aten.op.default"])
    entry = node.metadata_props.add()
    entry.key, entry.value = "namespace", namespace
    return node


@pytest.mark.parametrize(("modules", "path"), [
    ((), ""),
    (("backbone",), "backbone"),
    (("backbone", "backbone.blocks", "backbone.blocks.0.bn1"), "backbone.blocks.0.bn1"),
])  # fmt: skip
def test_the_innermost_module(modules: tuple[str, ...], path: str) -> None:
    assert module_of(_node("Relu", ["x"], "y", *modules)) == path


def test_nodes_that_bear_no_module() -> None:
    assert module_of(helper.make_node("Gemm", ["x", "w"], ["y"], name="head")) == "head"
    assert module_of(helper.make_node("Cast", ["x"], ["y"], name="cast")) == ""


def test_tensors_of_modules() -> None:
    """image -> div (root) -> conv folded into b.bn1 -> b.bn1.act -> Add in b."""
    nodes = [
        _node("Div", ["image", "d"], "div"),
        _node("Conv", ["div", "w"], "bn", "b", "b.bn1"),
        _node("Relu", ["bn"], "act", "b", "b.bn1", "b.bn1.act"),
        _node("Add", ["act", "div"], "sum", "b"),
    ]
    image, result = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("image", "sum"))
    constants = [helper.make_tensor(name, TensorProto.FLOAT, [1], [1.0]) for name in ("d", "w")]
    network = Network.of_model(helper.make_model(helper.make_graph(nodes, "g", [image], [result], constants)))
    assert module_tensors(network, ["div", "bn", "act", "sum", "other"]) == (
        ModuleTensor("div", "b", is_input=True),  # not b.bn1's, whose input the convolution's output is
        ModuleTensor("bn", "b.bn1.act", is_input=True),
        ModuleTensor("act", "b.bn1", is_input=False),
        ModuleTensor("sum", "b", is_input=False),
    )


@pytest.mark.parametrize(
    ("name", "path"), [("head", "head"), ("head.hidden", "hidden.0"), ("head.relu", "hidden.1"), ("head.other", "")]
)
def test_nodes_of_the_head_are_modules_of_the_classifier(name: str, path: str) -> None:
    assert module_of(helper.make_node("Relu", ["x"], ["y"], name=name)) == path

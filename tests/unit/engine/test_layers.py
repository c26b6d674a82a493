"""Kernels out of the builder's log and out of TensorRT's inspector, and the proof from them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from edgetune.core.engine_record import EngineLayer
from edgetune.core.errors import EngineError
from edgetune.engine.layers import layers_from_dump, layers_from_inspector, prove

# Three lines as in a real list.
_TENSOR = (
    "{{ Name: t, Dimensions: [-1,3,8,8], Strides: [64,1,24,3], StrideOrder: [3,0,2,1], Datatype: {0}, "
    "Format: (NHWC) Channel major format }}"
)
_INT8, _FLOAT = _TENSOR.format("Int8"), _TENSOR.format("Float")
_SHAPE = (
    "Name: __mye1_0_myl0_0, LayerType: shape_call, Inputs: [], Constants: [], Outputs: [], TacticName: , "
    "StreamId: 0, Metadata: "
)
_CONV = (
    f"Name: node_Conv_869_myl0_3, LayerType: correlation, Inputs: [ {_INT8}], Constants: [ {_FLOAT}], "
    f"Outputs: [ {_FLOAT}], TacticName: __myelin_CASK_STUB, StreamId: 0, "
    "Metadata: [ONNX Layer: node_Conv_869]\x1f[ONNX Layer: div_DequantizeLinear]"
)
_ADD = (
    f"Name: __myl_Add, LayerType: kgen, Inputs: [ {_FLOAT}, {_INT8}], Constants: [], Outputs: [ {_INT8}, {_FLOAT}], "
    "TacticName: __myl_Add_0x8579, StreamId: 0, "
    "Metadata: [ONNX Layer: a[0]]\x1e[ONNX Layer: b, c]\x1f\x1e[ONNX Layer: d]"
)
_PRODUCT = (
    f"Name: __myl_FcAdd, LayerType: runtime_fusion, Inputs: [ {_FLOAT}], Constants: [], Outputs: [ {_FLOAT}], "
    "TacticName: t, StreamId: 0, Metadata: [ONNX Layer: node_Conv_863]__gemm_from_conv1x1"
)
_DUMP = f"Layers:\n{_SHAPE}\n{_CONV}\n{_ADD}\n{_PRODUCT}\na line of another kind\n"


def test_a_dump_gives_each_kernel_its_types_and_nodes() -> None:
    shape, conv, add, product = layers_from_dump(_DUMP)
    assert shape == EngineLayer("__mye1_0_myl0_0", "shape_call", (), (), ())
    assert conv == EngineLayer(
        "node_Conv_869_myl0_3", "correlation", ("Int8",), ("Float",), ("node_Conv_869", "div_DequantizeLinear")
    )
    assert add == EngineLayer("__myl_Add", "kgen", ("Float", "Int8"), ("Int8", "Float"), ("a[0]", "b, c", "d"))
    assert product.nodes == ("node_Conv_863",)
    assert prove([product], {"node_Conv_863": "fp32"}, {}).seen["fp32"] == 1


# The shape of TensorRT 10's own dump, which has no constants: it is asked through the inspector instead.
_OTHER_SHAPE = (
    "Layers:\nName: conv1, LayerType: CaskConvolution, Inputs: [ { Name: x, Format/Datatype: Half }], "
    "Outputs: [ { Name: y, Format/Datatype: Half }], TacticName: sm80, StreamId: 0, Metadata: [ONNX Layer: conv1]"
)


@pytest.mark.parametrize("dump", ["", "Layers:\n", _OTHER_SHAPE], ids=["none", "empty", "another shape"])
def test_a_dump_that_cannot_be_read_is_an_error_and_no_proof(dump: str) -> None:
    with pytest.raises(EngineError, match="so INT8 is not proved"):
        layers_from_dump(dump)


def _inspected(**tensor: str) -> dict[str, Any]:
    """A convolution with its activation, as TensorRT's inspector shows it at DETAILED verbosity."""
    entry = {"Name": "x", "Location": "Device", "Dimensions": [-1, 4, 8, 8], **tensor}
    return {
        "Name": "conv1 + relu1", "LayerType": "CaskConvolution", "Inputs": [entry], "Outputs": [entry],
        "ParameterType": "Convolution", "Weights": {"Type": "Int8", "Count": 144}, "HasReLU": 1,
        "TacticName": "sm80_xmma_fprop_implicit_gemm_i8i8_i8i32_f32", "StreamId": 0,
        "Metadata": "[ONNX Layer: conv1]\x1e[ONNX Layer: relu1]",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("tensor", "word"),
    [
        ({"Format/Datatype": "Thirty-two wide channel vectorized row major Int8 format"}, "int8"),
        ({"Format/Datatype": "Channel major FP16 format where channel % 8 == 0"}, "fp16"),
        ({"Format/Datatype": "Row major linear FP32"}, "fp32"),
        ({"Format": "Row major linear", "Datatype": "Half"}, "fp16"),
        ({"Format": "Channel major format where channel % 16 == 0", "Datatype": "Int8"}, "int8"),
        ({"Format": "Row major linear", "Datatype": "Float"}, "fp32"),
        ({"Format/Datatype": "N/A due to dynamic shapes"}, "int8"),
        ({}, "int8"),
    ],
    ids=["10 int8", "10 fp16", "10 fp32", "11 fp16", "11 int8", "11 fp32", "open batch: the weights'", "no type"],
)
def test_the_inspector_s_words_of_tensorrt_10_and_11(tensor: dict[str, str], word: str) -> None:
    (layer,) = layers_from_inspector(json.dumps({"Layers": [_inspected(**tensor)], "Bindings": ["x", "y"]}))
    assert (layer.name, layer.kind) == ("conv1 + relu1", "CaskConvolution")
    assert layer.nodes == ("conv1", "relu1")
    proof = prove([layer], {"conv1": "fp32"}, {})
    assert proof.seen == {"int8": 0, "fp16": 0, "fp32": 0, word: 1}


def test_without_metadata_a_kernel_s_name_tells_its_nodes() -> None:
    entry = {**_inspected(Datatype="Int8"), "Metadata": ""}
    text = json.dumps({"Layers": ["a name alone", entry], "I/O Tensors": []})
    (layer,) = layers_from_inspector(text)
    assert layer.nodes == ("conv1", "relu1")
    assert (layer.inputs, layer.outputs) == (("Int8",), ("Int8",))


def test_separators_may_be_bare_in_the_inspector_s_json() -> None:
    text = json.dumps({"Layers": [_inspected(Datatype="Int8")]}).replace("\\u001e", "\x1f")
    assert "\x1f" in text
    assert layers_from_inspector(text)[0].nodes == ("conv1", "relu1")


@pytest.mark.parametrize("text", ["", "Layers:", "[]", '{"Bindings": []}', "null"])
def test_what_is_not_the_inspector_s_json_is_an_error(text: str) -> None:
    with pytest.raises(EngineError, match="the engine's layer list cannot be read"):
        layers_from_inspector(text)


def _kernel(kind: str, *types: str, nodes: tuple[str, ...]) -> EngineLayer:
    return EngineLayer(nodes[0], kind, types, ("Float",), nodes)


_KERNELS = (
    _kernel("kgen", "Float", nodes=("a", "b", "c")),  # re-quantizes behind them, and is no convolution
    _kernel("correlation", "Int8", nodes=("a", "q_a")),
    _kernel("CaskConvolution", "Float", "Int8", nodes=("b",)),
    _kernel("correlation", "Half", nodes=("node_of_c",)),  # the node has no name; its output is c
    _kernel("CaskGemmConvolution", "Int8", nodes=("d",)),
    _kernel("kgen", "Float", nodes=("e",)),
    _kernel("runtime_fusion", "Int8", nodes=("e",)),
    _kernel("runtime_fusion", "Half", nodes=("d",)),  # a product behind it, with its Q/DQ
    _kernel("kgen", "Int8", nodes=("h",)),
    _kernel("correlation", nodes=("f",)),
    _kernel("correlation", "UFloat7", nodes=("g",)),
)


@pytest.mark.parametrize(
    ("node", "meant", "seen", "lost"),
    [
        ("a", "int8", "int8", None),
        ("b", "int8", "fp32", "runs in fp32: the reason"),
        ("c", "int8", "fp16", "runs in fp16: the backend found no INT8 kernel for it"),
        ("d", "int8", "int8", None),
        ("e", "int8", "int8", None),
        ("h", "int8", None, None),
        ("f", "int8", None, None),
        ("g", "int8", None, None),
        ("nowhere", "fp16", None, None),
        ("b", "fp32", "fp32", None),
        ("b", "fp16", "fp32", None),
        ("a", "fp32", "int8", None),
    ],
)
def test_each_outcome_of_one_convolution(node: str, meant: str, seen: str | None, lost: str | None) -> None:
    proof = prove(_KERNELS, {node: meant}, {"b": "the reason", "a": "never asked for"})
    assert proof.planned == {"int8": 0, "fp16": 0, "fp32": 0, meant: 1}
    assert sum(proof.seen.values()) == (0 if seen is None else 1)
    assert seen is None or proof.seen[seen] == 1
    assert proof.lost == ({} if lost is None else {node: lost})
    assert proof.unseen == (() if seen is not None else (node,))
    assert proof.unproved == (proof.unseen if meant == "int8" else ())
    assert proof.holds == (meant != "int8" or seen == "int8")


def test_a_proof_counts_every_convolution() -> None:
    proof = prove(_KERNELS, {"a": "int8", "b": "int8", "c": "fp16", "d": "int8", "h": "int8"}, {})
    assert proof.planned == {"int8": 4, "fp16": 1, "fp32": 0}
    assert proof.seen == {"int8": 2, "fp16": 1, "fp32": 1}
    assert list(proof.lost) == ["b"]
    assert proof.unseen == proof.unproved == ("h",)
    assert prove((), {}, {}).holds

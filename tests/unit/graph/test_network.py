"""Graphs walked through and cut: pieces that compute the same, constants, names, and the way back to a model."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgetune.core.tensors import IMAGE_INPUT, LOGITS_OUTPUT, Array
from edgetune.graph.network import Network, attribute
from edgetune.runners.ort_runner import OrtRunner
from tests.unit.quantize.small_graphs import images, residual, run

_FLOAT = int(TensorProto.FLOAT)


def _f32(values: list[float] | list[list[float]]) -> Array:
    return np.array(values, np.float32)


def _infer(model: onnx.ModelProto, **feed: Array) -> dict[str, Array]:
    with OrtRunner(model.SerializeToString()) as runner:
        return runner.infer(feed)


def _sum_model() -> onnx.ModelProto:
    """y = Relu(x + 3) * 2 with 3 in a Constant node, and a branch that nothing reads; no node has a name."""
    nodes = [
        helper.make_node("Constant", [], ["three"], value=numpy_helper.from_array(_f32([3.0]), "three")),
        helper.make_node("Add", ["x", "three"], ["sum"]),
        helper.make_node("Relu", ["sum"], ["positive"]),
        helper.make_node("Neg", ["sum"], ["unread"]),
        helper.make_node("Relu", ["unread"], ["unread_too"]),
        helper.make_node("Mul", ["positive", "two"], ["y"]),
    ]
    entries = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 2]) for name in ("x", "y")]
    two = numpy_helper.from_array(_f32([2.0]), "two")
    graph = helper.make_graph(nodes, "sum", entries[:1], entries[1:], [two])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10, producer_name="me")
    helper.set_model_props(model, {"key": "value"})
    return model


def test_constant_nodes_become_constants() -> None:
    network = Network.of_model(_sum_model())
    assert [node.op_type for node in network.nodes] == ["Add", "Relu", "Neg", "Relu", "Mul"]
    assert {name: array.tolist() for name, array in network.constants.items()} == {"three": [3.0], "two": [2.0]}


def test_a_model_made_again_computes_the_same_and_keeps_its_metadata() -> None:
    model = Network.of_model(_sum_model()).model()
    onnx.checker.check_model(model)
    x = _f32([[-4.0, -2.0], [0.0, 5.0]])
    np.testing.assert_array_equal(_infer(model, x=x)["y"], _f32([[0.0, 2.0], [6.0, 16.0]]))
    assert [(prop.key, prop.value) for prop in model.metadata_props] == [("key", "value")]
    assert model.producer_name == "me"
    pictures = images(3)
    whole = residual().model()
    np.testing.assert_array_equal(run(Network.of_model(whole).model(), pictures)[0], run(whole, pictures)[0])


def test_a_constant_that_was_replaced_is_the_one_written() -> None:
    source = _sum_model()
    network = Network.of_model(source)
    network.constants["two"] = _f32([10.0])
    np.testing.assert_array_equal(_infer(network.model(), x=_f32([[1.0, -9.0]]))["y"], _f32([[40.0, 0.0]]))
    np.testing.assert_array_equal(_infer(source, x=_f32([[1.0, -9.0]]))["y"], _f32([[8.0, 0.0]]))


def test_what_no_output_depends_on_is_removed() -> None:
    network = Network.of_model(_sum_model())
    network.remove_unread()
    assert [node.output[0] for node in network.nodes] == ["sum", "positive", "y"]
    assert network.sole_reader("sum") is network.makers["positive"]


def test_constants_that_nothing_reads_are_not_written() -> None:
    network = Network.of_model(_sum_model())
    network.constants["stray"] = np.zeros(4, np.float32)
    assert {entry.name for entry in network.model().graph.initializer} == {"two", "three"}


def test_every_node_gets_a_name_of_its_own() -> None:
    model = _sum_model()
    for node in model.graph.node:
        node.name = "same" if node.op_type == "Relu" else ""
    names = [node.name for node in Network.of_model(model).nodes]
    assert names == ["Add_sum", "same", "Neg_unread", "same_1", "Mul_y"]


def test_editing_the_network_leaves_the_model_alone() -> None:
    model = _sum_model()
    before = model.SerializeToString()
    network = Network.of_model(model)
    network.nodes[0].input[1] = "two"
    network.remove_unread()
    assert model.SerializeToString() == before


def test_a_piece_from_the_graphs_input_gives_inner_tensors() -> None:
    whole, pictures = residual().model(), images(3)
    piece = Network.of_model(whole).piece({"a1": _FLOAT, "sum": _FLOAT})
    outputs = _infer(piece, **{IMAGE_INPUT: pictures})
    for name, expected in zip(("a1", "sum"), run(whole, pictures, ["a1", "sum"]), strict=True):
        np.testing.assert_allclose(outputs[name], expected, rtol=1e-5, atol=1e-5)
    assert {node.output[0] for node in piece.graph.node}.isdisjoint({"c3", "features", LOGITS_OUTPUT})
    assert "c3.w" not in {entry.name for entry in piece.graph.initializer}


def test_a_piece_between_tensors_reads_those_alone() -> None:
    whole, pictures = residual().model(), images(3)
    inner, result = run(whole, pictures, ["sum", LOGITS_OUTPUT])
    piece = Network.of_model(whole).piece({LOGITS_OUTPUT: _FLOAT}, {"sum": (_FLOAT, 4)})
    assert [entry.name for entry in piece.graph.input] == ["sum"]
    assert [node.op_type for node in piece.graph.node] == ["Conv", "ReduceMean", "Gemm"]
    np.testing.assert_allclose(_infer(piece, sum=inner)[LOGITS_OUTPUT], result, rtol=1e-5, atol=1e-5)


def test_a_piece_reads_the_image_too_where_the_cuts_do_not_suffice() -> None:
    whole, pictures = residual().model(), images(3)
    branch, result = run(whole, pictures, ["c2", "sum"])
    piece = Network.of_model(whole).piece({"sum": _FLOAT}, {"c2": (_FLOAT, 4), "c3": (_FLOAT, 4)})
    assert {entry.name for entry in piece.graph.input} == {IMAGE_INPUT, "c2"}  # nothing needs c3
    outputs = _infer(piece, **{IMAGE_INPUT: pictures, "c2": branch})
    np.testing.assert_allclose(outputs["sum"], result, rtol=1e-5, atol=1e-5)


def test_shapes_are_inferred_with_none_for_open_sizes() -> None:
    shapes = residual().network().shapes()
    assert shapes[IMAGE_INPUT] == (None, 8, 8, 3)
    assert shapes["sum"] == (None, 8, 8, 8)
    assert shapes[LOGITS_OUTPUT] == (None, 4)


def test_a_tensor_with_two_readers_or_that_is_an_output_has_no_sole_reader() -> None:
    network = residual().network()
    assert network.sole_reader("a1") is None  # read by c2 and the Add
    assert network.sole_reader(LOGITS_OUTPUT) is None
    reader = network.sole_reader("c1")
    assert reader is not None
    assert reader.name == "a1"
    inner = Network.of_model(residual().model("c1"))
    assert inner.sole_reader("c1") is None


@pytest.mark.parametrize(("name", "expected"), [("pads", [1, 1, 1, 1]), ("strides", [9, 9])])
def test_attributes_have_a_default(name: str, expected: list[int]) -> None:
    assert attribute(residual().network().makers["c1"], name, [9, 9]) == expected

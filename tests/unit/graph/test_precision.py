"""The types that a graph asks for, and what keeps a convolution from INT8."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgetune.graph.precision import convolution_precisions, input_shapes, int8_obstacles, model_precision, node_name
from tests.unit.quantize.qdq_breaks import Break, each, float_weight, rewire, set_to
from tests.unit.quantize.qdq_graphs import find, good, put, put_constant, sort


def _graph(*spoils: Break) -> onnx.ModelProto:
    model = good("tensorrt")
    each(*spoils)(model)
    sort(model)
    return model


def _grouped(weights: tuple[int, ...], groups: int) -> Break:
    """`b` with these INT8 weights and groups; its 4 input channels are not checked here."""

    def spoil(model: onnx.ModelProto) -> None:
        model.graph.node.remove(find(model, "dq_w2"))
        put_constant(model, "w2", np.ones(weights, np.int8), 2**-7)
        find(model, "b").attribute.append(helper.make_attribute("group", groups))

    return spoil


def _without_name(model: onnx.ModelProto) -> None:
    find(model, "b").name = ""


def _same_names(model: onnx.ModelProto) -> None:
    find(model, "b").name = "conv1"


def _foreign(model: onnx.ModelProto) -> None:
    find(model, "b").domain = "my.own"


_HALF_WEIGHT = each(lambda model: put(model, "half", np.ones((4, 4, 3, 3), np.float16)), rewire("b", 1, "half"))


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (each(), {"conv1": "int8", "b": "int8"}),
        (float_weight("b", "w2"), {"conv1": "int8", "b": "fp32"}),
        (_HALF_WEIGHT, {"conv1": "int8", "b": "fp16"}),
        (rewire("b", 0, "c"), {"conv1": "int8", "b": "int8"}),
        (_without_name, {"conv1": "int8", "b": "int8"}),
        (_same_names, {"conv1 (conv1)": "int8", "conv1 (b)": "int8"}),
        (_foreign, {"conv1": "int8"}),
    ],
    ids=["good", "float weight", "half weight", "float input", "no name", "one name twice", "another domain"],
)
def test_each_convolution_has_the_type_of_its_weights(spoil: Break, expected: dict[str, str]) -> None:
    assert convolution_precisions(_graph(spoil)) == expected


def test_weights_that_a_node_makes_have_the_type_that_the_graph_states() -> None:
    model = good("tensorrt")
    rewire("b", 1, "made")(model)
    assert convolution_precisions(model)["b"] == "fp32"
    model.graph.value_info.append(helper.make_tensor_value_info("made", TensorProto.FLOAT16, [4, 4, 3, 3]))
    assert convolution_precisions(model)["b"] == "fp16"


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (each(), {}),
        (rewire("b", 0, "c"), {"b": "its input is not quantized"}),
        (rewire("conv1", 0, "x"), {"conv1": "its input is not quantized"}),
        (
            set_to("c_scale", np.ones(1, np.float32)),
            {"b": "the scale of its input has the shape (1,), expected a scalar"},
        ),
        (_grouped((4, 2, 3, 3), 2), {"b": "its groups have 2 channels, no multiple of 4"}),
        (_grouped((8, 6, 3, 3), 2), {"b": "its groups have 6 channels, no multiple of 4"}),
        (_grouped((8, 4, 3, 3), 2), {}),
        (_grouped((4, 1, 3, 3), 4), {}),
        (_grouped((4, 3, 3, 3), 1), {}),
        (each(rewire("b", 0, "c"), _same_names), {"conv1 (b)": "its input is not quantized"}),
        (each(rewire("b", 0, "c"), float_weight("b", "w2")), {}),
        (rewire("b", 1, "made"), {}),
    ],
    ids=[
        "good", "float input", "float image", "scale of shape (1,)", "2 channels", "6 channels", "4 channels",
        "depthwise", "one group", "one name twice", "meant to be float", "weights of a node without inputs",
    ],
)  # fmt: skip
def test_what_keeps_a_convolution_from_int8(spoil: Break, expected: dict[str, str]) -> None:
    model = good("tensorrt")
    model.graph.node.append(helper.make_node("Constant", [], ["made"], value_float=1.0))
    spoil(model)
    assert int8_obstacles(model) == expected


@pytest.mark.parametrize(
    ("sizes", "shape"),
    [
        (["batch", 8, 8, 3], (None, 8, 8, 3)),
        ([None, 3, "height", 8], (None, 3, None, 8)),
        ([-1, 3, 8, 8], (None, 3, 8, 8)),
        ([0, 3], (None, 3)),
        ([4, 3], (4, 3)),
        ([], ()),
    ],
)
def test_open_sizes_are_none(sizes: list[int | str | None], shape: tuple[int | None, ...]) -> None:
    model = good("tensorrt")
    model.graph.input[0].CopyFrom(helper.make_tensor_value_info("image", TensorProto.UINT8, sizes))
    model.graph.input.append(helper.make_tensor_value_info("w1", TensorProto.INT8, [4, 3, 1, 1]))  # as IR 3 lists them
    assert input_shapes(model) == [("image", shape)]


def test_a_node_without_a_name_has_its_first_output_s() -> None:
    assert node_name(helper.make_node("Conv", ["x", "w"], ["y"])) == "y"
    assert node_name(helper.make_node("Conv", ["x", "w"], ["y"], name="c")) == "c"


@pytest.mark.parametrize(("dtype", "expected"), [(np.float32, "fp32"), (np.float16, "fp16")])
def test_a_model_without_convolutions_has_the_precision_of_its_weights(dtype: type, expected: str) -> None:
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    product = helper.make_node("MatMul", ["x", "w"], ["y"])
    ends = [helper.make_tensor_value_info(name, kind, [1, 2]) for name in ("x", "y")]
    weights = numpy_helper.from_array(np.eye(2, dtype=dtype), "w")
    model = helper.make_model(helper.make_graph([product], "g", ends[:1], ends[1:], [weights]))
    assert model_precision(model) == expected

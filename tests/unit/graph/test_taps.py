from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgetune.core.tensors import IMAGE_INPUT, LOGITS_OUTPUT, Array
from edgetune.graph.taps import normalised_tensor, with_taps
from edgetune.runners.ort_runner import OrtRunner

IMAGES = np.random.default_rng(0).integers(0, 256, (3, 4, 4, 3), dtype=np.uint8)


def _model(*, between: tuple[str, ...] = (), features: str = "features") -> onnx.ModelProto:
    """image -> Cast -> Transpose -> Sub 100 -> Div 50 = x -> `between` -> Conv 1x1 of ones -> mean -> Gemm of ones."""
    nodes = [
        helper.make_node("Cast", [IMAGE_INPUT], ["cast"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["cast"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("Sub", ["planes", "mean"], ["shifted"]),
        helper.make_node("Div", ["shifted", "deviation"], ["x"]),
    ]
    name = "x"
    for op_type in between:
        inputs: list[str] = [name]
        options: dict[str, Any] = {"to": TensorProto.FLOAT} if op_type == "Cast" else {}
        inputs += {"Pad": ["pads"], "Cast": []}.get(op_type, ["scale", "zero"])
        nodes.append(helper.make_node(op_type, inputs, [f"{name}_{op_type}"], **options))
        name = f"{name}_{op_type}"
    nodes += [
        helper.make_node("Conv", [name, "weight"], ["conv"]),
        helper.make_node("ReduceMean", ["conv", "axes"], [features], keepdims=0),
        helper.make_node("Gemm", [features, "head"], [LOGITS_OUTPUT], transB=1),
    ]
    constants: dict[str, Array] = {
        "mean": np.float32(100),
        "deviation": np.float32(50),
        "pads": np.array([0, 0, 0, 0, 0, 0, 1, 1], np.int64),
        "scale": np.float32(0.02),
        "zero": np.int8(0),
        "axes": np.array([2, 3], np.int64),
        "weight": np.ones((2, 3, 1, 1), np.float32),
        "head": np.ones((4, 2), np.float32),
    }
    image = helper.make_tensor_value_info(IMAGE_INPUT, TensorProto.UINT8, ["batch", 4, 4, 3])
    logits = helper.make_tensor_value_info(LOGITS_OUTPUT, TensorProto.FLOAT, ["batch", 4])
    initializers = [numpy_helper.from_array(np.asarray(value), key) for key, value in constants.items()]
    graph = helper.make_graph(nodes, "taps", [image], [logits], initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def _run(model: onnx.ModelProto) -> dict[str, Array]:
    with OrtRunner(model.SerializeToString()) as runner:
        return runner.infer({IMAGE_INPUT: IMAGES})


def test_the_extra_outputs_are_the_tensors_inside() -> None:
    tapped, taps = with_taps(_model())
    assert taps == {"normalised": "x", "features": "features"}
    outputs = _run(tapped)
    expected = (IMAGES.astype(np.float64).transpose(0, 3, 1, 2) - 100) / 50
    np.testing.assert_allclose(outputs["x"], expected, rtol=1e-6, atol=1e-6)
    means = expected.sum(axis=1).mean(axis=(1, 2))
    np.testing.assert_allclose(outputs["features"], np.stack([means, means], axis=1), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(outputs[LOGITS_OUTPUT], _run(_model())[LOGITS_OUTPUT])


def test_the_model_itself_is_left_alone() -> None:
    model = _model()
    before = model.SerializeToString()
    with_taps(model)
    assert model.SerializeToString() == before


@pytest.mark.parametrize("between", [(), ("Pad",), ("Cast",), ("QuantizeLinear", "DequantizeLinear"),
                                     ("Cast", "QuantizeLinear", "DequantizeLinear", "Pad")], ids="-".join)  # fmt: skip
def test_padding_and_rounding_in_front_of_the_first_layer_are_passed(between: tuple[str, ...]) -> None:
    model = _model(between=between)
    assert normalised_tensor(model) == "x"
    expected = (IMAGES.astype(np.float64).transpose(0, 3, 1, 2) - 100) / 50
    np.testing.assert_allclose(_run(with_taps(model)[0])["x"], expected, rtol=1e-6, atol=1e-6)


def test_a_dequantization_of_the_pixels_themselves_is_what_normalises() -> None:
    """As INT8 for CPUs has it: (pixel - 128) * 0.02, no QuantizeLinear in front."""
    model = _model()
    nodes = [
        helper.make_node("Transpose", [IMAGE_INPUT], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("DequantizeLinear", ["planes", "scale", "middle"], ["x"]),
        *list(model.graph.node)[4:],
    ]
    model.graph.initializer.append(numpy_helper.from_array(np.asarray(np.uint8(128)), "middle"))
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    assert normalised_tensor(model) == "x"
    expected = (IMAGES.astype(np.float64).transpose(0, 3, 1, 2) - 128) * 0.02
    np.testing.assert_allclose(_run(with_taps(model)[0])["x"], expected, rtol=1e-6, atol=1e-6)


def test_a_graph_without_such_tensors_gives_none() -> None:
    tapped, taps = with_taps(_model(features="pooled"))
    assert taps == {"normalised": "x"}
    assert [output.name for output in tapped.graph.output] == [LOGITS_OUTPUT, "x"]
    bare = _model()
    del bare.graph.node[4:]
    assert normalised_tensor(bare) == ""


def test_a_tensor_that_is_an_output_already_stays_one() -> None:
    model = _model()
    model.graph.output.append(helper.make_tensor_value_info("features", TensorProto.FLOAT, None))
    tapped, taps = with_taps(model)
    assert taps["features"] == "features"
    assert [output.name for output in tapped.graph.output] == [LOGITS_OUTPUT, "features", "x"]

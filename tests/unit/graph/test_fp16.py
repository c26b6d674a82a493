"""The cast to float16: types, wiring and numbers, on small graphs made by hand."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgetune.core.errors import ModelError
from edgetune.core.preprocess import PreprocessSpec
from edgetune.core.tensors import IMAGE_INPUT, LOGITS_OUTPUT, Array
from edgetune.graph.compose import set_metadata
from edgetune.graph.float_view import element_types, largest_values
from edgetune.graph.fp16 import Fp16Model, cast_to_fp16
from edgetune.graph.fp16_emulation import emulate_fp16
from edgetune.runners.ort_runner import OrtRunner
from tests.unit.quantize.qdq_graphs import good
from tests.unit.quantize.small_graphs import SmallGraph, chain, everything, images, in_batches, residual, sqnr_db

FLOAT, HALF = int(TensorProto.FLOAT), int(TensorProto.FLOAT16)
SPEC = PreprocessSpec(8, 8, "bilinear", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def cast(model: onnx.ModelProto, size: int = 8) -> Fp16Model:
    return cast_to_fp16(model, largest_values(model, in_batches(images(8, size), 4)))


def run(model: onnx.ModelProto, feed: Array) -> Array:
    with OrtRunner(model.SerializeToString()) as runner:
        return runner.infer({IMAGE_INPUT: feed})[LOGITS_OUTPUT]


def constants(model: onnx.ModelProto) -> dict[str, Array]:
    return {entry.name: numpy_helper.to_array(entry) for entry in model.graph.initializer}


def nodes(model: onnx.ModelProto) -> dict[str, onnx.NodeProto]:
    return {node.name: node for node in model.graph.node}


def types_read(model: onnx.ModelProto, node: str) -> list[int]:
    types: Mapping[str, int] = {
        **{entry.name: entry.data_type for entry in model.graph.initializer},
        **element_types(model),
    }
    return [types[name] for name in nodes(model)[node].input]


def casts(model: onnx.ModelProto) -> Counter[tuple[str, int]]:
    """How often each tensor is cast to each type."""
    return Counter((node.input[0], node.attribute[0].i) for node in model.graph.node if node.op_type == "Cast")


def as_half(values: Array) -> Array:
    return values.astype(np.float16).astype(np.float32)


def test_all_from_the_first_convolution_on_is_half_between_two_casts() -> None:
    source = everything().model()
    found = cast(source, 16)
    assert found.kept_float == {}
    assert casts(found.model) == {(IMAGE_INPUT, FLOAT): 1, ("x", HALF): 1, (f"{LOGITS_OUTPUT}_fp16", FLOAT): 1}
    types = element_types(found.model)
    for node in found.model.graph.node:
        if node.name in found.half:
            assert {types[name] for name in node.output} == {HALF}, node.name
    before = {"cast", "transposed", "shifted", "x"}
    assert {node.name for node in source.graph.node} == set(found.half) | before
    assert {types[name] for name in before} == {FLOAT}
    assert [types[entry.name] for entry in (*found.model.graph.input, *found.model.graph.output)] == [
        TensorProto.UINT8,
        FLOAT,
    ]


def test_the_file_is_valid_and_keeps_its_labels() -> None:
    source = everything().model()
    set_metadata(source, ("a", "b", "c", "d", "e", "f"), SPEC)
    source = onnx.shape_inference.infer_shapes(source)  # with types that the cast makes wrong
    model = cast(source, 16).model
    onnx.checker.check_model(model, full_check=True)  # types, shapes and topological order
    assert (model.opset_import[0].version, model.ir_version) == (20, 10)
    assert model.metadata_props == source.metadata_props
    assert model.graph.input == source.graph.input
    assert model.graph.output == source.graph.output
    assert len(model.SerializeToString()) < 0.75 * len(source.SerializeToString())


def test_the_source_stays_what_it_was() -> None:
    source = residual().model()
    before = source.SerializeToString()
    cast(source)
    assert source.SerializeToString() == before


def test_a_worked_example_rounds_where_float16_does() -> None:
    """8 * 255 + 9 = 2049, which float16 rounds to the even 2048; less 2048 that is 0, and 1 in float32."""
    graph = SmallGraph()
    graph.image((0, 0, 0), (1, 1, 1))
    graph.constant("w", np.reshape([8.0, 1.0, 0.0], (1, 3, 1, 1)))
    graph.node("Conv", ["x", "w"], "sum")
    graph.constant("less", -2048.0)
    graph.node("Add", ["sum", "less"], LOGITS_OUTPUT)
    picture = np.full((1, 8, 8, 3), (255, 9, 77), np.uint8)
    assert (run(graph.model(), picture) == 1.0).all()
    assert (run(emulate_fp16(cast(graph.model()).model), picture) == 0.0).all()


def test_numbers_are_those_of_numpy_in_float16() -> None:
    graph = residual()
    pictures = images(6)
    got = run(emulate_fp16(cast(graph.model()).model), pictures)
    expected = _residual_in_half(graph.constants, pictures)
    # Sums in another order may end on the other side of a rounding: two steps of float16 at 1, once averaged.
    np.testing.assert_allclose(got, expected, rtol=0, atol=2 * 2.0**-10)
    exact = run(graph.model(), pictures)
    assert 45 < sqnr_db(exact, got) < 80
    assert sqnr_db(exact, got) == pytest.approx(sqnr_db(exact, expected), abs=3)


def _residual_in_half(constants: Mapping[str, Array], pictures: Array) -> Array:
    """`residual` by hand: float16 tensors and weights, sums in float64."""
    normal = (pictures.transpose(0, 3, 1, 2).astype(np.float32) - constants["mean"]) / constants["deviation"]
    first = _conv_in_half(as_half(normal), constants, "c1")
    clipped = np.clip(first, 0, 6)
    second = _conv_in_half(clipped, constants, "c2")
    third = _conv_in_half(as_half(second + clipped), constants, "c3")
    features = as_half(third.astype(np.float64).mean((2, 3)))
    name = LOGITS_OUTPUT
    return as_half(features.astype(np.float64) @ as_half(constants[f"{name}.w"]).T + as_half(constants[f"{name}.b"]))


def _conv_in_half(data: Array, constants: Mapping[str, Array], name: str) -> Array:
    weight, bias = as_half(constants[f"{name}.w"]).astype(np.float64), as_half(constants[f"{name}.b"])
    edge = weight.shape[2] // 2
    padded = np.pad(data, ((0, 0), (0, 0), (edge, edge), (edge, edge)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, weight.shape[2:], axis=(2, 3))
    return as_half(np.einsum("nchwij,ocij->nohw", windows, weight) + bias.reshape(-1, 1, 1))


def test_onnx_runtime_alone_would_not_round() -> None:
    """Why parity needs the emulation: on the file itself a tensor of 70000 is not infinite, nor rounded."""
    graph = SmallGraph()
    graph.image((0, 0, 0), (1, 1, 1))
    graph.constant("w", np.reshape([300.0, 0.0, 0.0], (1, 3, 1, 1)))
    graph.node("Conv", ["x", "w"], "sum")
    graph.node("Relu", ["sum"], LOGITS_OUTPUT)
    model = cast_to_fp16(graph.model(), {"x": 1.0, "sum": 1.0, LOGITS_OUTPUT: 1.0}).model
    picture = np.full((1, 8, 8, 3), 250, np.uint8)
    assert (run(emulate_fp16(model), picture) == np.inf).all()
    assert (run(model, picture) == 75000).all()


def test_the_emulation_keeps_what_is_not_half() -> None:
    source = residual().model()
    assert (run(emulate_fp16(source), images(2)) == run(source, images(2))).all()


def test_a_weight_beyond_float16_keeps_its_layer_float_and_no_other() -> None:
    graph = residual()
    graph.constants["c2.w"][0, 0, 0, 0] = 1e5
    graph.constants["a1.scale"] = np.float32(1e-5)
    graph.nodes.insert(6, helper.make_node("Mul", ["a1", "a1.scale"], ["small"], name="small"))
    graph.nodes[7].input[0] = "small"
    found = cast(graph.model())
    assert found.kept_float.keys() == {"small", "c2"}  # 1e-5 has a tenth of float16's digits
    assert found.kept_float["c2"] == "the constant 'c2.w' reaches 100000, and float16 ends at 65504"
    assert types_read(found.model, "c2") == [FLOAT, FLOAT, FLOAT]
    assert types_read(found.model, "c3") == [HALF, HALF, HALF]
    assert casts(found.model)["a1", FLOAT] == casts(found.model)["c2", HALF] == 1
    pictures = images(4)
    assert sqnr_db(run(graph.model(), pictures), run(emulate_fp16(found.model), pictures)) > 45


def test_a_tensor_beyond_float16_keeps_maker_and_readers_float() -> None:
    graph = chain()
    graph.constants["c1.w"] *= 1e5
    graph.constants["c2.w"] /= 1e5
    found = cast(graph.model())
    assert found.kept_float.keys() == {"c1", "r1", "c2"}
    assert "'c1' reaches" in found.kept_float["r1"] or "'r1' reaches" in found.kept_float["r1"]
    assert set(found.half) == {"r2", "features", LOGITS_OUTPUT}
    assert casts(found.model) == {(IMAGE_INPUT, FLOAT): 1, ("c2", HALF): 1, (f"{LOGITS_OUTPUT}_fp16", FLOAT): 1}
    pictures = images(4)
    assert sqnr_db(run(graph.model(), pictures), run(emulate_fp16(found.model), pictures)) > 45


def test_a_shared_constant_is_there_in_both_types() -> None:
    graph = chain()
    graph.constants["c1.b"][0] = 1e5  # c1 makes 1e5, and r1 hands it to c2
    graph.nodes[-2].input[0] = "again"
    graph.constant("limit", 1.0)
    graph.nodes.insert(-2, helper.make_node("Min", ["r2", "limit"], ["least"], name="least"))
    graph.nodes.insert(-2, helper.make_node("Conv", ["least", "c2.w", "c2.b"], ["again"], name="again", pads=[1] * 4))
    found = cast(graph.model())
    assert found.kept_float.keys() == {"c1", "r1", "c2", "r2", "least"}
    assert list(nodes(found.model)["c2"].input) == ["r1", "c2.w", "c2.b"]
    assert list(nodes(found.model)["again"].input) == ["least_fp16", "c2.w_fp16", "c2.b_fp16"]
    values = constants(found.model)
    assert [str(values[name].dtype) for name in ("c2.w", "c2.w_fp16")] == ["float32", "float16"]
    assert (values["c2.w_fp16"] == values["c2.w"].astype(np.float16)).all()
    assert values["limit"].dtype == np.float32


def test_a_new_name_steps_aside_for_one_that_is_there() -> None:
    graph = chain()
    for node in graph.nodes:
        for names in (node.input, node.output):
            for index, name in enumerate(names):
                names[index] = "x_fp16" if name == "r1" else name
    found = cast(graph.model())
    assert nodes(found.model)["c1"].input[0] == "x_fp16_"
    assert nodes(found.model)["c2"].input[0] == "x_fp16"


def test_limits_of_a_clip_are_half_and_absent_ones_stay_absent() -> None:
    graph = chain()
    graph.constant("six", 6.0)
    graph.nodes[5].CopyFrom(helper.make_node("Clip", ["c1", "", "six"], ["r1"], name="r1"))
    found = cast(graph.model())
    assert list(nodes(found.model)["r1"].input) == ["c1", "", "six"]
    assert constants(found.model)["six"].dtype == np.float16


def test_readers_share_a_cast() -> None:
    graph = SmallGraph()
    graph.image()
    for name in ("a", "b"):
        graph.conv(name, "x", (3, 4))
    graph.node("Softmax", ["a"], "s")
    graph.node("Softmax", ["a"], "t")
    graph.node("Add", ["s", "t"], "sum")
    graph.node("Add", ["sum", "b"], LOGITS_OUTPUT)
    found = cast(graph.model())
    assert found.kept_float.keys() == {"s", "t"}
    assert found.kept_float["s"] == "Softmax is not among the operators that are computed in float16"
    assert casts(found.model) == {
        (IMAGE_INPUT, FLOAT): 1, ("x", HALF): 1, ("a", FLOAT): 1, ("s", HALF): 1, ("t", HALF): 1,
        (f"{LOGITS_OUTPUT}_fp16", FLOAT): 1,
    }  # fmt: skip


def test_a_cast_is_not_cast_again() -> None:
    graph = SmallGraph()
    graph.node("Cast", [IMAGE_INPUT], "cast", to=FLOAT)
    graph.conv("c", "cast", (8, 4))
    graph.node("Cast", ["c"], "same", to=FLOAT)
    graph.node("Relu", ["same"], LOGITS_OUTPUT)
    found = cast(graph.model())
    assert casts(found.model) == {(IMAGE_INPUT, HALF): 1, (f"{LOGITS_OUTPUT}_fp16", FLOAT): 1}
    assert nodes(found.model)[LOGITS_OUTPUT].input[0] == "c"


def test_shapes_are_read_as_they_are() -> None:
    graph = chain()
    graph.nodes[-1].input[0] = "flat"
    graph.node("Shape", ["features"], "shape")
    graph.node("Reshape", ["features", "shape"], "flat")
    graph.nodes.append(graph.nodes.pop(-3))
    found = cast(graph.model())
    assert list(nodes(found.model)["shape"].input) == ["features"]
    assert types_read(found.model, "flat") == [HALF, TensorProto.INT64]
    assert found.kept_float == {}


def test_the_scales_of_a_resize_stay_float() -> None:
    graph = chain()
    graph.constant("scales", [1, 1, 2, 2])
    graph.nodes.insert(6, helper.make_node("Resize", ["r1", "", "scales"], ["large"], name="large"))
    graph.nodes[7].input[0] = "large"
    found = cast(graph.model())
    assert found.kept_float == {}
    assert constants(found.model)["scales"].dtype == np.float32


def test_an_output_that_is_read_on_is_cast_once() -> None:
    graph = chain()
    graph.node("Relu", [LOGITS_OUTPUT], "more")
    model = graph.model()
    model.graph.output.append(helper.make_tensor_value_info("more", FLOAT, ["batch", 4]))
    found = cast(model)
    assert nodes(found.model)["more"].input[0] == f"{LOGITS_OUTPUT}_fp16"
    assert casts(found.model)[f"{LOGITS_OUTPUT}_fp16", FLOAT] == 1
    assert [entry.name for entry in found.model.graph.output] == [LOGITS_OUTPUT, "more"]


def test_a_quantized_model_is_refused() -> None:
    with pytest.raises(ModelError, match="precision is already in the file"):
        cast_to_fp16(good("tensorrt"), {})


def test_a_half_model_is_refused() -> None:
    model = cast(chain().model()).model
    with pytest.raises(ModelError, match="precision is already in the file"):
        cast_to_fp16(model, {})


def test_another_opset_is_refused() -> None:
    graph = SmallGraph()
    graph.conv(LOGITS_OUTPUT, graph.image(), (3, 4))
    with pytest.raises(ModelError, match=r"opset \[17\], expected 20"):
        cast_to_fp16(graph.model(opset=17), {})


def test_a_graph_inside_a_node_is_refused() -> None:
    graph = SmallGraph()
    graph.conv("c", graph.image(), (3, 4))
    result = helper.make_tensor_value_info("inner", FLOAT, None)
    inner = helper.make_graph([helper.make_node("Identity", ["c"], ["inner"])], "inner", [], [result])
    graph.constant("yes", True, np.bool_)
    graph.node("If", ["yes"], LOGITS_OUTPUT, then_branch=inner, else_branch=inner)
    with pytest.raises(ModelError, match="If node 'logits' has graphs inside"):
        cast_to_fp16(graph.model(), {})

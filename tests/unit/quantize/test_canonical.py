"""The form the quantizer works on computes what the model computed, as ONNX Runtime sees both."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from edgetune.core.errors import ModelError
from edgetune.core.tensors import IMAGE_INPUT, LOGITS_OUTPUT
from edgetune.graph.network import Network
from edgetune.quantize.canonical import canonical_network
from edgetune.quantize.placement import find_layers
from edgetune.quantize.targets import TARGETS
from tests.unit.quantize.qdq_graphs import good
from tests.unit.quantize.small_graphs import SmallGraph, chain, everything, images, residual, run

PICTURES = images(4)


def _same(before: onnx.ModelProto, after: Network, size: int = 8) -> None:
    pictures = images(4, size)
    expected, got = run(before, pictures, optimize=False)[0], run(after.model(), pictures, optimize=False)[0]
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


def test_batch_norms_are_folded_and_the_outputs_stay() -> None:
    model = everything().model()
    network, _ = canonical_network(model)
    assert all(node.op_type != "BatchNormalization" for node in network.nodes)
    _same(model, network, 16)


def test_folded_weights_are_those_worked_by_hand() -> None:
    """gamma 3, shift 1, mean 2, variance 4 - epsilon: y = (x - 2) / 2 * 3 + 1 = 1.5 x - 2."""
    graph = SmallGraph()
    graph.conv("c", graph.image(), (3, 2))
    graph.constants["c.b"] = np.array([4.0, 0.0], np.float32)
    graph.batch_norm("n", "c", 2)
    for name, value in {"scale": 3.0, "shift": 1.0, "mean": 2.0, "variance": 4.0 - 1e-3}.items():
        graph.constants[f"n.{name}"] = np.full(2, value, np.float32)
    network, _ = canonical_network(graph.model("n"))
    (layer,) = find_layers(network)
    np.testing.assert_allclose(network.constants[layer.weight], 1.5 * graph.constants["c.w"], rtol=1e-6, atol=0)
    np.testing.assert_allclose(network.constants[layer.bias], [4.0, -2.0], rtol=1e-6, atol=1e-6)


def test_a_batch_norm_stays_where_the_convolution_is_read_elsewhere() -> None:
    graph = SmallGraph()
    graph.conv("c", graph.image(), (3, 4))
    graph.node("Add", [graph.batch_norm("n", "c", 4), "c"], "sum")
    graph.mean(LOGITS_OUTPUT, "sum")
    network, _ = canonical_network(graph.model())
    assert any(node.op_type == "BatchNormalization" for node in network.nodes)
    _same(graph.model(), network)


def test_a_batch_norm_behind_a_three_dimensional_convolution_is_folded_right() -> None:
    graph = SmallGraph()
    axes = graph.constant("depth", [2], np.int64)
    graph.node("Unsqueeze", [graph.image(), axes], "deep")
    graph.constant("c.w", graph.random.normal(size=(4, 3, 1, 3, 3)))
    graph.node("Conv", ["deep", "c.w"], "c", pads=[0, 1, 1, 0, 1, 1])
    graph.batch_norm("n", "c", 4)
    graph.node("ReduceMean", ["n", graph.constant("all", [2, 3, 4], np.int64)], LOGITS_OUTPUT, keepdims=0)
    network, _ = canonical_network(graph.model())
    _same(graph.model(), network)


def test_a_missing_bias_becomes_zeros() -> None:
    graph = SmallGraph()
    graph.conv("c", graph.image(), (3, 5), bias=False)
    graph.mean("features", "c")
    graph.constant("g.w", graph.random.normal(size=(5, 7)))
    graph.node("Gemm", ["features", "g.w"], LOGITS_OUTPUT)
    network, _ = canonical_network(graph.model())
    biases = {layer.name: network.constants[layer.bias] for layer in find_layers(network)}
    assert {name: bias.shape for name, bias in biases.items()} == {"c": (5,), LOGITS_OUTPUT: (7,)}
    assert all(not bias.any() for bias in biases.values())
    _same(graph.model(), network)


@pytest.mark.parametrize("shape", [(), (1,), (6,), (1, 6)])
def test_a_gemms_bias_of_any_shape_gets_one_value_per_output(shape: tuple[int, ...]) -> None:
    graph = SmallGraph()
    graph.conv("c", graph.image(), (3, 5))
    graph.gemm(LOGITS_OUTPUT, graph.mean("features", "c"), (5, 6))
    graph.constants[f"{LOGITS_OUTPUT}.b"] = np.float32(graph.random.normal(size=shape))
    network, _ = canonical_network(graph.model())
    assert network.constants[find_layers(network)[-1].bias].shape == (6,)
    _same(graph.model(), network)


def test_shared_weights_are_made_separate() -> None:
    graph = SmallGraph()
    graph.conv("c1", graph.image(), (3, 3), 3)
    graph.node("Conv", ["c1", "c1.w", "c1.b"], "c2", pads=[1, 1, 1, 1])
    graph.mean(LOGITS_OUTPUT, "c2")
    network, _ = canonical_network(graph.model())
    first, second = find_layers(network)
    assert len({first.weight, second.weight, first.bias, second.bias}) == 4
    np.testing.assert_array_equal(network.constants[first.weight], network.constants[second.weight])
    _same(graph.model(), network)


def test_a_bias_that_another_node_reads_too_is_made_separate() -> None:
    """Centring the pixels changes the first bias: the other reader must not see that."""
    graph = SmallGraph()
    graph.conv("c1", graph.image([127.5], [127.5]), (3, 4))
    graph.node("Add", [graph.mean("features", "c1"), "c1.b"], LOGITS_OUTPUT)
    network, pixels = canonical_network(graph.model())
    assert pixels is not None
    _same(graph.model(), network)


def test_a_bias_that_the_graph_computes_leaves_the_convolution_alone() -> None:
    graph = SmallGraph()
    graph.conv("c1", graph.image(), (3, 4))
    graph.node("Neg", [graph.constant("made", [0.1, 0.2, 0.3, 0.4])], "negative")
    graph.constant("c2.w", graph.random.normal(size=(4, 4, 1, 1)))
    graph.node("Conv", ["c1", "c2.w", "negative"], "c2")
    graph.mean(LOGITS_OUTPUT, graph.batch_norm("norm", "c2", 4))
    network, _ = canonical_network(graph.model())
    assert [layer.name for layer in find_layers(network)] == ["c1"]
    _same(graph.model(), network)


def test_an_older_opset_is_converted() -> None:
    graph = SmallGraph()
    graph.conv("c1", graph.image(), (3, 8), 3)
    graph.relu6("a1", "c1")
    graph.node("ReduceMean", ["a1"], "features", axes=[2, 3], keepdims=0)  # axes are an attribute before opset 18
    graph.gemm(LOGITS_OUTPUT, "features", (8, 4))
    model = graph.model(opset=13)
    network, _ = canonical_network(model)
    assert [entry.version for entry in network.model().opset_import] == [20]
    _same(model, network)


def test_an_unknown_opset_is_an_error() -> None:
    model = chain().model()
    model.opset_import[0].version = 99
    with pytest.raises(ModelError, match=r"opset \[99\], which cannot be converted to 20"):
        canonical_network(model)


@pytest.mark.parametrize("tensor", ["c2.w", "c1.b"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_no_numbers_are_named(tensor: str, value: float) -> None:
    graph = chain()
    graph.constants[tensor].flat[1] = value
    with pytest.raises(ModelError, match=f"the weights '{tensor}' of {tensor[:2]} hold NaN or infinity"):
        canonical_network(graph.model())


def test_a_quantized_model_is_an_error() -> None:
    graph = SmallGraph()
    graph.constant("s", 0.1)
    graph.constant("z", 0, np.uint8)
    graph.node("QuantizeLinear", [graph.image(), "s", "z"], "q")
    graph.conv("c", graph.node("DequantizeLinear", ["q", "s", "z"], "dq"), (3, 4))
    with pytest.raises(ModelError, match="quantized already") as caught:
        canonical_network(graph.model("c"))
    assert "float32 model" in caught.value.hint
    with pytest.raises(ModelError, match="quantized already"):  # not one float weight
        canonical_network(good("cpu-x86"))


def test_two_inputs_are_an_error() -> None:
    model = chain().model()
    model.graph.input.append(helper.make_tensor_value_info("mask", TensorProto.FLOAT, [1]))
    with pytest.raises(ModelError, match=rf"inputs \['{IMAGE_INPUT}', 'mask'\], expected one"):
        canonical_network(model)


def test_a_model_without_layers_is_an_error() -> None:
    graph = SmallGraph()
    graph.mean(LOGITS_OUTPUT, graph.image())
    with pytest.raises(ModelError, match="no convolution or matrix product"):
        canonical_network(graph.model())


def test_the_model_itself_is_left_alone() -> None:
    model = everything().model()
    before = model.SerializeToString()
    canonical_network(model)
    assert model.SerializeToString() == before


def _centred() -> SmallGraph:
    graph = SmallGraph()
    graph.conv("c1", graph.image([127.5], [127.5]), (3, 6), 3)
    return graph


def test_centred_pixels_change_the_border_alone_by_at_most_half_a_grey_level() -> None:
    graph = _centred()
    model = graph.model("c1")
    network, pixels = canonical_network(model)
    assert pixels is not None
    before, after = run(model, PICTURES)[0], run(network.model(), PICTURES)[0]
    np.testing.assert_allclose(after[:, :, 1:-1, 1:-1], before[:, :, 1:-1, 1:-1], rtol=1e-5, atol=2e-6)
    reach = 0.5 / 127.5 * np.abs(graph.constants["c1.w"]).sum(axis=(1, 2, 3))[None, :, None, None]
    difference = np.abs(after - before)
    assert (difference <= reach + 1e-5).all()
    assert difference[:, :, 0].max() > 1e-4


def test_centred_pixels_are_whole_numbers_of_steps() -> None:
    network, pixels = canonical_network(_centred().model("c1"))
    assert pixels is not None
    assert pixels.tensor == "x"
    for target, zero_point in (("cpu-x86", 128), ("cpu-arm", 0), ("tensorrt", 0)):
        params = pixels.params(TARGETS[target])
        assert params.zero_point == zero_point
        (x,) = run(network.model(), PICTURES, ["x"])
        steps = x / params.scale
        np.testing.assert_allclose(steps, PICTURES.transpose(0, 3, 1, 2).astype(np.float64) - 128, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("mean", "deviation"), [([100, 110, 120], [127.5]), ([127.5], [50, 60, 70]), ([100.0], [50.0]), ([130.0], [60.0])]
)
def test_pixels_of_another_normalisation_are_left_alone(mean: list[float], deviation: list[float]) -> None:
    graph = SmallGraph()
    graph.conv("c1", graph.image(mean, deviation), (3, 6), 3)
    network, pixels = canonical_network(graph.model("c1"))
    assert pixels is None
    _same(graph.model("c1"), network)


def test_pixels_that_more_than_convolutions_read_are_left_alone() -> None:
    graph = _centred()
    graph.conv("c2", "c1", (6, 3))
    graph.mean(LOGITS_OUTPUT, graph.node("Add", ["c2", "x"], "sum"))
    network, pixels = canonical_network(graph.model())
    assert pixels is None
    _same(graph.model(), network)


def test_the_residual_graph_stays_as_it_is() -> None:
    model = residual().model()
    network, _ = canonical_network(model)
    assert [node.name for node in network.nodes] == [node.name for node in model.graph.node]

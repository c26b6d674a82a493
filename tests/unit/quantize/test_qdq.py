"""The Q/DQ form: integers equal to sums worked out in NumPy, integer kernels that really run, layers left in float."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
from onnx.reference import ReferenceEvaluator

from edgetune.core.tensors import IMAGE_INPUT, LOGITS_OUTPUT, Array
from edgetune.quantize.lint import lint
from edgetune.quantize.placement import place
from edgetune.quantize.qdq import LayerWeights, QdqNetwork, QuantParams, represented_range
from edgetune.quantize.targets import TARGETS
from tests.unit.quantize.small_graphs import SmallGraph, chain, images, run

Integers = npt.NDArray[np.int64]

PICTURES = images(6)
_MEAN = 64  # x = (pixel - 64) / 64
# Powers of two: every product and sum is exact in float32, and ties are ties.
_X_SCALE, _WEIGHT_SCALES, _R1_SCALE, _C2_SCALE = 2.0**-6, 2.0 ** -np.arange(7.0, 11.0), 2.0**-4, 2.0**-3


def _float_graph(seed: int = 0) -> SmallGraph:
    """x -> Conv c1 (3 x 3, stride 2) -> Relu r1 -> Conv c2 (1 x 1) -> mean -> Gemm; 4 channels."""
    graph = SmallGraph(seed=seed)
    graph.conv("c1", graph.image([_MEAN], [64]), (3, 4), 3, strides=[2, 2])
    graph.node("Relu", ["c1"], "r1")
    graph.conv("c2", "r1", (4, 4))
    graph.gemm(LOGITS_OUTPUT, graph.mean("features", "c2"), (4, 3))
    return graph


def _weights(graph: SmallGraph, name: str, input_scale: float) -> LayerWeights:
    """Random integers; biases in whole steps and a half, where half to even shows."""
    shape = graph.constants[f"{name}.w"].shape
    integers = np.random.default_rng(len(name) + shape[1]).integers(-127, 128, shape, dtype=np.int8)
    bias = np.array([101.5, -100.5, 7.75, -2000.0]) * input_scale * _WEIGHT_SCALES
    return LayerWeights(integers, _WEIGHT_SCALES.astype(np.float32), bias.astype(np.float32))


_BIAS_INTEGERS = np.array([102, -100, 8, -2000])  # the halves went to even


def _params(target: str) -> dict[str, QuantParams]:
    zero_points = {"cpu-x86": (64, 0, 130), "cpu-arm": (-64, -128, 2), "tensorrt": (0, 0, 0)}[target]
    scales = (_X_SCALE, _R1_SCALE, _C2_SCALE)
    return {
        name: QuantParams(np.float32(scale), zero_point)
        for name, scale, zero_point in zip(("x", "r1", "c2"), scales, zero_points, strict=True)
    }


def _quantized(target: str, *, pixels: str | None = None) -> tuple[QdqNetwork, dict[str, LayerWeights]]:
    graph = _float_graph()
    network = graph.network()
    placement = place(network, TARGETS[target])
    params = {name: own for name, own in _params(target).items() if name in placement.tensors}
    quantized = QdqNetwork(network, TARGETS[target], placement, params, pixels)
    weights = {"c1": _weights(graph, "c1", _X_SCALE), "c2": _weights(graph, "c2", _R1_SCALE)}
    for layer in placement.layers:
        quantized.set_weights(layer, weights[layer.name])
    return quantized, weights


def _convolve(values: Integers, weights: Integers, stride: int, pad: int) -> Integers:
    """The sum of products at each place, one tap after the other."""
    padded = np.pad(values, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    size = (padded.shape[2] - weights.shape[2]) // stride + 1
    sums = np.zeros((len(values), len(weights), size, size), np.int64)
    for row, column in np.ndindex(weights.shape[2:]):
        seen = padded[:, :, row : row + stride * size : stride, column : column + stride * size : stride]
        sums += np.einsum("nchw,oc->nohw", seen[:, :, :size, :size], weights[:, :, row, column])
    return sums


def _requantized(sums: Integers, unit: Array, scale: float, zero_point: int, limits: tuple[int, int]) -> Integers:
    integers: Integers = np.clip(np.rint(sums * unit / scale) + zero_point, *limits).astype(np.int64)
    return integers


def _by_hand(target: str, weights: dict[str, LayerWeights]) -> dict[str, Array]:
    """The integers of x, r1 and c2, and the logits."""
    limits = (int(np.iinfo(TARGETS[target].activation).min), int(np.iinfo(TARGETS[target].activation).max))
    params = _params(target)
    bias = _BIAS_INTEGERS[:, None, None]
    if target == "tensorrt":  # a float bias is not rounded
        bias = np.array([101.5, -100.5, 7.75, -2000.0])[:, None, None]
    pixels = PICTURES.transpose(0, 3, 1, 2).astype(np.int64) - _MEAN
    x = np.clip(pixels + params["x"].zero_point, *limits)
    sums = _convolve(x - params["x"].zero_point, weights["c1"].integers.astype(np.int64), 2, 1) + bias
    unit = (_X_SCALE * _WEIGHT_SCALES)[:, None, None]
    r1 = _requantized(np.maximum(sums, 0), unit, _R1_SCALE, params["r1"].zero_point, limits)
    sums = _convolve(r1 - params["r1"].zero_point, weights["c2"].integers.astype(np.int64), 1, 0) + bias
    unit = (_R1_SCALE * _WEIGHT_SCALES)[:, None, None]
    c2 = _requantized(sums, unit, _C2_SCALE, params["c2"].zero_point, limits)
    values = sums * unit if target == "tensorrt" else (c2 - params["c2"].zero_point) * _C2_SCALE
    constants = _float_graph().constants
    logits = values.mean(axis=(2, 3)) @ constants["logits.w"].T.astype(np.float64) + constants["logits.b"]
    return {"x_q": x, "r1_q": r1, "c2_q": c2, LOGITS_OUTPUT: logits}


def _reference(model: onnx.ModelProto, names: list[str]) -> list[Array]:
    """ONNX's own evaluator, which knows no integer kernels."""
    results: Any = ReferenceEvaluator(model).run(None, {IMAGE_INPUT: PICTURES}, intermediate=True)
    return [results[name] for name in names]


@pytest.mark.parametrize("target", sorted(TARGETS))
@pytest.mark.parametrize("how", ["integer kernels", "operator by operator", "ONNX's reference"])
def test_the_integers_are_those_worked_out_in_numpy(target: str, how: str) -> None:
    quantized, weights = _quantized(target)
    model, expected = quantized.model(), _by_hand(target, weights)
    names = [name for name in expected if name != "c2_q" or target != "tensorrt"]
    if how == "ONNX's reference":
        got = _reference(model, names)
    else:
        got = run(model, PICTURES, names, optimize=how == "integer kernels")
    for name, values in zip(names, got, strict=True):
        if name == LOGITS_OUTPUT:
            np.testing.assert_allclose(values, expected[name], rtol=1e-4, atol=1e-4)
        else:
            assert values.dtype == TARGETS[target].activation
            assert len(np.unique(values)) > 30
            np.testing.assert_array_equal(values, expected[name])


def test_the_uint8_image_goes_to_the_first_convolution_as_it_is() -> None:
    quantized, weights = _quantized("cpu-x86", pixels="x")
    model, expected = quantized.model(), _by_hand("cpu-x86", weights)
    assert {node.op_type for node in model.graph.node}.isdisjoint({"Cast", "Sub", "Div"})
    names = list(expected)[:3]
    for name, values in zip(names, run(model, PICTURES, names), strict=True):
        np.testing.assert_array_equal(values, expected[name])
    assert lint(model, "cpu-x86") == ()


@pytest.mark.parametrize("target", ["cpu-arm", "tensorrt"])
def test_targets_that_do_not_read_uint8_quantize_the_normalised_image(target: str) -> None:
    model = _quantized(target, pixels="x")[0].model()
    assert {"Cast", "Sub", "Div"} <= {node.op_type for node in model.graph.node}
    assert lint(model, target) == ()


@pytest.mark.parametrize("target", sorted(TARGETS))
def test_the_bias_is_int32_in_steps_of_input_times_weight_or_float(target: str) -> None:
    quantized, weights = _quantized(target)
    quantized.model()
    constants = quantized.network.constants
    if target == "tensorrt":
        np.testing.assert_array_equal(constants["c1_bias"], weights["c1"].bias)
        assert "c1_bias_q" not in constants
    else:
        assert constants["c1_bias_q"].dtype == np.int32
        np.testing.assert_array_equal(constants["c1_bias_q"], _BIAS_INTEGERS)
        np.testing.assert_allclose(constants["c1_bias_scale"], _X_SCALE * _WEIGHT_SCALES, rtol=1e-7, atol=0)


@pytest.mark.parametrize("target", ["cpu-x86", "cpu-arm"])
def test_every_convolution_runs_as_an_integer_kernel(target: str, tmp_path: Path) -> None:
    operators = _optimized(_quantized(target)[0].model(), tmp_path)
    assert operators["QLinearConv"] == 2
    assert operators["Conv"] == operators["FusedConv"] == operators["Relu"] == 0


def _optimized(model: onnx.ModelProto, folder: Path) -> Counter[str]:
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(folder / "optimized.onnx").graph.node)


def test_weights_set_again_are_the_ones_in_the_model() -> None:
    quantized, weights = _quantized("cpu-x86")
    quantized.model()
    layer = quantized.placement.layers[0]
    changed = LayerWeights(-weights["c1"].integers, weights["c1"].scale, -weights["c1"].bias)
    quantized.set_weights(layer, changed)
    expected = _by_hand("cpu-x86", weights)["r1_q"]
    (got,) = run(quantized.model(), PICTURES, ["r1_q"])
    assert (got[expected > 0] == 0).all()  # the sums have the other sign
    assert (got[expected == 0] > 0).mean() > 0.5


@pytest.mark.parametrize(
    ("target", "zero_point", "expected"),
    [("cpu-x86", 100, (-50.0, 77.5)), ("cpu-arm", -128, (0.0, 127.5)), ("tensorrt", 0, (-63.5, 63.5))],
)
def test_the_represented_range_is_that_worked_by_hand(
    target: str, zero_point: int, expected: tuple[float, float]
) -> None:
    assert represented_range(QuantParams(np.float32(0.5), zero_point), TARGETS[target]) == expected


def _with_float_layer(target: str) -> tuple[onnx.ModelProto, SmallGraph]:
    """c2 of the chain stays float; its first output channel is a hundred times the others."""
    graph = chain()
    graph.conv("c3", "r2", (8, 8))
    mean = next(node for node in graph.nodes if node.name == "features")
    mean.input[0] = "c3"
    graph.nodes.sort(key=lambda node: ["c3", "features", LOGITS_OUTPUT].index(node.name) if node.name in
                     ("c3", "features", LOGITS_OUTPUT) else -1)  # fmt: skip
    graph.constants["c2.w"][0] *= 100
    network = graph.network()
    placement = place(network, TARGETS[target], ["c2"])
    scales = {"x": 0.02, "r1": 0.02, "r2": 0.5, "c3": 0.5}
    zero_points = {"cpu-x86": (110, 0, 0, 128), "cpu-arm": (-18, -128, -128, 0)}[target]
    params = {
        name: QuantParams(np.float32(scale), zero)
        for (name, scale), zero in zip(scales.items(), zero_points, strict=True)
    }
    quantized = QdqNetwork(network, TARGETS[target], placement, params)
    for layer in placement.layers:
        weight = network.constants[layer.weight]
        scale = (np.abs(weight).max(axis=(1, 2, 3)) / 127).astype(np.float32)
        integers = np.round(weight / scale[:, None, None, None]).astype(np.int8)
        quantized.set_weights(layer, LayerWeights(integers, scale, network.constants[layer.bias]))
    return quantized.model(), graph


@pytest.mark.parametrize("target", ["cpu-x86", "cpu-arm"])
def test_a_layer_kept_float_has_float_weights_in_onnx_runtime(target: str, tmp_path: Path) -> None:
    """Without the Clip before it ONNX Runtime would give it one scale for all channels."""
    model, graph = _with_float_layer(target)
    assert lint(model, target) == ()
    operators = _optimized(model, tmp_path)
    assert operators["QLinearConv"] == 2
    assert operators["Conv"] + operators["FusedConv"] == 1
    r1, r2 = run(model, PICTURES, ["r1_q", "r2_q"])
    zero_point = int(np.iinfo(TARGETS[target].activation).min)
    reads = (r1.astype(np.int64) - zero_point) * float(np.float32(0.02))
    weight, bias = graph.constants["c2.w"].astype(np.float64), graph.constants["c2.b"].astype(np.float64)
    padded = np.pad(reads, ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))
    exact = np.einsum("nchwij,ocij->nohw", windows, weight) + bias[:, None, None]
    expected = np.clip(np.rint(np.maximum(exact, 0) / 0.5), 0, 255) + zero_point
    assert (expected[:, 1:] > zero_point).mean() > 0.1
    difference = np.abs(r2 - expected)
    assert difference.max() <= 1
    assert (difference > 0).mean() < 0.001

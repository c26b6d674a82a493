"""INT8 graphs: ranges worked by hand, independence of order and batch, and integer kernels that really run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgetune.core.errors import DataError
from edgetune.core.tensors import FEATURES_OUTPUT, IMAGE_INPUT
from edgetune.quantize.qdq import quantize_model
from edgetune.runners.ort_runner import OrtRunner

Images = npt.NDArray[np.uint8]


def _model(path: Path) -> Path:
    """image -> float -> x / 10 -> conv 1x1 (3 to 16) -> clip 0..6 -> conv -> add -> mean."""
    rng = np.random.default_rng(0)
    weights = {
        "ten": np.float32(10.0),
        "zero": np.float32(0.0),
        "six": np.float32(6.0),
        "w1": rng.normal(size=(16, 3, 1, 1)).astype(np.float32),
        "w2": rng.normal(size=(16, 16, 3, 3)).astype(np.float32) / 10,
        "b2": rng.normal(size=16).astype(np.float32),
    }
    nodes = [
        helper.make_node("Cast", [IMAGE_INPUT], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["float"], ["nchw"], perm=[0, 3, 1, 2]),
        helper.make_node("Div", ["nchw", "ten"], ["scaled"]),
        helper.make_node("Conv", ["scaled", "w1"], ["c1"]),
        helper.make_node("Clip", ["c1", "zero", "six"], ["clipped"]),
        helper.make_node("Conv", ["clipped", "w2", "b2"], ["c2"], pads=[1, 1, 1, 1]),
        helper.make_node("Add", ["c2", "clipped"], ["sum"]),
        helper.make_node("ReduceMean", ["sum", "axes"], [FEATURES_OUTPUT], keepdims=0),
    ]
    initializers = [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()]
    initializers.append(numpy_helper.from_array(np.array([2, 3], dtype=np.int64), "axes"))
    image = helper.make_tensor_value_info(IMAGE_INPUT, TensorProto.UINT8, ["batch", 8, 8, 3])
    features = helper.make_tensor_value_info(FEATURES_OUTPUT, TensorProto.FLOAT, ["batch", 16])
    graph = helper.make_graph(nodes, "small", [image], [features], initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(onnx.shape_inference.infer_shapes(model), path)
    return path


def _images(count: int) -> Images:
    return np.random.default_rng(1).integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)


def _in_batches(images: Images, size: int) -> Iterator[Images]:
    return (images[start : start + size] for start in range(0, len(images), size))


def test_a_range_is_the_mean_of_each_images_extremes(tmp_path: Path) -> None:
    images = np.zeros((2, 8, 8, 3), dtype=np.uint8)
    images[0, 0, 0, 0], images[1, 0, 0, 0] = 100, 200  # x / 10: maxima 10 and 20, minima 0
    ranges = quantize_model(_model(tmp_path / "m.onnx"), tmp_path / "q.onnx", _in_batches(images, 1))
    np.testing.assert_allclose(ranges["scaled"], (0.0, 15.0), rtol=1e-6, atol=1e-6)


def test_ranges_behind_a_clip_are_absorbed(tmp_path: Path) -> None:
    ranges = quantize_model(_model(tmp_path / "m.onnx"), tmp_path / "q.onnx", _in_batches(_images(8), 1))
    assert "c1" not in ranges or ranges["c1"][1] <= 6.0 + 1e-6
    assert all(operator != "Clip" for operator in Counter(n.op_type for n in onnx.load(tmp_path / "q.onnx").graph.node))


def test_neither_batch_size_nor_order_matters(tmp_path: Path) -> None:
    images = _images(12)
    source = _model(tmp_path / "m.onnx")
    alone = quantize_model(source, tmp_path / "1.onnx", _in_batches(images, 1))
    batched = quantize_model(source, tmp_path / "2.onnx", _in_batches(images, 5))
    reversed_ = quantize_model(source, tmp_path / "3.onnx", _in_batches(images[::-1], 4))
    assert alone == batched
    for name, (low, high) in alone.items():
        np.testing.assert_allclose(reversed_[name], (low, high), rtol=1e-5, atol=1e-6)


def test_every_convolution_and_add_runs_in_integers(tmp_path: Path) -> None:
    quantize_model(_model(tmp_path / "m.onnx"), tmp_path / "q.onnx", _in_batches(_images(8), 2))
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(tmp_path / "q.onnx", options, providers=["CPUExecutionProvider"])
    operators = Counter(node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node)
    assert operators["QLinearConv"] == 2
    assert operators["QLinearAdd"] == 1
    assert operators["Conv"] == operators["Add"] == 0


def test_the_int8_graph_stays_close_to_the_float_graph(tmp_path: Path) -> None:
    source = _model(tmp_path / "m.onnx")
    images = _images(32)
    quantize_model(source, tmp_path / "q.onnx", _in_batches(images, 4))
    with OrtRunner(source) as exact, OrtRunner(tmp_path / "q.onnx") as candidate:
        expected = exact.infer({IMAGE_INPUT: images})[FEATURES_OUTPUT]
        got = candidate.infer({IMAGE_INPUT: images})[FEATURES_OUTPUT]
    sqnr_db = 10 * np.log10(np.sum(expected**2) / np.sum((expected - got) ** 2))
    assert sqnr_db > 25


def test_types_are_u8_activations_and_s8_weights_per_channel(tmp_path: Path) -> None:
    quantize_model(_model(tmp_path / "m.onnx"), tmp_path / "q.onnx", _in_batches(_images(4), 2))
    model = onnx.load(tmp_path / "q.onnx")
    values = {entry.name: numpy_helper.to_array(entry) for entry in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "QuantizeLinear":
            assert values[node.input[2]].dtype == np.uint8
    weights = [value for value in values.values() if value.dtype == np.int8 and value.ndim == 4]
    assert sorted(value.shape for value in weights) == [(16, 3, 1, 1), (16, 16, 3, 3)]
    scales = [node.input[1] for node in model.graph.node if node.op_type == "DequantizeLinear"]
    assert sorted(values[name].shape for name in scales).count((16,)) >= 2
    assert {entry.domain for entry in model.opset_import} <= {"", "ai.onnx", "com.microsoft"}


def test_no_calibration_image_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not one calibration image"):
        quantize_model(_model(tmp_path / "m.onnx"), tmp_path / "q.onnx", iter(()))

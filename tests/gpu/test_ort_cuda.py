"""ONNX Runtime on an NVIDIA GPU: the CPU's answers, from the GPU alone; engines that are kept and shared."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from edgetune.core.tensors import IMAGE_INPUT, LOGITS_OUTPUT
from edgetune.runners.base import infer_images
from edgetune.runners.ort_probe import ProviderFinding, probe_providers
from edgetune.runners.ort_providers import CUDA, TENSORRT_EP, TENSORRT_RTX_EP, EpChoice, EpOptions
from edgetune.runners.ort_runner import OrtRunner

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

pytestmark = pytest.mark.gpu

SIZE = 32
# TensorRT has no option of ONNX Runtime against TF32, which keeps 10 bits of mantissa.
MIN_SQNR_DB = {CUDA: 90.0, TENSORRT_EP: 50.0, TENSORRT_RTX_EP: 50.0}


@pytest.fixture(scope="module")
def findings() -> dict[str, ProviderFinding]:
    return {finding.name: finding for finding in probe_providers()}


@pytest.fixture(params=[CUDA, TENSORRT_EP, TENSORRT_RTX_EP])
def provider(request: pytest.FixtureRequest, findings: dict[str, ProviderFinding]) -> str:
    return _usable(request.param, findings)


def _usable(name: str, findings: dict[str, ProviderFinding]) -> str:
    if not findings[name].usable:
        pytest.skip(f"{name} is not usable here: {findings[name].reason}")
    return name


def _network(seed: int) -> bytes:
    """Two convolutions and a head of 10 classes, with random weights: what differs between devices is arithmetic."""
    rng = np.random.default_rng(seed)
    weights = {
        "first": rng.normal(0, 0.2, (16, 3, 3, 3)),
        "second": rng.normal(0, 0.1, (32, 16, 3, 3)),
        "head": rng.normal(0, 0.2, (32, 10)),
        "scale": np.float32(1 / 255),
    }
    nodes = [
        onnx.helper.make_node("Cast", [IMAGE_INPUT], ["float"], to=onnx.TensorProto.FLOAT),
        onnx.helper.make_node("Transpose", ["float"], ["planes"], perm=[0, 3, 1, 2]),
        onnx.helper.make_node("Mul", ["planes", "scale"], ["scaled"]),
        onnx.helper.make_node("Conv", ["scaled", "first"], ["a"], strides=[2, 2]),
        onnx.helper.make_node("Relu", ["a"], ["b"]),
        onnx.helper.make_node("Conv", ["b", "second"], ["c"], strides=[2, 2]),
        onnx.helper.make_node("Relu", ["c"], ["d"]),
        onnx.helper.make_node("GlobalAveragePool", ["d"], ["pooled"]),
        onnx.helper.make_node("Flatten", ["pooled"], ["flat"]),
        onnx.helper.make_node("MatMul", ["flat", "head"], [LOGITS_OUTPUT]),
    ]
    image = onnx.helper.make_tensor_value_info(IMAGE_INPUT, onnx.TensorProto.UINT8, ["batch", SIZE, SIZE, 3])
    logits = onnx.helper.make_tensor_value_info(LOGITS_OUTPUT, onnx.TensorProto.FLOAT, ["batch", 10])
    tensors = [onnx.numpy_helper.from_array(np.asarray(array, np.float32), name) for name, array in weights.items()]
    graph = onnx.helper.make_graph(nodes, "network", [image], [logits], tensors)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString())


def _choice(name: str, cache: Path) -> EpChoice:
    return EpChoice(name, EpOptions(crop_size=SIZE, min_batch=1, opt_batch=4, max_batch=8, cache_folder=cache))


def _images(count: int) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(1).integers(0, 256, (count, SIZE, SIZE, 3), dtype=np.uint8)


def _logits(model: Path, ep: EpChoice | None, count: int = 4) -> npt.NDArray[np.float32]:
    with OrtRunner(model, ep=ep) as runner:
        return infer_images(runner, _images(count), LOGITS_OUTPUT)


def _sqnr_db(reference: npt.NDArray[np.float32], candidate: npt.NDArray[np.float32]) -> float:
    expected = reference.astype(np.float64)
    return float(10 * np.log10(np.sum(expected**2) / np.sum((expected - candidate) ** 2)))


@pytest.mark.parametrize("count", [1, 4, 11])
def test_the_gpu_alone_gives_the_cpus_answers(provider: str, count: int, tmp_path: Path) -> None:
    model = tmp_path / "model.onnx"
    model.write_bytes(_network(0))
    expected = _logits(model, None, count)
    assert _sqnr_db(expected, _logits(model, _choice(provider, tmp_path / "cache"), count)) >= MIN_SQNR_DB[provider]


def test_other_weights_under_the_same_name_get_their_own_engine(provider: str, tmp_path: Path) -> None:
    """With the folder of the first, the second would find the first's engine: names in the graph are the same."""
    model = tmp_path / "model.onnx"
    for seed in (0, 1):
        model.write_bytes(_network(seed))
        expected = _logits(model, None)
        assert _sqnr_db(expected, _logits(model, _choice(provider, tmp_path / "cache"))) >= MIN_SQNR_DB[provider]

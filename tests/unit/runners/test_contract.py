"""One test class for every runner: the same questions, the same answers."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from edgetune.core.errors import MissingDependencyError, ModelError, TensorError
from edgetune.core.tensors import IMAGE_INPUT, LOGITS_OUTPUT
from edgetune.runners.base import Runner, infer_images
from edgetune.runners.ort_runner import OrtRunner
from edgetune.runners.server_runner import ServerRunner
from edgetune.runners.torch_runner import TorchRunner

WEIGHT = np.array([[1.0, 0.0, -1.0], [0.5, 0.5, 0.5]], dtype=np.float32)


class _Mean(torch.nn.Module):
    """Mean colour of an image times WEIGHT."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return image.float().mean((1, 2)) @ torch.from_numpy(WEIGHT).T


def mean_model() -> bytes:
    nodes = [
        helper.make_node("Cast", [IMAGE_INPUT], ["float"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["float", "axes"], ["mean"], keepdims=0),
        helper.make_node("Gemm", ["mean", "weight"], [LOGITS_OUTPUT], transB=1),
    ]
    constants = [numpy_helper.from_array(np.array([1, 2]), "axes"), numpy_helper.from_array(WEIGHT, "weight")]
    image = helper.make_tensor_value_info(IMAGE_INPUT, TensorProto.UINT8, ["batch", 4, 4, 3])
    logits = helper.make_tensor_value_info(LOGITS_OUTPUT, TensorProto.FLOAT, ["batch", 2])
    graph = helper.make_graph(nodes, "mean", [image], [logits], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    stream = io.BytesIO()
    onnx.save(model, stream)
    return stream.getvalue()


# Each kind and how its name begins. The engine is the real runner; TensorRT and the GPU's memory are played, and
# compute.
_NAMES = {
    "torch": "torch cpu",
    "onnxruntime, bytes": "onnxruntime CPU",
    "onnxruntime, file": "onnxruntime CPU",
    "engine": "tensorrt",
    "server, json": "server http://127.0.0.1:",
    "server, binary": "server http://127.0.0.1:",
}


@pytest.fixture(params=_NAMES)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def open_runner(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], Runner]:
    if kind == "torch":
        return lambda: TorchRunner(_Mean(), 4, LOGITS_OUTPUT)
    if kind == "engine":
        make_runner: Callable[[], Runner] = request.getfixturevalue("make_runner")
        return make_runner
    if kind.startswith("server"):
        url = request.getfixturevalue("mean_server").url
        return lambda: ServerRunner(url, wire=kind.split()[-1])
    if kind == "onnxruntime, bytes":
        return lambda: OrtRunner(mean_model(), threads=1)
    (tmp_path / "somebody's model.onnx").write_bytes(mean_model())
    return lambda: OrtRunner(tmp_path / "somebody's model.onnx", threads=1)


class TestRunnerContract:
    def test_it_computes_the_model(self, open_runner: Callable[[], Runner]) -> None:
        images = np.zeros((2, 4, 4, 3), dtype=np.uint8)
        images[0] = (10, 20, 30)
        images[1, :2] = (200, 100, 0)  # half of the pixels
        with open_runner() as runner:
            logits = infer_images(runner, images, LOGITS_OUTPUT)
        # row 0: 10 - 30, (10 + 20 + 30) / 2; row 1: 100 - 0, (100 + 50) / 2
        np.testing.assert_allclose(logits, [[-20.0, 30.0], [100.0, 75.0]], rtol=1e-6, atol=1e-4)
        assert logits.dtype == np.float32

    @pytest.mark.parametrize("count", [1, 3, 70])
    def test_any_number_of_images_in_their_order(self, open_runner: Callable[[], Runner], count: int) -> None:
        """70 are more than the server and the engine take at once."""
        images = np.random.default_rng(count).integers(0, 256, (count, 4, 4, 3), dtype=np.uint8)
        with open_runner() as runner:
            logits = infer_images(runner, images, LOGITS_OUTPUT)
        expected = np.array([[(image.mean((0, 1), np.float64) * row).sum() for row in WEIGHT] for image in images])
        np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-3)

    def test_images_with_gaps_between_them(self, open_runner: Callable[[], Runner]) -> None:
        images = np.random.default_rng(0).integers(0, 256, (6, 4, 4, 3), dtype=np.uint8)[::2]
        with open_runner() as runner:
            logits = infer_images(runner, images, LOGITS_OUTPUT)
            packed = infer_images(runner, images.copy(), LOGITS_OUTPUT)
        np.testing.assert_array_equal(logits, packed)

    def test_an_answer_stays_after_the_next_one(self, open_runner: Callable[[], Runner]) -> None:
        images = np.full((2, 4, 4, 3), 7, dtype=np.uint8)
        with open_runner() as runner:
            first = runner.infer({IMAGE_INPUT: images})[LOGITS_OUTPUT]
            before = first.copy()
            runner.infer({IMAGE_INPUT: images + 100})
        np.testing.assert_array_equal(first, before)

    @pytest.mark.parametrize(
        ("feed", "words"),
        [
            ({}, r"inputs \[\], the model expects \['image'\]"),
            ({"picture": np.zeros((1, 4, 4, 3), np.uint8)}, r"\['picture'\]"),
            ({"image": np.zeros((1, 4, 4, 3), np.float32)}, r"float32 .*expects uint8"),
            ({"image": np.zeros((1, 5, 4, 3), np.uint8)}, r"\(1, 5, 4, 3\).*\('any', 4, 4, 3\)"),
            ({"image": np.zeros((4, 4, 3), np.uint8)}, r"\(4, 4, 3\)"),
        ],
        ids=["nothing", "other name", "other dtype", "other size", "no batch"],
    )
    def test_a_wrong_feed_is_named(
        self, open_runner: Callable[[], Runner], feed: dict[str, np.ndarray], words: str
    ) -> None:
        with open_runner() as runner, pytest.raises(TensorError, match=words):
            runner.infer(feed)

    def test_it_runs_only_while_open(self, open_runner: Callable[[], Runner]) -> None:
        runner = open_runner()
        images = np.zeros((1, 4, 4, 3), dtype=np.uint8)
        with pytest.raises(ModelError, match="with block"):
            runner.infer({IMAGE_INPUT: images})
        with runner:
            runner.infer({IMAGE_INPUT: images})
        with pytest.raises(ModelError, match="with block"):
            runner.infer({IMAGE_INPUT: images})

    def test_it_says_what_it_is_takes_and_gives(self, open_runner: Callable[[], Runner], kind: str) -> None:
        with open_runner() as runner:
            assert runner.name.startswith(_NAMES[kind])
            assert runner.name.endswith(f"({kind.split()[-1]})") == kind.startswith("server")
            (taken,) = runner.input_specs
            assert (taken.name, taken.dtype, taken.shape) == ("image", "uint8", (None, 4, 4, 3))
            (given,) = runner.output_specs
            assert (given.name, given.dtype, given.shape[0]) == ("logits", "float32", None)
            assert 1 == runner.min_batch <= (runner.max_batch or 1)


@pytest.mark.parametrize("content", [b"", b"no model at all", b"\x00" * 64], ids=["empty", "text", "zeros"])
def test_what_is_no_model_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "m.onnx").write_bytes(content)
    with pytest.raises(ModelError, match=r"cannot load .*m\.onnx"), OrtRunner(tmp_path / "m.onnx"):
        pass


def test_a_provider_that_is_not_there_is_not_replaced_silently() -> None:
    with pytest.raises(ModelError, match="CUDAExecutionProvider was asked for"):  # noqa: SIM117
        with OrtRunner(mean_model(), providers=("CUDAExecutionProvider", "CPUExecutionProvider")):
            pass


def test_without_onnxruntime_a_sentence_says_which_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    with (
        pytest.raises(MissingDependencyError, match="ONNX Runtime is not installed") as caught,
        OrtRunner(mean_model()),
    ):
        pass
    assert "edgetune[cpu]" in caught.value.hint


def test_each_layer_of_a_torch_module_comes_back_in_the_mode_it_was_in() -> None:
    """A wrapper in train mode around a frozen backbone in eval mode must not wake the backbone's BN."""
    module = torch.nn.Sequential(torch.nn.BatchNorm2d(3).eval(), torch.nn.Flatten()).train()
    module[0].eval()
    with TorchRunner(module, 4, LOGITS_OUTPUT):
        assert not any(layer.training for layer in module.modules())
    assert (module.training, module[0].training, module[1].training) == (True, False, True)

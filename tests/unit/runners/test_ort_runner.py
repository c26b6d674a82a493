"""What a session on a chosen provider refuses, and what it hands over."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgetune.core.errors import MissingDependencyError, ModelError, TensorError
from edgetune.core.tensors import LOGITS_OUTPUT
from edgetune.runners import ort_providers, ort_runner
from edgetune.runners.base import infer_images
from edgetune.runners.ort_providers import CPU, CUDA, ONE_RELU, TENSORRT_EP, TENSORRT_RTX_EP, EpChoice, EpOptions
from edgetune.runners.ort_runner import OrtRunner, ep_session_options
from tests.unit.runners.test_contract import mean_model

# A provider that the CPU wheel has and that takes no node of ours: a GPU's stand-in for real answers of ONNX Runtime.
STAND_IN = "AzureExecutionProvider"


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    if STAND_IN not in onnxruntime.get_available_providers():
        pytest.skip(f"this ONNX Runtime has no {STAND_IN}")
    monkeypatch.setitem(ort_providers._ORT_NAMES, CUDA, STAND_IN)
    monkeypatch.setattr(ort_runner, "prepare_provider", lambda *_: None)


def test_the_cpu_by_our_name_is_the_default() -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, 4, 4, 3), dtype=np.uint8)
    with OrtRunner(mean_model(), threads=1) as default, OrtRunner(mean_model(), threads=1, ep=EpChoice(CPU)) as chosen:
        assert chosen.name == default.name == "onnxruntime CPU"
        np.testing.assert_array_equal(
            infer_images(chosen, images, LOGITS_OUTPUT), infer_images(default, images, LOGITS_OUTPUT)
        )


def test_unoptimised_is_in_the_name_and_in_the_session() -> None:
    with OrtRunner(mean_model(), threads=1, optimise=False) as plain, OrtRunner(mean_model(), threads=1) as usual:
        levels = [runner._open_session().get_session_options().graph_optimization_level for runner in (plain, usual)]
        assert levels[0] == onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL != levels[1]
        assert (plain.name, usual.name) == ("onnxruntime CPU, unoptimised", "onnxruntime CPU")


def test_only_a_cpu_runs_unoptimised() -> None:
    with pytest.raises(ModelError, match="cuda optimises"), OrtRunner(mean_model(), ep=EpChoice(CUDA), optimise=False):
        pass


@pytest.mark.parametrize("name", [CUDA, TENSORRT_EP, TENSORRT_RTX_EP])
def test_a_provider_that_cannot_start_is_one_line_and_no_session(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    if Path("/dev/nvidia0").exists():
        pytest.skip("this machine has a GPU, where the provider may start")
    with (
        pytest.raises(MissingDependencyError, match=f"{name} was asked for") as caught,
        OrtRunner(mean_model(), ep=EpChoice(name)),
    ):
        pass
    assert "\n" not in caught.value.message
    assert caught.value.hint
    printed = capfd.readouterr()
    assert printed.out == ""
    assert "onnxruntime" not in printed.err


@pytest.mark.usefixtures("stand_in")
def test_nodes_that_would_run_on_the_cpu_are_refused(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ModelError, match="does not take all of the ONNX model") as caught:  # noqa: SIM117
        with OrtRunner(mean_model(), threads=1, ep=EpChoice(CUDA)):
            pass
    assert "--runner cpu" in caught.value.hint
    assert capfd.readouterr().out == ""


@pytest.mark.usefixtures("stand_in")
def test_nodes_on_the_cpu_are_allowed_by_name() -> None:
    ep = EpChoice(CUDA, EpOptions(allow_cpu_nodes=True))
    with OrtRunner(ONE_RELU, threads=1, ep=ep) as runner:
        values = np.array([[-1.0, 0.0, 2.0, 3.0]], np.float32)
        np.testing.assert_array_equal(runner.infer({"x": values})["y"], [[0.0, 0.0, 2.0, 3.0]])


@pytest.mark.usefixtures("stand_in")
def test_a_provider_that_does_not_start_is_not_taken_for_a_model_that_does_not_fit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """ONNX Runtime drops such a provider and then complains of the nodes that are left to the CPU."""
    real = onnxruntime.InferenceSession

    def without_provider(model: object, options: object, **_: object) -> object:
        return real(model, options, providers=[])

    monkeypatch.setattr(onnxruntime, "InferenceSession", without_provider)
    with pytest.raises(ModelError, match="does not start here, though its libraries load"):  # noqa: SIM117
        with OrtRunner(mean_model(), threads=1, ep=EpChoice(CUDA)):
            pass


@pytest.mark.parametrize(
    ("name", "crop_size", "max_batch"),
    [(CPU, 4, None), (CUDA, 4, None), (TENSORRT_EP, None, None), (TENSORRT_EP, 4, 5), (TENSORRT_RTX_EP, 4, 5)],
)
def test_only_an_engine_with_a_profile_bounds_the_batch(
    name: str, crop_size: int | None, max_batch: int | None
) -> None:
    ep = EpChoice(name, EpOptions(crop_size=crop_size, max_batch=5))
    assert OrtRunner(mean_model(), ep=ep).max_batch == max_batch
    assert OrtRunner(mean_model()).max_batch is None


@pytest.mark.usefixtures("stand_in")
@pytest.mark.parametrize("count", [0, 1, 4])
def test_a_batch_out_of_the_range_is_refused_before_the_provider_sees_it(
    count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    ep = EpChoice(CUDA, EpOptions(allow_cpu_nodes=True))
    with OrtRunner(mean_model(), threads=1, ep=ep) as runner:
        monkeypatch.setattr(OrtRunner, "min_batch", 2)
        monkeypatch.setattr(OrtRunner, "max_batch", 3)
        images = np.zeros((count, 4, 4, 3), np.uint8)
        with pytest.raises(TensorError, match=f"the batch is {count}, onnxruntime Azure was opened for 2 to 3"):
            runner.infer({"image": images})
        assert len(runner.infer({"image": np.zeros((3, 4, 4, 3), np.uint8)})["logits"]) == 3


def test_providers_without_the_cpu_leave_it_no_nodes() -> None:
    if STAND_IN not in onnxruntime.get_available_providers():
        pytest.skip(f"this ONNX Runtime has no {STAND_IN}")
    with pytest.raises(ModelError, match="assigned to the default CPU EP") as caught:  # noqa: SIM117
        with OrtRunner(mean_model(), threads=1, providers=(STAND_IN,)):
            pass
    assert "edgetune doctor" in caught.value.hint


def _qdq_conv() -> onnx.ModelProto:
    """TensorRT's form: int8 activations and weights, zero points 0, bias in float."""
    rng = np.random.default_rng(0)
    constants = {
        "scale": np.float32(0.02),
        "zero": np.int8(0),
        "weight": rng.integers(-127, 128, (4, 3, 3, 3)).astype(np.int8),
        "scales": rng.uniform(0.001, 0.01, 4).astype(np.float32),
        "zeros": np.zeros(4, np.int8),
        "bias": rng.normal(size=4).astype(np.float32),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["x_q"]),
        helper.make_node("DequantizeLinear", ["x_q", "scale", "zero"], ["x_dq"]),
        helper.make_node("DequantizeLinear", ["weight", "scales", "zeros"], ["weight_dq"], axis=0),
        helper.make_node("Conv", ["x_dq", "weight_dq", "bias"], ["y"]),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 8, 8])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4, 6, 6])
    tensors = [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()]
    graph = helper.make_graph(nodes, "qdq", [x], [y], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def _handed_over(name: str, folder: Path) -> onnx.GraphProto:
    """The graph as it is before a provider takes its nodes, of a session with this provider's options."""
    options = ep_session_options(onnxruntime, EpChoice(name, EpOptions(allow_cpu_nodes=True)), 1, None)
    if name == CUDA:  # what runs once nodes are placed is the CPU's here, and no concern of CUDA's
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(folder / "handed_over.onnx")
    content = _qdq_conv().SerializeToString()
    onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    return onnx.load(folder / "handed_over.onnx").graph


def test_tensorrt_gets_q_and_dq_as_the_file_has_them(tmp_path: Path) -> None:
    graph = _handed_over(TENSORRT_EP, tmp_path)
    assert [node.op_type for node in graph.node] == [node.op_type for node in _qdq_conv().graph.node]
    assert TensorProto.INT32 not in {tensor.data_type for tensor in graph.initializer}


def test_cuda_gets_no_int32_bias_which_it_could_not_dequantize(tmp_path: Path) -> None:
    graph = _handed_over(CUDA, tmp_path)
    assert TensorProto.INT32 not in {tensor.data_type for tensor in graph.initializer}
    assert [node.op_type for node in graph.node] == ["QuantizeLinear", "DequantizeLinear", "Conv"]


@pytest.mark.parametrize("name", [CUDA, TENSORRT_EP])
def test_a_gpu_never_gets_the_cpus_exact_int8_sums(name: str) -> None:
    """The entry would make the weights u8, which TensorRT refuses."""
    options = ep_session_options(onnxruntime, EpChoice(name), 1, None)
    assert options.get_session_config_entry("session.disable_cpu_ep_fallback") == "1"
    with pytest.raises(RuntimeError):  # no such entry
        options.get_session_config_entry("session.x64quantprecision")


def test_onnxruntimes_own_fallback_stays_off(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """It would print to stdout, which may be a JSON envelope, and try again on the CPU."""
    tries = []

    def refuse(_session: object, providers: list[str], *_: object) -> None:
        tries.append(providers)
        raise RuntimeError("the provider failed")

    monkeypatch.setattr(onnxruntime.InferenceSession, "_create_inference_session", refuse)
    with pytest.raises(ModelError, match="the provider failed"), OrtRunner(mean_model(), threads=1, exact_int8=False):
        pass
    assert tries == [["CPUExecutionProvider"]]
    assert capfd.readouterr().out == ""

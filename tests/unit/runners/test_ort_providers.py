"""Our names and words, and the options that ONNX Runtime's providers are given for them."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest

from edgetune.core.errors import UsageError
from edgetune.runners.ort_providers import (
    CPU,
    CUDA,
    ONE_RELU,
    PROVIDERS,
    TENSORRT_EP,
    TENSORRT_RTX_EP,
    EpChoice,
    EpOptions,
    model_folder,
    provider_label,
    provider_options,
    session_entries,
    session_providers,
)

CAPI = Path(onnxruntime.__file__).parent / "capi"
# Everything set, so that every option is written.
FULL = {"crop_size": 224, "cache_folder": Path("/cache")}


def _choice(name: str, **options: Any) -> EpChoice:
    return EpChoice(name, EpOptions(**options))


@pytest.mark.parametrize(
    ("name", "ort_name", "label"),
    [
        (CPU, "CPUExecutionProvider", "CPU"),
        (CUDA, "CUDAExecutionProvider", "CUDA"),
        (TENSORRT_EP, "TensorrtExecutionProvider", "TensorRT"),
        (TENSORRT_RTX_EP, "NvTensorRTRTXExecutionProvider", "TensorRT-RTX"),
    ],
)
def test_names(name: str, ort_name: str, label: str) -> None:
    assert EpChoice(name).ort_name == ort_name
    assert provider_label(ort_name) == label


def test_cuda_computes_fp32_without_tf32() -> None:
    assert provider_options(_choice(CUDA), None) == {
        "device_id": "0",
        "use_tf32": "0",
        "cudnn_conv_algo_search": "HEURISTIC",
        "arena_extend_strategy": "kSameAsRequested",
    }


def test_tensorrt_gets_one_profile_and_the_models_own_folder() -> None:
    ep = _choice(
        TENSORRT_EP,
        crop_size=192,
        min_batch=1,
        opt_batch=4,
        max_batch=16,
        cache_folder=Path("/cache"),
    )
    assert provider_options(ep, Path("/cache/model")) == {
        "device_id": "0",
        "trt_int8_enable": "0",
        "trt_fp16_enable": "0",
        "trt_profile_min_shapes": "image:1x192x192x3",
        "trt_profile_opt_shapes": "image:4x192x192x3",
        "trt_profile_max_shapes": "image:16x192x192x3",
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": "/cache",
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": "/cache/model",
        "trt_engine_cache_prefix": "edgetune",
    }


def test_tensorrt_is_not_given_leave_for_other_types_than_the_files() -> None:
    """Either leave makes ONNX Runtime create a weakly typed network."""
    options = provider_options(_choice(TENSORRT_EP), None)
    assert options == {"device_id": "0", "trt_int8_enable": "0", "trt_fp16_enable": "0"}


def test_tensorrt_rtx_takes_types_from_the_file_and_the_gpu_from_its_devices() -> None:
    ep = _choice(TENSORRT_RTX_EP, crop_size=64, max_batch=2)
    assert provider_options(ep, Path("/cache/model")) == {
        "nv_profile_min_shapes": "image:1x64x64x3",
        "nv_profile_opt_shapes": "image:1x64x64x3",
        "nv_profile_max_shapes": "image:2x64x64x3",
        "nv_runtime_cache_path": "/cache/model",
    }


def test_nodes_left_to_the_cpu_are_an_error_unless_allowed() -> None:
    for name in (CUDA, TENSORRT_EP, TENSORRT_RTX_EP):
        assert session_entries(_choice(name))["session.disable_cpu_ep_fallback"] == "1"
        assert "session.disable_cpu_ep_fallback" not in session_entries(_choice(name, allow_cpu_nodes=True))
    assert session_entries(_choice(CPU)) == {}


def test_a_session_never_names_the_cpu_and_tensorrt_gets_help_only_where_allowed() -> None:
    """ONNX Runtime refuses to disable the CPU's nodes where the CPU is named."""
    names = {name: [provider for provider, _ in session_providers(_choice(name), None)] for name in PROVIDERS[1:]}
    assert names == {CUDA: ["CUDAExecutionProvider"], TENSORRT_EP: ["TensorrtExecutionProvider"], TENSORRT_RTX_EP: []}
    helped = [provider for provider, _ in session_providers(_choice(TENSORRT_EP, allow_cpu_nodes=True), None)]
    assert helped == ["TensorrtExecutionProvider", "CUDAExecutionProvider"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"min_batch": 2}, "1 <= min <= opt <= max, got 2, 1, 8"),
        ({"min_batch": 0}, "got 0, 1, 8"),
        ({"opt_batch": 9}, "got 1, 9, 8"),
    ],
)
def test_options_out_of_range_are_named(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        EpOptions(**options)


def test_an_unknown_provider_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UsageError, match="'tensorrt' is not known; known: cpu, cuda, tensorrt-ep, tensorrt-rtx-ep"):
        EpChoice("tensorrt")


def test_models_of_one_name_and_other_weights_share_no_folder(tmp_path: Path) -> None:
    """TensorRT's provider takes an engine by file name and graph names: a head fitted again must not find the old."""
    ep = _choice(TENSORRT_EP, cache_folder=tmp_path / "cache")
    model = tmp_path / "model.onnx"
    folders = set()
    for content in (b"first head", b"second head"):
        model.write_bytes(content)
        folder = model_folder(model, ep)
        assert folder is not None
        assert folder.is_dir()
        assert folder == model_folder(content, ep)
        folders.add(folder)
    assert len(folders) == 2
    assert model_folder(model, _choice(TENSORRT_RTX_EP, cache_folder=tmp_path / "cache")) not in folders
    assert model_folder(model, EpChoice(TENSORRT_EP)) is None


def test_the_relu_is_the_model_that_its_comment_describes() -> None:
    model = onnx.load_from_string(ONE_RELU)
    onnx.checker.check_model(model, full_check=True)
    assert [node.op_type for node in model.graph.node] == ["Relu"]
    assert (model.ir_version, model.opset_import[0].version) == (8, 13)


@pytest.mark.parametrize("name", [CUDA, TENSORRT_EP])
def test_every_option_is_one_that_the_providers_library_knows(name: str) -> None:
    library = CAPI / f"libonnxruntime_providers_{'cuda' if name == CUDA else 'tensorrt'}.so"
    if not library.is_file():
        pytest.skip(f"this ONNX Runtime has no {library.name}; onnxruntime-gpu has")
    content = library.read_bytes()
    options = set(provider_options(_choice(name, **FULL), Path("/cache/model")))
    assert len(options) >= 5
    assert not [option for option in options if b"\0" + option.encode() + b"\0" not in content]
    assert b"\0trt_no_such_option\0" not in content


def test_every_option_is_one_that_the_plugins_header_names() -> None:
    spec = importlib.util.find_spec("onnxruntime_ep_nv_tensorrt_rtx")
    if spec is None or spec.origin is None:
        pytest.skip("onnxruntime-ep-nv-tensorrt-rtx-cu13 is not installed")
    header = (Path(spec.origin).parent / "tensorrt_rtx_provider_options.h").read_text(encoding="utf-8")
    known = set(re.findall(r'constexpr const char\* \w+ = "(\w+)";', header))
    assert len(known) > 10
    assert set(provider_options(_choice(TENSORRT_RTX_EP, **FULL), Path("/cache/model"))) <= known

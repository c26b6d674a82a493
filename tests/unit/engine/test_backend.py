"""Options that a backend does not know, and the next step after its reasons. No library is loaded."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest

from edgetune.core.engine_record import AMPERE_PLUS, SAME_COMPUTE_CAPABILITY, BuildOptions
from edgetune.core.errors import EngineError, UsageError
from edgetune.engine.backend import EngineBuilder, check_options, hint_for, known_targets
from edgetune.engine.protocol import InputProfile
from edgetune.runners import trt_library
from edgetune.runners.trt_library import TrtLibrary
from edgetune.runners.trt_log import LogRecorder

_RTX = TrtLibrary(
    "tensorrt-rtx", "1.7", SimpleNamespace(ComputeCapability=SimpleNamespace(
        __members__={"NONE": 0, "CURRENT": 1, "SM75": 2, "SM86": 3, "SM120": 4}))
)  # fmt: skip
_TRT_10_3 = TrtLibrary("tensorrt", "10.3", SimpleNamespace(HardwareCompatibilityLevel=SimpleNamespace(AMPERE_PLUS=1)))


def test_only_rtx_compiles_ahead_of_time() -> None:
    assert known_targets(_RTX) == ("sm75", "sm86", "sm120")
    assert known_targets(_TRT_10_3) == ()


@pytest.mark.parametrize(
    ("library", "options"),
    [
        (_RTX, {}),
        (_RTX, {"targets": ("sm86", "sm120")}),
        (_RTX, {"targets": ("current",)}),
        (_RTX, {"workspace_bytes": 1}),
        (_TRT_10_3, {"optimization_level": 5, "version_compatible": True, "hardware_compatible": AMPERE_PLUS}),
    ],
)
def test_options_that_a_backend_knows(library: TrtLibrary, options: dict[str, Any]) -> None:
    check_options(library, BuildOptions(**options))


@pytest.mark.parametrize(
    ("library", "options", "says"),
    [
        (_RTX, {"optimization_level": 0}, "--optimization-level means nothing to tensorrt-rtx 1.7."),
        (_RTX, {"hardware_compatible": AMPERE_PLUS}, "--hardware-compatible means nothing"),
        (_RTX, {"version_compatible": True}, "--version-compatible means nothing"),
        (_RTX, {"targets": ("sm86", "none")}, "--targets 'none' is not known to tensorrt-rtx 1.7."),
        (_RTX, {"targets": ("current", "sm86")}, "--targets current stands alone."),
        (_TRT_10_3, {"targets": ("sm86",)}, "--targets means nothing to tensorrt 10.3."),
        (_TRT_10_3, {"hardware_compatible": SAME_COMPUTE_CAPABILITY}, "has no hardware compatibility 'same-compute-"),
    ],
)
def test_options_that_a_backend_would_ignore_or_refuse(
    library: TrtLibrary, options: dict[str, Any], says: str
) -> None:  # fmt: skip
    with pytest.raises(UsageError) as caught:
        check_options(library, BuildOptions(**options))
    assert says in caught.value.message


def test_a_timing_cache_is_tensorrt_s(tmp_path: Path) -> None:
    check_options(_TRT_10_3, BuildOptions(), tmp_path / "cache")
    with pytest.raises(UsageError, match="--timing-cache means nothing to tensorrt-rtx"):
        check_options(_RTX, BuildOptions(), tmp_path / "cache")


@pytest.mark.parametrize(
    ("reason", "hint"),
    [
        ("OutOfMemory (Requested size was 5 bytes.)", "give more with --workspace"),
        ("no tactics to implement the operation within workspace limit", "give more with --workspace"),
        ("Cuda Runtime (out of memory)", "give less --workspace or a smaller --max-batch; on a Jetson, add swap"),
        ("Cannot compile operation 'x' for Turing (SM75): FP32 GEMM", "--fp16"),
        ("Cuda Runtime (no device)", "edgetune doctor"),
        ("the graph is odd", ""),
    ],
)
def test_the_next_step_after_a_reason(reason: str, hint: str) -> None:
    assert hint in hint_for(reason)
    assert bool(hint_for(reason)) == bool(hint)


@pytest.fixture(autouse=True)
def no_logger_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process has one logger a library; these tests leave none of theirs behind."""
    monkeypatch.setattr(trt_library, "_loggers", {})


class _Logger:
    def __init__(self) -> None:
        """The library's own base class takes nothing."""


def _builder(name: str, layer_list: str, dump: str = "") -> tuple[EngineBuilder, LogRecorder, Any]:
    """A builder over a library whose engines tell this list, and whose log has this dump."""
    module = mock.MagicMock(ILogger=_Logger)
    inspector = module.Runtime().deserialize_cuda_engine().create_engine_inspector()
    inspector.get_engine_information.return_value = layer_list
    log = LogRecorder()
    builder = EngineBuilder(TrtLibrary(name, "1", module), log, 1)
    log("VERBOSE", dump)
    return builder, log, module


_DUMP = (
    "Layers:\nName: conv1, LayerType: CaskConvolution, Inputs: [ { Name: x, Datatype: Half }], Constants: [], "
    "Outputs: [ { Name: y, Datatype: Half }], TacticName: t, StreamId: 0, Metadata: [ONNX Layer: conv1]"
)
_JSON = (
    '{"Layers": [{"Name": "conv1", "LayerType": "CaskConvolution", "Inputs": [{"Datatype": "Int8"}], "Outputs": []}]}'
)
_PROFILE = InputProfile("image", (1, 4), (2, 4), (8, 4))


def test_tensorrt_is_asked_through_its_inspector_whatever_it_logs() -> None:
    builder, _, module = _builder("tensorrt", _JSON, _DUMP)
    (layer,) = builder.layers(b"engine", BuildOptions(), [_PROFILE])
    assert layer.inputs == ("Int8",)
    engine = module.Runtime().deserialize_cuda_engine()
    engine.create_execution_context().set_input_shape.assert_called_once_with("image", (2, 4))
    assert engine.create_engine_inspector().execution_context is engine.create_execution_context()


@pytest.mark.parametrize("allowed", [True, False])
def test_only_a_version_compatible_engine_may_bring_code(allowed: bool) -> None:
    builder, _, module = _builder("tensorrt", _JSON)
    builder.layers(b"engine", BuildOptions(version_compatible=allowed), [])
    assert (module.Runtime().engine_host_code_allowed is True) == allowed


def test_an_engine_that_its_builder_cannot_load_is_an_error() -> None:
    builder, log, module = _builder("tensorrt", _JSON)
    module.Runtime().deserialize_cuda_engine.return_value = None
    log("ERROR", "no such kernel")
    with pytest.raises(EngineError, match="cannot load the engine that it built: no such kernel"):
        builder.layers(b"engine", BuildOptions(), [])


@pytest.mark.parametrize(("name", "told"), [("tensorrt", "[]"), ("tensorrt-rtx", "")])
def test_a_list_that_cannot_be_read_is_a_warning_and_proves_nothing(name: str, told: str) -> None:
    builder, log, _ = _builder(name, told)
    assert builder.layers(b"engine", BuildOptions(), []) == ()
    assert len(log.warnings) == 1

"""Options that a backend does not know, and the next step after its reasons. No library is loaded."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from edgetune.core.engine_record import AMPERE_PLUS, SAME_COMPUTE_CAPABILITY, BuildOptions
from edgetune.core.errors import UsageError
from edgetune.engine.backend import check_options, hint_for, known_targets
from edgetune.runners.trt_library import TrtLibrary

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
        ("OutOfMemory (Requested size was 5 bytes.)", "--workspace"),
        ("no tactics to implement the operation within workspace limit", "--workspace"),
        ("Cannot compile operation 'x' for Turing (SM75): FP32 GEMM", "--fp16"),
        ("Cuda Runtime (no device)", "edgetune doctor"),
        ("the graph is odd", ""),
    ],
)
def test_the_next_step_after_a_reason(reason: str, hint: str) -> None:
    assert hint in hint_for(reason)
    assert bool(hint_for(reason)) == bool(hint)

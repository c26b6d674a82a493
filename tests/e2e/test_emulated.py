"""INT8 on a CPU without VNNI: qemu's Haswell gives the golden logits, and would not by itself."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import numpy as np
import pytest

from benchmarks.emulated import PLAIN, SHIPPED, Answers, Machine, aarch64, ask, haswell
from edgetune.core.bundle import load_bundle
from edgetune.core.golden import load_golden

INT8 = "model.int8.cpu-x86.onnx"
SYSROOT = "EDGETUNE_AARCH64_SYSROOT"


def _golden_drift(bundle_path: Path, machine: Machine, sums: str) -> tuple[Answers, float]:
    """The answers for the golden images, and their largest difference to the golden logits, whose span is 1."""
    golden, _ = load_golden(load_bundle(bundle_path))
    answers = ask(machine, bundle_path / INT8, golden.pixels, sums)
    expected = golden.logits[INT8]
    return answers, float(np.abs(answers.logits - expected).max() / np.ptp(expected))


@pytest.mark.skipif(platform.machine() != "x86_64", reason="this Python runs under qemu-x86_64 only on x86")
def test_int8_is_right_on_an_x86_without_vnni(small_bundle: Path) -> None:
    machine = haswell()
    if machine.missing:
        pytest.skip(machine.missing)
    plain, drift = _golden_drift(small_bundle, machine, PLAIN)
    assert plain.saturates
    assert plain.self_test == "FAIL"
    assert drift > 0.1
    shipped, drift = _golden_drift(small_bundle, machine, SHIPPED)
    assert shipped.self_test == "ok"
    assert drift < 0.01


@pytest.mark.parametrize("cpu", ["cortex-a72", "max"])
def test_int8_is_right_on_arm_with_and_without_dot_products(small_bundle: Path, cpu: str) -> None:
    if SYSROOT not in os.environ:
        pytest.skip(f"{SYSROOT} names no folder made by benchmarks/aarch64_sysroot.sh")
    machine = aarch64(Path(os.environ[SYSROOT]), cpu)
    assert machine.missing == ""
    answers, drift = _golden_drift(small_bundle, machine, SHIPPED)
    assert not answers.saturates
    assert answers.self_test == "ok"
    assert drift < 0.01

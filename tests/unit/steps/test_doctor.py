from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from edgetune.core.engine_record import TENSORRT, TENSORRT_RTX
from edgetune.runners.cuda import GpuIdentity
from edgetune.steps import doctor as step
from edgetune.steps.doctor import Finding, Jetson, backend_versions, doctor, find_jetson

RELEASE = "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64, DATE: Wed Jan  8 2025\n"
ORIN = Jetson("NVIDIA Jetson AGX Orin Developer Kit", "36.4.3", "6.2+b77")
GPU = GpuIdentity("Orin", "8.7", "12060", 65_890_271_232)


def package(_: Sequence[str]) -> tuple[int, str] | None:
    return 0, "6.2+b77"


def no_package(_: Sequence[str]) -> tuple[int, str] | None:
    return 1, "dpkg-query: no packages found matching nvidia-jetpack\n"


def find(name: str) -> Finding:
    return next(finding for finding in doctor().findings if finding.name == name)


@pytest.fixture
def jetson_files(tmp_path: Path) -> Path:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/nv_tegra_release").write_text(RELEASE)
    (tmp_path / "proc/device-tree").mkdir(parents=True)
    (tmp_path / "proc/device-tree/model").write_text("NVIDIA Jetson AGX Orin Developer Kit\0")
    return tmp_path


def test_a_jetson_is_known_by_what_jetpack_leaves(jetson_files: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    assert find_jetson(jetson_files, package) == ORIN
    assert find_jetson(jetson_files, no_package) == Jetson(ORIN.model, "36.4.3", None)
    (jetson_files / "proc/device-tree/model").unlink()
    (jetson_files / "etc/nv_tegra_release").write_text("something else\n")
    assert find_jetson(jetson_files, lambda _: None) == Jetson(None, "unknown", None)
    assert find_jetson(tmp_path_factory.mktemp("desktop"), package) is None


def test_a_jetson_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step, "find_jetson", lambda: ORIN)
    assert find("Jetson").value == "NVIDIA Jetson AGX Orin Developer Kit, Jetson Linux 36.4.3, JetPack 6.2+b77"


@pytest.mark.parametrize(
    ("jetson", "is_environment", "advice"),
    [
        (ORIN, True, "python3 -m venv --system-site-packages"),
        (ORIN, False, "python3-libnvinfer"),
        (None, True, "pip install 'edgetune[tensorrt]'"),
    ],
)
def test_where_tensorrt_is_missing_the_way_to_it_is_told(
    monkeypatch: pytest.MonkeyPatch, jetson: Jetson | None, is_environment: bool, advice: str
) -> None:
    monkeypatch.setattr(step, "find_jetson", lambda: jetson)
    monkeypatch.setattr(step, "installed_backends", lambda: ())
    monkeypatch.setattr(sys, "base_prefix", "/elsewhere" if is_environment else sys.prefix)
    missing = find("TensorRT")
    assert (missing.value, missing.ok) == ("none", None)
    assert advice in missing.advice


def test_both_backends_are_named_with_their_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step, "installed_backends", lambda: (TENSORRT, TENSORRT_RTX))
    monkeypatch.setattr(step, "installed_version", {"tensorrt-cu12-bindings": "10.3.0"}.get)
    assert backend_versions() == {TENSORRT: "10.3.0", TENSORRT_RTX: None}
    monkeypatch.setattr(step, "ort_version", lambda: None)
    assert (find("TensorRT").value, find("TensorRT").ok) == ("10.3.0", True)
    assert find("TensorRT-RTX").value == "installed, of an unknown version"


def test_one_backend_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step, "installed_backends", lambda: (TENSORRT_RTX,))
    assert find("TensorRT") == Finding("TensorRT", "none", None, "")


def test_the_driver_is_asked_where_nvidia_smi_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    monkeypatch.setattr(step, "gpu_identity", lambda: GPU)
    assert find("NVIDIA GPU") == Finding("NVIDIA GPU", "Orin, 8.7, 12060, 62837 MiB", True, "")
    monkeypatch.setattr(step, "gpu_identity", lambda: None)
    assert find("NVIDIA GPU").value == "none (no nvidia-smi, no driver)"


@pytest.mark.parametrize(("gpu", "ok"), [(GPU, True), (None, False)])
def test_a_gpu_that_cuda_does_not_see_is_a_problem(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, gpu: GpuIdentity | None, ok: bool
) -> None:
    smi = tmp_path / "nvidia-smi"
    smi.write_text("#!/bin/sh\necho 'NVIDIA RTX A4000, 8.6, 580.65.06, 16376 MiB'\n")
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(step, "gpu_identity", lambda: gpu)
    found = find("NVIDIA GPU")
    assert (found.value, found.ok) == ("NVIDIA RTX A4000, 8.6, 580.65.06, 16376 MiB", ok)
    assert ("CUDA_VISIBLE_DEVICES" in found.advice) is not ok


def test_the_engines_of_the_cache_are_counted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("EDGETUNE_CACHE", str(tmp_path))
    assert find("engine cache").value == f"{tmp_path / 'engines'}, none"
    for name, size in (("a", 1_500_000), ("b", 600_000)):
        (tmp_path / "engines" / name).mkdir(parents=True)
        (tmp_path / "engines" / name / "model.engine").write_bytes(bytes(size))
    assert find("engine cache").value == f"{tmp_path / 'engines'}, 2 engines, 2.1 MB"

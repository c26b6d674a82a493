from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from edgetune.core.engine_record import TENSORRT, TENSORRT_RTX
from edgetune.runners import ort_probe
from edgetune.runners.cuda import GpuIdentity
from edgetune.runners.ort_probe import ProviderFinding
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


@pytest.mark.parametrize(("gpu", "cuda_ok"), [(GPU, False), (None, None)])
def test_providers_for_gpus_are_tried_where_they_are_offered(
    monkeypatch: pytest.MonkeyPatch, gpu: GpuIdentity | None, cuda_ok: bool | None
) -> None:
    found = {
        "cuda": ProviderFinding("cuda", False, "libcuda.so.1 cannot be loaded", "install the NVIDIA driver"),
        "tensorrt-ep": ProviderFinding("tensorrt-ep", False, "libnvinfer.so.10 cannot be loaded", "pip install it"),
        "tensorrt-rtx-ep": ProviderFinding("tensorrt-rtx-ep", True, "onnxruntime TensorRT-RTX"),
    }
    monkeypatch.setattr(step, "gpu_identity", lambda: gpu)
    monkeypatch.setattr(step, "offered_providers", lambda: tuple(found))
    monkeypatch.setattr(step, "probe_providers", lambda names: tuple(found[name] for name in names))
    assert [finding for finding in doctor().findings if finding.name.startswith("runner ")] == [
        Finding("runner cuda", "not usable: libcuda.so.1 cannot be loaded", cuda_ok, "install the NVIDIA driver"),
        Finding("runner tensorrt-ep", "not usable: libnvinfer.so.10 cannot be loaded", None, "pip install it"),
        Finding("runner tensorrt-rtx-ep", "usable: onnxruntime TensorRT-RTX", True, ""),
    ]


def test_without_a_provider_for_gpus_no_process_is_started(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_process(*_: object, **__: object) -> None:
        raise AssertionError("doctor started a process")

    monkeypatch.setattr(ort_probe, "available_providers", lambda: ("AzureExecutionProvider", "CPUExecutionProvider"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    monkeypatch.setattr(shutil, "which", lambda _: None)
    monkeypatch.setattr(subprocess, "run", no_process)
    assert [finding for finding in doctor().findings if finding.name.startswith("runner ")] == []


def test_a_provider_is_tried_in_a_process_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU stands in for a GPU: it is the one that starts everywhere."""
    monkeypatch.setattr(step, "offered_providers", lambda: ("cpu",))
    assert find("runner cpu") == Finding("runner cpu", "usable: onnxruntime CPU", True, "")


def test_the_engines_of_the_cache_are_counted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("EDGETUNE_CACHE", str(tmp_path))
    assert find("engine cache").value == f"{tmp_path / 'engines'}, none"
    for name, size in (("a", 1_500_000), ("b", 600_000)):
        (tmp_path / "engines" / name).mkdir(parents=True)
        (tmp_path / "engines" / name / "model.engine").write_bytes(bytes(size))
    assert find("engine cache").value == f"{tmp_path / 'engines'}, 2 engines, 2.1 MB"
    elsewhere = doctor(tmp_path / "elsewhere").findings[-1]
    assert (elsewhere.name, elsewhere.value) == ("engine cache", f"{tmp_path / 'elsewhere'}, none")

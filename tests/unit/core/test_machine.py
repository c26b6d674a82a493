from __future__ import annotations

import os
from pathlib import Path

import pytest

from edgetune.core import machine

X86 = "processor\t: 0\nmodel name\t: A Fast CPU @ 3 GHz\nflags\t\t: fpu avx2 avx512_vnni\n\nmodel name\t: B\n"
ARM = "processor\t: 0\nFeatures\t: fp asimd asimddp\n\nModel\t\t: A Small Board\n"


@pytest.mark.parametrize(
    ("cpu_max", "expected"),
    [
        ("max 100000\n", 8),
        ("150000 100000\n", 2),
        ("50000 100000\n", 1),
        ("800000 100000\n", 8),
        ("6400000 100000\n", 8),
        ("", 8),
        (None, 8),
    ],
    ids=["no quota", "one and a half", "half", "all", "more than all", "empty", "no cgroup"],
)
def test_the_quota_bounds_the_cpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cpu_max: str | None, expected: int
) -> None:
    path = tmp_path / "cpu.max"
    if cpu_max is not None:
        path.write_text(cpu_max)
    monkeypatch.setattr(machine, "_CGROUP_CPU_MAX", path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    assert machine.usable_cpus() == expected


@pytest.mark.parametrize(
    ("cpuinfo", "name", "flags", "has_dot_product"),
    [
        (X86, "A Fast CPU @ 3 GHz", {"fpu", "avx2", "avx512_vnni"}, True),
        (X86.replace("avx512_vnni", "avx_vnni"), "A Fast CPU @ 3 GHz", {"fpu", "avx2", "avx_vnni"}, True),
        (X86.replace(" avx512_vnni", ""), "A Fast CPU @ 3 GHz", {"fpu", "avx2"}, False),
        (ARM, "A Small Board", {"fp", "asimd", "asimddp"}, True),
    ],
    ids=["AVX-512 VNNI", "AVX VNNI", "AVX2", "ARM"],
)
def test_the_cpu_is_read_from_the_kernel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cpuinfo: str, name: str, flags: set[str], has_dot_product: bool
) -> None:
    path = tmp_path / "cpuinfo"
    path.write_text(cpuinfo)
    monkeypatch.setattr(machine, "_CPUINFO", path)
    assert machine.cpu_name() == name
    assert machine.cpu_flags() == flags
    assert machine.has_int8_dot_product() is has_dot_product


def test_a_machine_without_cpuinfo_has_a_name_and_no_flags(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_CPUINFO", tmp_path / "gone")
    assert machine.cpu_name() != ""
    assert machine.cpu_flags() == frozenset()
    assert machine.has_int8_dot_product() is False


@pytest.mark.parametrize(
    ("name", "x86", "arm64"),
    [("x86_64", True, False), ("AMD64", True, False), ("aarch64", False, True), ("arm64", False, True),
     ("armv7l", False, False)],
)  # fmt: skip
def test_the_architecture_has_many_names(monkeypatch: pytest.MonkeyPatch, name: str, x86: bool, arm64: bool) -> None:
    monkeypatch.setattr("platform.machine", lambda: name)
    assert (machine.is_x86(), machine.is_arm64()) == (x86, arm64)


def test_peak_memory_is_in_bytes() -> None:
    """An interpreter with numpy takes tens of megabytes, and no test takes a terabyte."""
    assert 10_000_000 < machine.peak_memory_bytes() < 10**12

"""What this machine offers a process: usable CPUs, instruction sets, memory."""

from __future__ import annotations

import math
import os
import platform
from pathlib import Path

_CGROUP_CPU_MAX = Path("/sys/fs/cgroup/cpu.max")
_CGROUP_MEMORY_MAX = Path("/sys/fs/cgroup/memory.max")
_STATUS = Path("/proc/self/status")
_CPUINFO = Path("/proc/cpuinfo")


def usable_cpus() -> int:
    """CPUs this process may use: its affinity mask, bounded by the cgroup's quota (rounded up)."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = _CGROUP_CPU_MAX.read_text().split()
        return max(1, min(count, math.ceil(int(quota) / int(period))))
    except (OSError, ValueError, ZeroDivisionError):
        return count  # no cgroup, or its quota is "max"


def usable_memory_bytes() -> int:
    """Memory this process may use: the machine's, bounded by the cgroup's limit."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 1 << 30
    try:
        return min(total, int(_CGROUP_MEMORY_MAX.read_text()))
    except (OSError, ValueError):
        return total  # no cgroup, or its limit is "max"


def _cpuinfo_field(*names: str) -> str:
    try:
        lines = _CPUINFO.read_text(errors="replace").splitlines()
    except OSError:
        return ""
    for line in lines:
        key, _, value = line.partition(":")
        if key.strip() in names:
            return value.strip()
    return ""


def cpu_name() -> str:
    return _cpuinfo_field("model name", "Model") or platform.processor() or platform.machine()


def cpu_flags() -> frozenset[str]:
    """The kernel's names of instruction sets, such as `avx2`, `avx512_vnni`, `avx_vnni`, `asimddp`."""
    return frozenset(_cpuinfo_field("flags", "Features").split())


def is_x86() -> bool:
    return platform.machine().lower() in {"x86_64", "amd64"}


def is_arm64() -> bool:
    return platform.machine().lower() in {"aarch64", "arm64"}


def has_int8_dot_product() -> bool:
    """VNNI on x86, the dot-product extension on ARM: instructions that make INT8 faster than FP32.

    False where the flags cannot be read. Whether sums saturate without them is for the runner to find out.
    """
    return bool(cpu_flags() & {"avx512_vnni", "avx_vnni", "asimddp"})


def peak_memory_bytes() -> int:
    """The highest resident memory that this process has had so far.

    Linux carries `ru_maxrss` over from the process that started this one, so its own high-water mark is read there.
    """
    try:
        for line in _STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    import resource
    import sys

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024

"""Power mode, clocks, throttling and temperatures: what a latency depends on besides the hardware.

Read from Linux's sysfs and from NVIDIA's tools, none of which asks for more rights than it has. What a machine lacks,
or does not show to this user, is None.
"""

from __future__ import annotations

import itertools
import subprocess
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

Tool = Callable[[Sequence[str]], "tuple[int, str] | None"]

_TIMEOUT_S = 20
_CPU = "sys/devices/system/cpu"
_GPU_FIELDS = ("pstate", "clocks.sm", "clocks.max.sm", "clocks.mem", "power.draw", "power.limit", "temperature.gpu")
# The newer name first: nvidia-smi refuses a whole query for one field that it does not know.
_REASON_FIELDS = ("clocks_event_reasons.active", "clocks_throttle_reasons.active")
_COUNTERS = ("sw_power_cap", "sw_thermal_slowdown", "hw_thermal_slowdown", "hw_power_brake_slowdown")
# NVML's nvmlClocksEventReason* bits; those that say that the GPU could not run as fast as it was asked to.
_SLOWING = {
    0x04: "sw_power_cap", 0x08: "hw_slowdown", 0x20: "sw_thermal_slowdown", 0x40: "hw_thermal_slowdown",
    0x80: "hw_power_brake_slowdown",
}  # fmt: skip
_HARMLESS = {0x01: "gpu_idle", 0x02: "applications_clocks_setting", 0x10: "sync_boost", 0x100: "display_clock_setting"}


@dataclass(frozen=True)
class Temperature:
    zone: str
    celsius: float | None


@dataclass(frozen=True)
class Clock:
    """A CPU policy, or a device such as `17000000.gpu`; `lowest` and `highest` are what the governor may choose."""

    name: str
    governor: str | None
    current_mhz: float | None
    lowest_mhz: float | None
    highest_mhz: float | None


@dataclass(frozen=True)
class Cooling:
    """Something that the kernel slows down, or a fan that it speeds up; `state` 0 is not at all."""

    kind: str
    state: int | None
    max_state: int | None


@dataclass(frozen=True)
class GpuPower:
    """As nvidia-smi tells it. `clock_reasons` is what holds the clocks where they are, `limited_us` the microseconds
    that each limit has been in force since the driver was loaded.
    """

    performance_state: str | None
    sm_clock_mhz: float | None
    max_sm_clock_mhz: float | None
    memory_clock_mhz: float | None
    power_draw_w: float | None
    power_limit_w: float | None
    temperature_c: float | None
    clock_reasons: tuple[str, ...] | None
    limited_us: dict[str, int] | None


@dataclass(frozen=True)
class PowerState:
    """`power_mode` is nvpmodel's, `jetson_clocks` the lines that it shows to root; `counters` count events since boot
    in which the processor was slowed down.
    """

    power_mode: str | None
    power_mode_id: int | None
    jetson_clocks: tuple[str, ...] | None
    cpu_clocks: tuple[Clock, ...] | None
    device_clocks: tuple[Clock, ...] | None
    temperatures: tuple[Temperature, ...] | None
    cooling: tuple[Cooling, ...] | None
    counters: dict[str, int] | None
    gpus: tuple[GpuPower, ...] | None


def run_tool(command: Sequence[str]) -> tuple[int, str] | None:
    """A tool's exit status and what it wrote to stdout; None where it is missing or does not end."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=_TIMEOUT_S, check=False,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.returncode, done.stdout


def read_power_state(root: Path = Path("/"), tool: Tool = run_tool) -> PowerState:
    """Takes well under a second, and changes nothing."""
    mode, mode_id = _power_mode(tool)
    return PowerState(
        power_mode=mode,
        power_mode_id=mode_id,
        jetson_clocks=_jetson_clocks(tool),
        cpu_clocks=_cpu_clocks(root) or None,
        device_clocks=_device_clocks(root) or None,
        temperatures=_temperatures(root) or None,
        cooling=_cooling(root) or None,
        counters=_counters(root) or None,
        gpus=_gpus(tool) or None,
    )


def slowdowns(before: PowerState, after: PowerState) -> tuple[str, ...]:
    """One sentence for each sign that the machine was slowed down at either time or between the two."""
    found = []
    for when, state in (("before", before), ("after", after)):
        for index, gpu in enumerate(state.gpus or ()):
            slowing = [reason for reason in gpu.clock_reasons or () if reason in _SLOWING.values()]
            found += [f"GPU {index} was limited by {reason} {when} the measurements" for reason in slowing]
        active = [part for part in state.cooling or () if (part.state or 0) > 0 and "fan" not in part.kind.lower()]
        found += [f"{part.kind} was slowed down to step {part.state} {when} the measurements" for part in active]
    for name, count in _growth(before.counters, after.counters).items():
        found.append(f"{name} rose by {count} during the measurements")
    for index, (first, last) in enumerate(zip(before.gpus or (), after.gpus or (), strict=False)):
        for name, spent in _growth(first.limited_us, last.limited_us).items():
            found.append(f"GPU {index} was limited by {name} for {spent / 1e6:.2f} s during the measurements")
    return tuple(found)


def _growth(before: dict[str, int] | None, after: dict[str, int] | None) -> dict[str, int]:
    rises = {name: count - (before or {}).get(name, count) for name, count in (after or {}).items()}
    return {name: rise for name, rise in rises.items() if rise > 0}


def _power_mode(tool: Tool) -> tuple[str | None, int | None]:
    """The tool prints "NV Power Mode: NAME" and the number below; without root also errors, and then it fails."""
    answer = tool(["nvpmodel", "-q"])
    lines = answer[1].splitlines() if answer is not None else []
    for line, below in itertools.zip_longest(lines, lines[1:], fillvalue=""):
        _, found, name = line.partition("NV Power Mode:")
        if found:
            return name.strip() or None, int(below) if below.strip().isdigit() else None
    return None, None


def _jetson_clocks(tool: Tool) -> tuple[str, ...] | None:
    answer = tool(["jetson_clocks", "--show"])
    if answer is None or answer[0] != 0:
        return None
    return tuple(line.strip() for line in answer[1].splitlines() if line.strip()) or None


def _text(path: Path) -> str | None:
    """A sysfs file's content; zones and devices that are switched off refuse to be read."""
    try:
        return path.read_text(errors="replace").strip() or None
    except OSError:
        return None


def _number(path: Path) -> int | None:
    return _int(_text(path))


def _int(text: str | None) -> int | None:
    try:
        return int(text or "")
    except ValueError:
        return None


def _scaled(path: Path, unit: float) -> float | None:
    number = _number(path)
    return None if number is None else number / unit


def _cpu_clocks(root: Path) -> tuple[Clock, ...]:
    """The kernel counts CPU frequencies in kHz."""
    return tuple(
        Clock(
            folder.name,
            _text(folder / "scaling_governor"),
            _scaled(folder / "scaling_cur_freq", 1e3),
            _scaled(folder / "scaling_min_freq", 1e3),
            _scaled(folder / "scaling_max_freq", 1e3),
        )
        for folder in _sorted(root, f"{_CPU}/cpufreq/policy*")
    )


def _device_clocks(root: Path) -> tuple[Clock, ...]:
    """The kernel counts other devices' frequencies in Hz; a Jetson's GPU is one of them."""
    return tuple(
        Clock(
            folder.name,
            _text(folder / "governor"),
            _scaled(folder / "cur_freq", 1e6),
            _scaled(folder / "min_freq", 1e6),
            _scaled(folder / "max_freq", 1e6),
        )
        for folder in _sorted(root, "sys/class/devfreq/*")
    )


def _temperatures(root: Path) -> tuple[Temperature, ...]:
    return tuple(
        Temperature(_text(folder / "type") or folder.name, _scaled(folder / "temp", 1e3))
        for folder in _sorted(root, "sys/class/thermal/thermal_zone*")
    )


def _cooling(root: Path) -> tuple[Cooling, ...]:
    return tuple(
        Cooling(_text(folder / "type") or folder.name, _number(folder / "cur_state"), _number(folder / "max_state"))
        for folder in _sorted(root, "sys/class/thermal/cooling_device*")
    )


def _counters(root: Path) -> dict[str, int]:
    """Intel's thermal throttling, and the over-current events of a Jetson; the same counter of all CPUs is added up."""
    total: Counter[str] = Counter()
    for pattern in (f"{_CPU}/cpu[0-9]*/thermal_throttle/*_throttle_count", "sys/class/hwmon/hwmon*/oc*_event_cnt"):
        for path in root.glob(pattern):
            total[path.name] += _number(path) or 0
    return dict(sorted(total.items()))


def _sorted(root: Path, pattern: str) -> list[Path]:
    """By the number at the end of the name, so that zone 10 comes after zone 9."""
    return sorted(root.glob(pattern), key=lambda path: (len(path.name), path.name))


def _gpus(tool: Tool) -> tuple[GpuPower, ...]:
    rows = _query(tool, _GPU_FIELDS)
    reasons = next((found for name in _REASON_FIELDS if (found := _query(tool, (name,)))), [])
    counters = _query(tool, tuple(f"clocks_event_reasons_counters.{name}" for name in _COUNTERS))
    gpus = []
    for index, (state, *figures) in enumerate(rows):
        mask = _reasons(reasons[index][0]) if index < len(reasons) else None
        spent = dict(zip(_COUNTERS, counters[index], strict=True)) if index < len(counters) else {}
        known = {name: number for name, text in spent.items() if (number := _int(text)) is not None}
        sm, max_sm, memory, draw, limit, heat = map(_figure, figures)
        name = state if state.startswith("P") else None
        gpus.append(GpuPower(name, sm, max_sm, memory, draw, limit, heat, mask, known or None))
    return tuple(gpus)


def _query(tool: Tool, fields: Sequence[str]) -> list[list[str]]:
    """One row for each GPU; none where there is no nvidia-smi, no GPU, or a field that it does not know."""
    answer = tool(["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"])
    if answer is None or answer[0] != 0:
        return []
    rows = [[cell.strip() for cell in line.split(",")] for line in answer[1].splitlines() if line.strip()]
    return [row for row in rows if len(row) == len(fields)]


def _figure(text: str) -> float | None:
    """A number, or None for "[N/A]" and "[Not Supported]"."""
    try:
        return float(text)
    except ValueError:
        return None


def _reasons(text: str) -> tuple[str, ...] | None:
    try:
        mask = int(text, 16)
    except ValueError:
        return None
    return tuple(name for bit, name in sorted({**_SLOWING, **_HARMLESS}.items()) if mask & bit)

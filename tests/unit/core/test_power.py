from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from edgetune.core import power
from edgetune.core.config import to_dict
from edgetune.core.files import pretty_json
from edgetune.core.power import (
    Clock,
    Cooling,
    GpuPower,
    PowerState,
    Temperature,
    Tool,
    read_power_state,
    run_tool,
    slowdowns,
)  # fmt: skip

NOTHING = PowerState(None, None, None, None, None, None, None, None, None)

# What an Orin prints to a user without root.
NVPMODEL = """NV Fan Mode:quiet
NV Power Mode: MODE_15W_DESKTOP
7
NVPM ERROR: Error opening /sys/kernel/nvpmodel_emc_cap/emc_iso_cap: 13
"""
STATE = "P0, 1950, 2100, 8001, 118.25, 140.00, 71\n"


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def tools(**answers: tuple[int, str]) -> Tool:
    """Tools by name; nvidia-smi's answers by the first field of the query."""

    def tool(command: Sequence[str]) -> tuple[int, str] | None:
        key = command[1].partition("=")[2].split(",")[0] if command[0] == "nvidia-smi" else command[0]
        return answers.get(key.replace(".", "_"))

    return tool


def gpu(**changes: Any) -> GpuPower:
    return dataclasses.replace(GpuPower("P0", 1950.0, 2100.0, 8001.0, 118.25, 140.0, 71.0, (), None), **changes)


def test_a_machine_that_shows_nothing_has_nothing(tmp_path: Path) -> None:
    assert read_power_state(tmp_path, tools()) == NOTHING


def test_this_machine_can_be_read() -> None:
    content = to_dict(read_power_state())
    assert list(content) == [field.name for field in dataclasses.fields(PowerState)]
    assert json.loads(pretty_json(content)) == content


def test_the_kernels_files_are_read_with_their_units(tmp_path: Path) -> None:
    root = write(
        tmp_path,
        {
            "sys/devices/system/cpu/cpufreq/policy10/scaling_governor": "performance\n",
            "sys/devices/system/cpu/cpufreq/policy4/scaling_governor": "schedutil\n",
            "sys/devices/system/cpu/cpufreq/policy4/scaling_cur_freq": "1497600\n",
            "sys/devices/system/cpu/cpufreq/policy4/scaling_min_freq": "115200\n",
            "sys/devices/system/cpu/cpufreq/policy4/scaling_max_freq": "2201600\n",
            "sys/class/devfreq/17000000.gpu/governor": "nvhost_podgov\n",
            "sys/class/devfreq/17000000.gpu/cur_freq": "306000000\n",
            "sys/class/devfreq/17000000.gpu/min_freq": "306000000\n",
            "sys/class/devfreq/17000000.gpu/max_freq": "1300500000\n",
            "sys/class/thermal/thermal_zone0/type": "cpu-thermal\n",
            "sys/class/thermal/thermal_zone0/temp": "48312\n",
            "sys/class/thermal/thermal_zone1/type": "cv0-thermal\n",
            "sys/class/thermal/cooling_device0/type": "pwm-fan\n",
            "sys/class/thermal/cooling_device0/cur_state": "2\n",
            "sys/class/thermal/cooling_device0/max_state": "10\n",
        },
    )
    state = read_power_state(root, tools())
    assert state.cpu_clocks == (
        Clock("policy4", "schedutil", 1497.6, 115.2, 2201.6),
        Clock("policy10", "performance", None, None, None),
    )
    assert state.device_clocks == (Clock("17000000.gpu", "nvhost_podgov", 306.0, 306.0, 1300.5),)
    assert state.temperatures == (Temperature("cpu-thermal", 48.312), Temperature("cv0-thermal", None))
    assert state.cooling == (Cooling("pwm-fan", 2, 10),)


def test_counters_of_all_cpus_are_added_up(tmp_path: Path) -> None:
    cpu = "sys/devices/system/cpu"
    root = write(
        tmp_path,
        {
            f"{cpu}/cpu0/thermal_throttle/core_throttle_count": "3\n",
            f"{cpu}/cpu11/thermal_throttle/core_throttle_count": "4\n",
            f"{cpu}/cpufreq/thermal_throttle/core_throttle_count": "100\n",
            "sys/class/hwmon/hwmon3/oc3_event_cnt": "37\n",
        },
    )
    assert read_power_state(root, tools()).counters == {"core_throttle_count": 7, "oc3_event_cnt": 37}


@pytest.mark.parametrize(
    ("answer", "mode", "number"),
    [
        ((0, "NV Power Mode: MAXN\n0\n"), "MAXN", 0),
        ((255, NVPMODEL), "MODE_15W_DESKTOP", 7),
        ((0, "NVPM VERB: Current mode: NV Power Mode: MODE_30W\n"), "MODE_30W", None),
        ((1, "NVPM ERROR: failed to read\n"), None, None),
        ((0, ""), None, None),
    ],
)  # fmt: skip
def test_the_power_mode_is_read_from_what_nvpmodel_prints(
    tmp_path: Path, answer: tuple[int, str], mode: str | None, number: int | None
) -> None:
    state = read_power_state(tmp_path, tools(nvpmodel=answer))
    assert (state.power_mode, state.power_mode_id) == (mode, number)


def test_jetson_clocks_is_left_out_where_it_asks_for_root(tmp_path: Path) -> None:
    assert read_power_state(tmp_path, tools(jetson_clocks=(1, "Error: not root\n"))).jetson_clocks is None
    shown = read_power_state(tmp_path, tools(jetson_clocks=(0, "cpu0: Online=1\n\n GPU MinFreq=306000000\n")))
    assert shown.jetson_clocks == ("cpu0: Online=1", "GPU MinFreq=306000000")


def test_a_gpu_is_read_with_the_names_of_a_new_driver(tmp_path: Path) -> None:
    tool = tools(
        pstate=(0, STATE),
        clocks_event_reasons_active=(0, "0x0000000000000005\n"),
        clocks_throttle_reasons_active=(0, "0x0000000000000080\n"),
        clocks_event_reasons_counters_sw_power_cap=(0, "6869275397, 0, 12, [N/A]\n"),
    )
    limited = {"sw_power_cap": 6869275397, "sw_thermal_slowdown": 0, "hw_thermal_slowdown": 12}
    assert read_power_state(tmp_path, tool).gpus == (
        gpu(clock_reasons=("gpu_idle", "sw_power_cap"), limited_us=limited),
    )


def test_a_gpu_is_read_with_the_names_of_an_old_driver(tmp_path: Path) -> None:
    refused = (2, 'Field "clocks_event_reasons.active" is not a valid field to query.\n')
    tool = tools(
        pstate=(0, STATE + "P8, 210, 2100, 405, [N/A], [Not Supported], 33\n"),
        clocks_event_reasons_active=refused,
        clocks_throttle_reasons_active=(0, "0x0000000000000000\n0x0000000000000048\n"),
        clocks_event_reasons_counters_sw_power_cap=refused,
    )
    second = GpuPower(
        "P8", 210.0, 2100.0, 405.0, None, None, 33.0, ("hw_slowdown", "hw_thermal_slowdown"), None
    )  # fmt: skip
    assert read_power_state(tmp_path, tool).gpus == (gpu(), second)


def test_a_gpu_that_tells_nothing_is_still_there(tmp_path: Path) -> None:
    tool = tools(pstate=(0, ", ".join(["[N/A]"] * 7)), clocks_event_reasons_active=(0, "[N/A]\n"))
    assert read_power_state(tmp_path, tool).gpus == (GpuPower(*[None] * 9),)


def test_nvidia_smi_without_a_gpu_gives_none(tmp_path: Path) -> None:
    assert read_power_state(tmp_path, tools(pstate=(6, "No devices were found\n"))).gpus is None


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ({}, {}, ()),
        ({"cooling": (Cooling("pwm-fan", 2, 10),)}, {"cooling": (Cooling("Processor", 0, 10),)}, ()),
        ({"cooling": (Cooling("Processor", -1, 10), Cooling("x", None, None))}, {}, ()),
        (
            {},
            {"cooling": (Cooling("cpufreq-cpu0", 3, 10),)},
            ("cpufreq-cpu0 was slowed down to step 3 after the measurements",),
        ),
        ({"counters": {"oc3_event_cnt": 5}}, {"counters": {"oc3_event_cnt": 5}}, ()),
        (
            {"counters": {"oc3_event_cnt": 5}},
            {"counters": {"oc3_event_cnt": 9}},
            ("oc3_event_cnt rose by 4 during the measurements",),
        ),
        ({}, {"counters": {"oc3_event_cnt": 9}}, ()),
        ({"gpus": (gpu(clock_reasons=("gpu_idle",)),)}, {"gpus": (gpu(clock_reasons=None),)}, ()),
        (
            {"gpus": (gpu(clock_reasons=("sw_power_cap",)),)},
            {"gpus": (gpu(),)},
            ("GPU 0 was limited by sw_power_cap before the measurements",),
        ),
        (
            {"gpus": (gpu(limited_us={"sw_power_cap": 1_000_000}),)},
            {"gpus": (gpu(limited_us={"sw_power_cap": 3_250_000}),)},
            ("GPU 0 was limited by sw_power_cap for 2.25 s during the measurements",),
        ),
    ],
)  # fmt: skip
def test_signs_of_slowing_down_are_told(
    before: dict[str, Any], after: dict[str, Any], expected: tuple[str, ...]
) -> None:
    assert slowdowns(dataclasses.replace(NOTHING, **before), dataclasses.replace(NOTHING, **after)) == expected


def test_a_tool_that_is_missing_or_hangs_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run_tool(["edgetune-has-no-such-tool"]) is None
    assert run_tool(["sh", "-c", "echo said; exit 3"]) == (3, "said\n")
    monkeypatch.setattr(power, "_TIMEOUT_S", 0.2)
    assert run_tool(["sleep", "5"]) is None
    refused = tmp_path / "refused"
    refused.write_text("#!/bin/sh\n")
    refused.chmod(0o644)
    assert run_tool([str(refused)]) is None

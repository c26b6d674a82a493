"""The gates of every precision: the defaults with their reasons, and those of a user's TOML file."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgetune.core.config import from_dict, read_toml, to_dict
from edgetune.core.errors import ConfigError
from edgetune.parity.gates import DEFAULT_MAX_DROP, Gate

# FP32 differs from PyTorch by rounding only: 105 dB and above measured on ONNX Runtime for all but two families of
# backbones (see `with_noise`), and a broken graph is below 60 dB.
_FP32 = Gate(min_sqnr_db=100.0, max_relative_diff=1e-4, min_agreement=1.0, max_drop=DEFAULT_MAX_DROP)
# TF32 keeps 10 bits of the mantissa: 2^-11 a product, 60 dB and above where errors do not add up.
_TF32 = Gate(min_sqnr_db=50.0, max_relative_diff=1e-2, min_agreement=0.99, max_drop=DEFAULT_MAX_DROP, tie_noise=3e-3)
# FP16 is 42 to 54 dB away by rounding alone (measured with every tensor rounded, and with PyTorch's own half
# precision); below 35 dB, where INT8 is, something else went wrong.
_FP16 = Gate(
    min_sqnr_db=35.0, min_agreement=0.98, max_drop=DEFAULT_MAX_DROP, max_kl=0.01, max_class_drop=0.05, tie_noise=0.01
)
# INT8's logits may move: 22 to 33 dB is what good graphs have, 18 what the usual tools make. It is held to labels,
# probabilities and classes. 5 % of noise, 26 dB, is what it is entitled to when near ties are told apart.
_INT8 = Gate(min_agreement=0.97, max_drop=DEFAULT_MAX_DROP, max_kl=0.05, max_class_drop=0.1, tie_noise=0.05)

# Against the nearest relative, which has the same weights: only the arithmetic differs.
_DEVICE_FP32 = Gate(min_sqnr_db=90.0, max_relative_diff=1e-4, min_agreement=1.0)
_DEVICE_FP16 = Gate(min_sqnr_db=40.0, min_agreement=0.98, tie_noise=0.01)
# Two right executions of one INT8 file differ where a value lies between two integers: by one step in every layer of
# the eight files measured, on less than one value of a thousand. Along a deep network such steps spread, at worst until
# the executions are two draws of INT8's own noise: 22 dB measured where INT8 is 24 dB from FP32.
_DEVICE_INT8 = Gate(min_sqnr_db=18.0, min_agreement=0.99, tie_noise=0.1, max_lsb=2.0)


@dataclass(frozen=True)
class DeviceGates:
    """For an artifact on a device against the same file computed by the book; `tf32` where FP32 runs as TF32."""

    fp32: Gate = _DEVICE_FP32
    tf32: Gate = _TF32
    fp16: Gate = _DEVICE_FP16
    int8: Gate = _DEVICE_INT8


@dataclass(frozen=True)
class GateSet:
    """For artifacts against PyTorch, by precision; and for the nearest rung, `device`. `gives_way` lets FP32's distance
    give way to the measured noise of float32.
    """

    fp32: Gate = _FP32
    tf32: Gate = _TF32
    fp16: Gate = _FP16
    int8: Gate = _INT8
    device: DeviceGates = DeviceGates()
    gives_way: bool = True

    def named(self, name: str) -> Gate:
        """Raises `ConfigError` for a precision that there is no gate for."""
        gates = {"fp32": self.fp32, "tf32": self.tf32, "fp16": self.fp16, "int8": self.int8}
        if name not in gates:
            raise ConfigError(f"there is no gate for {name!r}; there are {', '.join(gates)}.")
        return gates[name]

    def with_noise(self, noise_db: float | None) -> GateSet:
        """FP32's SQNR gives way where PyTorch's own float32 is hardly exact: to 20 dB below `noise_db`, its SQNR
        against float64, and to 80 dB at most. Networks whose features hardly differ between images are such: two right
        programs are then as far apart as each is from the truth, and a few images carry most of it. A limit that a user
        gave stays.
        """
        if noise_db is None or not self.gives_way:
            return self
        least = max(_LEAST_DB, noise_db - _NOISE_MARGIN_DB)
        device = dataclasses.replace(self.device, fp32=_at_most(self.device.fp32, least))
        return dataclasses.replace(self, fp32=_at_most(self.fp32, least), device=device)

    def with_max_drop(self, max_drop: float) -> GateSet:
        """The same gates with another accuracy budget for all precisions."""
        changed = {name: dataclasses.replace(self.named(name), max_drop=max_drop) for name in _NAMES}
        return dataclasses.replace(self, **changed)  # type: ignore[arg-type]


_NAMES = ("fp32", "tf32", "fp16", "int8")
# Runtimes approximate exponentials, so that they may be less exact than PyTorch: 14 dB measured on EfficientNet-B0.
_NOISE_MARGIN_DB, _LEAST_DB = 20.0, 80.0
DEFAULT_GATES = GateSet()


def _at_most(gate: Gate, sqnr_db: float) -> Gate:
    return gate if gate.min_sqnr_db is None else dataclasses.replace(gate, min_sqnr_db=min(gate.min_sqnr_db, sqnr_db))


def gate_for(precision: str, max_drop: float) -> Gate:
    """The default gate against PyTorch with an accuracy budget of `max_drop`, a share of images."""
    return DEFAULT_GATES.with_max_drop(max_drop).named(precision)


def load_gates(path: Path) -> GateSet:
    """Reads tables `[fp32]`, `[tf32]`, `[fp16]`, `[int8]`, and the same below `device.`; what is not there keeps its
    default, and `false` switches a rule off.

    Raises:
        ConfigError: the file is not TOML, or has an unknown key or a value that is no number.
    """
    tables = read_toml(path)
    merged = _merge(to_dict(DEFAULT_GATES), tables, str(path))
    gates = from_dict(GateSet, merged, str(path))
    if "min_sqnr_db" in tables.get("fp32", {}):
        gates = dataclasses.replace(gates, gives_way=False)
    for name in _NAMES:
        _check_numbers(gates.named(name), f"{path}: {name}")
        _check_numbers(getattr(gates.device, name), f"{path}: device.{name}")
    return gates


def _merge(defaults: dict[str, Any], given: Any, where: str) -> dict[str, Any]:
    """Unknown keys stay, for `from_dict` to name them."""
    if not isinstance(given, dict):
        raise ConfigError(f"{where} is {given!r}, expected a table.")
    merged = dict(defaults)
    for key, value in given.items():
        known = defaults.get(key)
        if isinstance(known, dict):
            merged[key] = _merge(known, value, f"{where}: {key}")
        else:
            merged[key] = None if value is False else value
    return merged


def _check_numbers(gate: Gate, where: str) -> None:
    for name, value in to_dict(gate).items():
        is_share = name in ("min_agreement", "max_drop", "max_class_drop")
        if value is not None and not (0.0 <= value <= (1.0 if is_share else 1e9)):
            raise ConfigError(f"{where}.{name} is {value}, expected a {'share from 0 to 1' if is_share else 'number'}.")

from __future__ import annotations

from pathlib import Path

import pytest

from edgetune.core.errors import ConfigError
from edgetune.parity.gate_set import DEFAULT_GATES, GateSet, load_gates


def _load(folder: Path, text: str) -> GateSet:
    path = folder / "gates.toml"
    path.write_text(text)
    return load_gates(path)


def test_an_empty_file_changes_nothing(tmp_path: Path) -> None:
    assert _load(tmp_path, "") == DEFAULT_GATES


def test_a_key_changes_one_rule_and_no_other(tmp_path: Path) -> None:
    gates = _load(tmp_path, "[int8]\nmax_drop = 0.02\n[device.int8]\nmax_lsb = 2\n")
    assert gates.int8.max_drop == 0.02
    assert gates.int8.min_agreement == DEFAULT_GATES.int8.min_agreement
    assert gates.device.int8.max_lsb == 2.0
    assert (gates.fp32, gates.device.fp32) == (DEFAULT_GATES.fp32, DEFAULT_GATES.device.fp32)


def test_false_switches_a_rule_off(tmp_path: Path) -> None:
    assert _load(tmp_path, "[fp16]\nmin_sqnr_db = false\n").fp16.min_sqnr_db is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[int4]\nmax_drop = 0.1", r"unknown keys \['int4'\]"),
        ("[int8]\nmax_dorp = 0.1", r"int8 has unknown keys \['max_dorp'\]"),
        ("[device.int8]\nlsb = 1", r"int8 has unknown keys \['lsb'\]"),
        ("[int8]\nmax_drop = '1 %'", r"max_drop is '1 %', expected"),
        ("[int8]\nmax_drop = true", r"max_drop is True, expected"),
        ("[int8]\nmax_drop = -0.1", r"int8\.max_drop is -0\.1, expected a share from 0 to 1"),
        ("[int8]\nmax_drop = 2", r"int8\.max_drop is 2\.0, expected a share"),
        ("[int8]\nmin_sqnr_db = nan", r"int8\.min_sqnr_db is nan, expected a number"),
        ("[device.fp16]\nmin_sqnr_db = inf", r"device\.fp16\.min_sqnr_db is inf"),
        ("[int8]\ntie_noise = false", r"tie_noise is None, expected"),
        ("int8 = 3", r"int8 is 3, expected a table"),
        ("[int8", r"no TOML file"),
        ("\x00", r"no TOML file"),
    ],
)
def test_what_is_no_gate_is_named(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        _load(tmp_path, text)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"gates\.toml is no TOML file that can be read"):
        load_gates(tmp_path / "gates.toml")


def test_text_that_is_no_utf8_is_refused(tmp_path: Path) -> None:
    (tmp_path / "gates.toml").write_bytes(b"# \xff\n")
    with pytest.raises(ConfigError, match="no TOML file"):
        load_gates(tmp_path / "gates.toml")


def test_another_budget_is_for_all_precisions() -> None:
    gates = DEFAULT_GATES.with_max_drop(0.03)
    assert {gates.named(name).max_drop for name in ("fp32", "tf32", "fp16", "int8")} == {0.03}
    assert gates.device == DEFAULT_GATES.device


def test_there_is_no_gate_for_an_unknown_precision() -> None:
    with pytest.raises(ConfigError, match=r"no gate for 'int4'; there are fp32, tf32, fp16, int8"):
        DEFAULT_GATES.named("int4")


@pytest.mark.parametrize(
    ("noise_db", "expected"), [(None, 100.0), (125.0, 100.0), (120.0, 100.0), (109.9, 89.9), (90.0, 80.0)]
)
def test_float32_is_not_held_to_more_than_it_can(noise_db: float | None, expected: float) -> None:
    gates = DEFAULT_GATES.with_noise(noise_db)
    assert gates.fp32.min_sqnr_db == pytest.approx(expected)
    assert gates.device.fp32.min_sqnr_db == pytest.approx(min(expected, 90.0))
    assert (gates.fp16, gates.int8, gates.fp32.min_agreement) == (DEFAULT_GATES.fp16, DEFAULT_GATES.int8, 1.0)


def test_a_limit_that_was_given_does_not_give_way(tmp_path: Path) -> None:
    assert _load(tmp_path, "[fp32]\nmin_sqnr_db = 120\n").with_noise(90.0).fp32.min_sqnr_db == 120.0
    assert _load(tmp_path, "[fp32]\nmax_drop = 0.1\n").with_noise(90.0).fp32.min_sqnr_db == 80.0


def test_a_rule_that_is_off_stays_off(tmp_path: Path) -> None:
    assert _load(tmp_path, "[fp32]\nmin_sqnr_db = false\n").with_noise(90.0).fp32.min_sqnr_db is None

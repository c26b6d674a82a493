"""What is kept of a verbose build log."""

from __future__ import annotations

import pytest

from edgetune.runners.trt_log import LogRecorder, plain


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        ("[builder.cpp::buildEngine::42] Error Code 2: OutOfMemory (5 bytes.)", "OutOfMemory (5 bytes.)"),
        ("IBuilder::build: Error Code 4: API Usage Error (no. In check at /_src/api.cpp:7)", "API Usage Error (no)"),
        ("two\n  lines.", "two lines"),
        ("conv 3. In parse at /a/b.cpp:12", "conv 3"),
        ("In 3 of 4 layers: no tactic", "In 3 of 4 layers: no tactic"),
        ("[conv1] is not supported", "[conv1] is not supported"),
        (".", "."),
    ],
)  # fmt: skip
def test_messages_lose_the_place_in_the_library(said: str, kept: str) -> None:
    assert plain(said) == kept


def test_errors_and_warnings_are_kept_apart_and_the_rest_is_dropped() -> None:
    log = LogRecorder()
    assert log.first_error() == "the library gave no reason"
    for severity in ("VERBOSE", "INFO", "WARNING", "ERROR", "INTERNAL_ERROR"):
        log(severity, f"a {severity.lower()}")
    assert log.errors == ["a error", "a internal_error"]
    assert log.warnings == ["a warning"]
    assert log.first_error() == "a error"
    assert (log.take_error(), log.take_error()) == ("a error", "")


@pytest.mark.parametrize(
    ("severity", "noise"),
    [
        ("INTERNAL_ERROR", "Thread context has not been set!"),
        ("ERROR", "[safe.cpp::catchCudaError::9] Error Code 1: Cuda Runtime (35)"),
        ("ERROR", "getHardwareCompatibilityLevel() is unsupported in TensorRT-RTX"),
    ],
)
def test_what_is_said_on_every_machine_without_a_gpu_is_noise(severity: str, noise: str) -> None:
    log = LogRecorder()
    log(severity, noise)
    log("ERROR", "the cause")
    assert log.errors == ["the cause"]


def test_the_list_of_layers_is_kept_whole_at_any_severity() -> None:
    log = LogRecorder()
    dump = "Layers:\nName: catchCudaError, LayerType: kgen"
    log("VERBOSE", dump)
    assert log.layer_dump == dump
    assert log.errors == log.warnings == []


def test_a_library_that_says_a_lot_does_not_fill_the_memory() -> None:
    log = LogRecorder()
    for index in range(1000):
        log("ERROR", f"error {index}")
        log("WARNING", f"warning {index}")
        log("WARNING", "again and again")
    assert len(log.errors) == len(log.warnings) == 50
    assert log.warnings.count("again and again") == 1
    assert log.first_error() == "error 0"

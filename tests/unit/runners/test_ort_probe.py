"""The probe really runs each provider, and survives whatever happens to it."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgetune.core.errors import MissingDependencyError
from edgetune.runners import ort_probe
from edgetune.runners.ort_probe import ProviderFinding, offered_providers, probe_providers, try_provider
from edgetune.runners.ort_providers import PROVIDERS
from edgetune.runners.ort_runner import OrtRunner


def test_the_cpu_is_usable_and_every_other_says_why_not() -> None:
    findings = probe_providers()
    assert tuple(finding.name for finding in findings) == PROVIDERS
    assert findings[0] == ProviderFinding("cpu", True, "onnxruntime CPU")
    for finding in findings[1:]:
        assert finding.reason
        assert finding.usable or finding.advice


@pytest.fixture
def offered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ort_probe, "available_providers", lambda: ("CUDAExecutionProvider", "CPUExecutionProvider"))


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("import os; os.kill(os.getpid(), 11)", r"its process crashed \(SIGSEGV\): no message"),
        ("import sys; sys.exit('no memory')", r"its process ended with exit code 1: no memory"),
        ("print('no answer')", r"its process ended with exit code 0: no message"),
        ("print('[1, 2]')", r"its process ended with exit code 0: no message"),
        ("import os; os.write(1, b'\\xff'); os.write(2, b'bad \\xff')", "exit code 0: bad \ufffd"),
        ("import time; time.sleep(60)", "no answer within 0.5 s"),
    ],
    ids=["crash", "exit", "nonsense", "other JSON", "no text", "hang"],
)
@pytest.mark.usefixtures("offered")
def test_a_provider_that_dies_or_hangs_is_a_finding(code: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real = subprocess.run

    def run(command: list[str], **options: Any) -> subprocess.CompletedProcess[bytes]:
        assert command[-1] == "cuda"
        return real([sys.executable, "-c", code], **options)

    monkeypatch.setattr(subprocess, "run", run)
    finding = ort_probe._probe("cuda", 0.5 if "sleep" in code else 30.0)
    assert not finding.usable
    assert __import__("re").search(words, finding.reason)


@pytest.mark.usefixtures("offered")
def test_a_process_that_cannot_be_started_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    (finding,) = probe_providers(["cuda"])
    assert finding == ProviderFinding(
        "cuda", False, "its process cannot be started: No such file or directory", "try again"
    )


def test_what_libraries_print_is_no_answer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    stand_in = tmp_path / "python"
    stand_in.write_text(
        """#!/bin/sh\necho '[TRT] hello'\necho '{"usable": true, "reason": "it runs", "advice": ""}'\n"""
    )
    stand_in.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(stand_in))
    assert probe_providers(["cpu"]) == (ProviderFinding("cpu", True, "it runs"),)


@pytest.mark.usefixtures("offered")
@pytest.mark.parametrize("has_plugin", [True, False])
def test_the_providers_that_are_installed(monkeypatch: pytest.MonkeyPatch, has_plugin: bool) -> None:
    spec = importlib.util.spec_from_loader("plugin", None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: spec if has_plugin else None)
    assert offered_providers() == ("cuda", *(["tensorrt-rtx-ep"] if has_plugin else []))


def test_without_onnxruntime_nothing_is_usable_and_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> tuple[str, ...]:
        raise MissingDependencyError("ONNX Runtime is not installed.", hint="pip install 'edgetune[cpu]'")

    monkeypatch.setattr(ort_probe, "available_providers", missing)
    assert offered_providers() == ()
    assert {finding.usable for finding in probe_providers()} == {False}
    assert {finding.advice for finding in probe_providers()} == {"pip install 'edgetune[cpu]'"}


def test_a_provider_that_computes_something_else_is_not_usable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OrtRunner, "infer", lambda *_: {"y": np.array([[0.0, 0.0, 0.5, np.nan]], np.float32)})
    finding = try_provider("cpu")
    assert not finding.usable
    assert "computes Relu as [[0.0, 0.0, 0.5, nan]]" in finding.reason

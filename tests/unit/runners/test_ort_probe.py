"""The probe really runs each provider, and survives whatever happens to it."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from edgetune.core.errors import MissingDependencyError
from edgetune.runners import ort_probe
from edgetune.runners.ort_probe import ProviderFinding, probe_providers, try_provider
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
        ("import os; os.kill(os.getpid(), 11)", r"its process died \(exit -11\): no message"),
        ("import sys; sys.exit('no memory')", r"its process died \(exit 1\): no memory"),
        ("print('no answer')", r"its process died \(exit 0\)"),
        ("import time; time.sleep(60)", "no answer within 0.5 s"),
    ],
    ids=["crash", "exit", "nonsense", "hang"],
)
@pytest.mark.usefixtures("offered")
def test_a_provider_that_dies_or_hangs_is_a_finding(code: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real = subprocess.run

    def run(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        assert command[-1] == "cuda"
        return real([sys.executable, "-c", code], **options)

    monkeypatch.setattr(subprocess, "run", run)
    finding = ort_probe._probe("cuda", 0.5 if "sleep" in code else 30.0)
    assert not finding.usable
    assert __import__("re").search(words, finding.reason)


def test_without_onnxruntime_nothing_is_usable_and_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> tuple[str, ...]:
        raise MissingDependencyError("ONNX Runtime is not installed.", hint="pip install 'edgetune[cpu]'")

    monkeypatch.setattr(ort_probe, "available_providers", missing)
    assert {finding.usable for finding in probe_providers()} == {False}
    assert {finding.advice for finding in probe_providers()} == {"pip install 'edgetune[cpu]'"}


def test_a_provider_that_computes_something_else_is_not_usable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OrtRunner, "infer", lambda *_: {"y": np.array([[0.0, 0.0, 0.5, np.nan]], np.float32)})
    finding = try_provider("cpu")
    assert not finding.usable
    assert "computes Relu as [[0.0, 0.0, 0.5, nan]]" in finding.reason

"""Which providers are usable here: each is tried on one Relu, in a process of its own that may die or hang."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edgetune.core.child import child_command, how_it_ended, last_words
from edgetune.core.errors import EdgetuneError
from edgetune.runners.ort_libraries import PLUGIN_MODULE, PLUGIN_PACKAGE
from edgetune.runners.ort_providers import CPU, ONE_RELU, PROVIDERS, EpChoice
from edgetune.runners.ort_runner import OrtRunner, available_providers

# TensorRT loads about 2 GB of libraries and builds an engine, on a Jetson from a slow disk.
_TIMEOUT_S = 90.0


@dataclass(frozen=True)
class ProviderFinding:
    """`reason` says what runs where it is usable, and else why not, with the next step in `advice`."""

    name: str
    usable: bool
    reason: str
    advice: str = ""


def probe_providers(names: Sequence[str] = PROVIDERS, timeout_s: float = _TIMEOUT_S) -> tuple[ProviderFinding, ...]:
    """One finding for each of `names`, which are of `PROVIDERS`, in that order; raises nothing."""
    return tuple(_probe(name, timeout_s) for name in names)


def offered_providers() -> tuple[str, ...]:
    """Those besides the CPU that are installed; whether they start here takes a probe to know."""
    return tuple(name for name in PROVIDERS if name != CPU and _find_absent(EpChoice(name)) is None)


def _probe(name: str, timeout_s: float) -> ProviderFinding:
    absent = _find_absent(EpChoice(name))
    if absent is not None:
        return absent
    command = child_command("edgetune.runners.ort_probe", name)
    try:
        done = subprocess.run(command, capture_output=True, timeout=timeout_s, check=False)
    except subprocess.TimeoutExpired:
        return ProviderFinding(name, False, f"no answer within {timeout_s:g} s", "check the driver")
    except OSError as error:
        return ProviderFinding(name, False, f"its process cannot be started: {error.strerror}", "try again")
    try:
        return ProviderFinding(name, **json.loads(done.stdout.splitlines()[-1]))
    except (ValueError, IndexError, TypeError):
        how, said = how_it_ended(done.returncode), last_words(done.stderr) or "no message"
        return ProviderFinding(name, False, f"its process {how}: {said}", "check the driver")


def _find_absent(ep: EpChoice) -> ProviderFinding | None:
    """What needs no process to be known: the provider is not installed."""
    try:
        offered = available_providers()
    except EdgetuneError as error:
        return ProviderFinding(ep.name, False, error.message, error.hint)
    if ep.is_plugin:
        if importlib.util.find_spec(PLUGIN_MODULE) is None:
            return ProviderFinding(
                ep.name, False, f"{PLUGIN_PACKAGE} is not installed", f"pip install {PLUGIN_PACKAGE}"
            )
    elif ep.ort_name not in offered:
        advice = "pip uninstall onnxruntime, then pip install 'edgetune[gpu]': never both"
        return ProviderFinding(ep.name, False, f"this ONNX Runtime has only {', '.join(offered)}", advice)
    return None


def try_provider(name: str) -> ProviderFinding:
    """Opens the provider in this process and compares one Relu with the answer. Raises nothing of edgetune's."""
    values = np.array([[-2.0, 0.0, 0.5, 3.0]], dtype=np.float32)
    try:
        with OrtRunner(ONE_RELU, threads=1, ep=EpChoice(name)) as runner:
            relu = runner.infer({"x": values})["y"]
    except EdgetuneError as error:
        return ProviderFinding(name, False, error.message, error.hint)
    if not np.array_equal(relu, [[0.0, 0.0, 0.5, 3.0]]):
        return ProviderFinding(name, False, f"{runner.name} computes Relu as {relu.tolist()}", "check the driver")
    return ProviderFinding(name, True, runner.name)


def main() -> None:
    """What the process does; libraries print before its answer, which is the last line."""
    found = try_provider(sys.argv[1])
    answer = json.dumps({"usable": found.usable, "reason": found.reason, "advice": found.advice})
    sys.stdout.write(f"\n{answer}\n")

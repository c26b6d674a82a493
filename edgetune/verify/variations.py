"""A bundle's artifact run otherwise, and INT8 against its own integer reference."""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgetune.core.bundle import FAIL, NOT_RUN, PASS, Artifact, Bundle
from edgetune.core.machine import usable_cpus
from edgetune.parity.gates import Gate, judge, tie_margin
from edgetune.parity.metrics import Comparison, compare_logits
from edgetune.parity.records import Rung, Variation
from edgetune.parity.variations import CPU_LIMITS, DEVICE_LIMITS, UNOPTIMISED, Measured, Subject, measure
from edgetune.runners.base import Runner
from edgetune.runners.choice import ENGINE, Choice, RunnerOptions
from edgetune.runners.from_bundle import open_runner
from edgetune.runners.ort_providers import CPU
from edgetune.runners.ort_runner import OrtRunner
from edgetune.verify.by_the_book import model_to_judge
from edgetune.verify.judging import arithmetic_of

INTEGER_REFERENCE = "onnxruntime CPU, unoptimised: the integer reference"
# The integers of every layer are compared, which is more than enough of them in a few images.
_LSB_IMAGES = 4


def variations_of(
    bundle: Bundle, choice: Choice, runner: Runner, images: npt.NDArray[np.uint8], options: RunnerOptions
) -> Measured:
    """Every variation that applies to an artifact on its open `runner`, on images uint8 `(N, H, W, 3)`.

    Raises:
        EdgetuneError: the artifact does not run, or an artifact of the CPU's cannot be read.
    """
    precision = choice.artifact.precision
    if choice.runner != CPU:
        arithmetic = arithmetic_of(precision, choice.runner)
        return measure(_device_subject(bundle, choice, runner, options), images, DEVICE_LIMITS[arithmetic])
    measured = measure(_cpu_subject(bundle, choice.artifact, runner, options), images, CPU_LIMITS[precision])
    if precision != "int8":
        return measured
    path = bundle.path / choice.artifact.name
    variations = tuple(
        _with_steps(each, path, images[:_LSB_IMAGES]) if each.name == UNOPTIMISED and each.verdict != NOT_RUN else each
        for each in measured.variations
    )
    return dataclasses.replace(measured, variations=variations)


def rung_of(measured: Measured, precision: str, gate: Gate) -> Rung | None:
    """INT8's kernels against the unoptimised graph of the same file, by the gate's distance, steps and labels, near
    ties apart. None where that was not measured: for other precisions, engines and providers.
    """
    found = [each for each in measured.variations if each.name == UNOPTIMISED]
    if precision != "int8" or not found:
        return None
    variation = found[0]
    if measured.unoptimised is None:
        return Rung(INTEGER_REFERENCE, 0, None, None, None, None, variation.verdict, (variation.reason,))
    comparison = compare_logits(measured.unoptimised, measured.plain, None)
    reasons = (*judge(_without_ties(comparison, gate), gate).reasons, *_judge_steps(variation.max_lsb, gate))
    return Rung(
        INTEGER_REFERENCE,
        comparison.images,
        variation.max_abs_diff,
        variation.sqnr_db,
        comparison.top1_agreement,
        variation.max_lsb,
        FAIL if reasons else PASS,
        reasons,
    )


def _without_ties(comparison: Comparison, gate: Gate) -> Comparison:
    """Labels that noise of an allowed size can turn do not count as other labels."""
    tie = tie_margin(comparison, gate)
    return dataclasses.replace(comparison, flip_margins=tuple(each for each in comparison.flip_margins if each > tie))


def _judge_steps(max_lsb: float | None, gate: Gate) -> tuple[str, ...]:
    if max_lsb is None or gate.max_lsb is None or max_lsb <= gate.max_lsb:
        return ()
    return (
        f"a layer's integers differ by up to {max_lsb:g} steps on the same input, expected at most {gate.max_lsb:g}",
    )


def _with_steps(variation: Variation, path: Path, images: npt.NDArray[np.uint8]) -> Variation:
    """Without onnx, on a device, the distance in dB stands alone."""
    if importlib.util.find_spec("onnx") is None:
        return variation
    from edgetune.graph.integer_layers import compare_integers

    steps = compare_integers(path, images)
    if steps is None:
        return variation
    told = f"{steps.share:.2g} of the integers differ, layer by layer; most in {steps.tensor}"
    reason = "; ".join(filter(None, (variation.reason, told)))
    return dataclasses.replace(variation, max_lsb=float(steps.max_lsb), reason=reason)


def _cpu_subject(bundle: Bundle, artifact: Artifact, runner: Runner, options: RunnerOptions) -> Subject:
    model = model_to_judge(bundle.path / artifact.name, artifact.precision)
    threads = options.threads or usable_cpus()
    return Subject(
        runner,
        reopen=functools.partial(OrtRunner, model, threads=threads),
        with_threads=lambda count: OrtRunner(model, threads=count),
        other_threads=1 if threads > 1 else 2,
        unoptimised=functools.partial(OrtRunner, model, threads=threads, optimise=False),
    )


def _device_subject(bundle: Bundle, choice: Choice, runner: Runner, options: RunnerOptions) -> Subject:
    """An engine takes seconds and the GPU's memory once more, so only providers that build none are opened again."""
    if choice.runner == ENGINE or choice.runner.startswith("tensorrt"):
        return Subject(runner)
    return Subject(runner, reopen=lambda: open_runner(bundle, choice, options))

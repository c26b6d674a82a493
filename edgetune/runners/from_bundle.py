"""From a bundle's artifact to a runner, and whether it still gives the golden answers on this machine."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Container, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgetune.core.bundle import Artifact, Bundle
from edgetune.core.engine_files import engine_cache
from edgetune.core.errors import EngineError, MissingDependencyError, ModelError, SelfTestError
from edgetune.core.golden import MAX_PIXEL_DIFF, load_golden
from edgetune.core.preprocess import decoder_version, preprocess_image
from edgetune.core.tensors import LOGITS_OUTPUT
from edgetune.runners.base import Runner, infer_images
from edgetune.runners.choice import AUTO, Choice, RunnerOptions, choose, explained
from edgetune.runners.ort_providers import CPU, EpChoice, EpOptions
from edgetune.runners.ort_runner import OrtRunner
from edgetune.runners.trt_runner import TrtRunner

# Relative to the largest golden logit. FP32 differs between CPUs by rounding; INT8 by a few steps of its last
# activation, where a saturating CPU is off by far more.
_LOGIT_TOLERANCE = {"fp32": 1e-3, "fp16": 0.02, "int8": 0.1}


@dataclass(frozen=True)
class SelfTest:
    """How far this machine is from where the bundle was exported: largest pixel and logit differences."""

    images: int
    max_pixel_diff: int
    max_logit_diff: float
    decoder: str


@contextmanager
def open_chosen(
    bundle: Bundle, wanted: str, options: RunnerOptions, *, allow_failed: bool = False
) -> Iterator[tuple[Choice, Runner]]:
    """The artifact and runner that suit this machine, open; see `choose`. With `options.fallback`, and where nothing
    was asked for, the CPU takes over from a provider or engine that does not start, and the choice's reason says so.
    """
    choice = choose(bundle, wanted, options, allow_failed=allow_failed)
    with contextlib.ExitStack() as stack:
        try:
            runner = stack.enter_context(open_runner(bundle, choice, options))
        except (EngineError, ModelError, MissingDependencyError) as error:
            if choice.runner == CPU or not (options.fallback or options.kind == AUTO):
                raise
            choice = choose(bundle, wanted, dataclasses.replace(options, kind=CPU), allow_failed=allow_failed)
            choice = explained(choice, f"on the CPU, because {error.message}")
            runner = stack.enter_context(open_runner(bundle, choice, options))
        yield choice, runner


def enter_all(
    stack: contextlib.ExitStack, runners: Mapping[str, Runner], *, may_fail: Container[str]
) -> tuple[dict[str, Runner], dict[str, str]]:
    """Opens runners side by side. Of those that `may_fail`, one that does not open leaves its reason instead."""
    opened: dict[str, Runner] = {}
    problems: dict[str, str] = {}
    for name, runner in runners.items():
        reason = _enter(stack, runner, may_fail=name in may_fail)
        if reason:
            problems[name] = reason
        else:
            opened[name] = runner
    return opened, problems


def _enter(stack: contextlib.ExitStack, runner: Runner, *, may_fail: bool) -> str:
    """Why the runner does not open, if that may be; empty where it does."""
    try:
        stack.enter_context(runner)
    except (EngineError, ModelError, MissingDependencyError) as error:
        if not may_fail:
            raise
        return error.message
    return ""


def open_runner(bundle: Bundle, choice: Choice, options: RunnerOptions) -> Runner:
    """A runner for the choice, not yet entered."""
    if choice.engine is not None:
        return TrtRunner(choice.engine)
    path = bundle.path / choice.artifact.name
    if choice.runner == CPU:
        return OrtRunner(path, threads=options.threads)
    ep = EpOptions(
        crop_size=bundle.manifest.preprocess.crop_size,
        cache_folder=engine_cache(options.cache) / "onnxruntime",
    )
    return OrtRunner(path, threads=options.threads, ep=EpChoice(choice.runner, ep))


def self_test(bundle: Bundle, artifact: Artifact, runner: Runner) -> SelfTest:
    """Decodes the golden files and runs the golden pixels; compares both with what the bundle recorded.

    Raises:
        SelfTestError: this machine decodes or computes something else; the message says which.
    """
    golden, files = load_golden(bundle)
    if artifact.name not in golden.logits:
        raise SelfTestError(f"the golden set of {bundle.path} has no logits of {artifact.name}.")
    pixels = np.stack([preprocess_image(data, bundle.manifest.preprocess) for data in files])
    max_pixel_diff = int(np.abs(pixels.astype(np.int16) - golden.pixels.astype(np.int16)).max())
    if max_pixel_diff > MAX_PIXEL_DIFF:
        raise SelfTestError(
            f"this machine ({decoder_version()}) decodes the golden images otherwise than where the bundle was "
            f"exported: pixels differ by up to {max_pixel_diff} of 255, expected at most {MAX_PIXEL_DIFF}.",
            hint="install the Pillow version that exported the bundle",
        )
    logits = infer_images(runner, golden.pixels, LOGITS_OUTPUT)
    max_logit_diff = _check_logits(golden.logits[artifact.name], logits, artifact, runner)
    return SelfTest(len(files), max_pixel_diff, max_logit_diff, decoder_version())


def _check_logits(
    expected: npt.NDArray[np.float32], logits: npt.NDArray[np.float32], artifact: Artifact, runner: Runner
) -> float:
    if not np.isfinite(logits).all():
        raise SelfTestError(f"{artifact.name} gives NaN or infinity for the golden images on {runner.name}.")
    difference = float(np.abs(logits - expected).max())
    limit = _LOGIT_TOLERANCE.get(artifact.precision, 0.1) * max(1.0, float(np.abs(expected).max()))
    if difference > limit:
        raise SelfTestError(
            f"{artifact.name} gives other answers on this machine ({runner.name}): golden logits differ by up to "
            f"{difference:.3g}, expected at most {limit:.3g}.",
            hint="use another artifact with --artifact, and run edgetune parity here",
        )
    return difference

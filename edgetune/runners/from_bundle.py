"""From a bundle to an open runner: which artifact suits this machine, and does it still give the golden answers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgetune.core.bundle import FAIL, PASS, Artifact, Bundle
from edgetune.core.errors import ArtifactError, SelfTestError
from edgetune.core.golden import load_golden
from edgetune.core.machine import is_arm64, is_x86
from edgetune.core.preprocess import decoder_version, preprocess_image
from edgetune.core.tensors import LOGITS_OUTPUT
from edgetune.runners.base import Runner, infer_images
from edgetune.runners.ort_runner import OrtRunner, int8_saturates

AUTO = "auto"

# Two correct decoders may round a pixel differently by a few steps, and no more.
_MAX_PIXEL_DIFF = 8
# Relative to the largest golden logit. FP32 differs between CPUs by rounding; INT8 by a few steps of its last
# activation, where a saturating CPU is off by far more.
_LOGIT_TOLERANCE = {"fp32": 1e-3, "int8": 0.1}


@dataclass(frozen=True)
class Choice:
    artifact: Artifact
    reason: str


@dataclass(frozen=True)
class SelfTest:
    """How far this machine is from where the bundle was exported: largest pixel and logit differences."""

    images: int
    max_pixel_diff: int
    max_logit_diff: float
    decoder: str


def choose_artifact(bundle: Bundle, wanted: str = AUTO, *, allow_failed: bool = False) -> Choice:
    """The artifact named; else the one expected to be fastest here of those that passed parity: INT8 for this CPU,
    or FP32 first where INT8 is exact only at FP32's cost. What failed is taken only if nothing passed and
    `allow_failed` is set.

    Raises:
        ArtifactError: the artifact's verdict is FAIL and `allow_failed` is not set, or nothing is left.
    """
    if wanted != AUTO:
        return _choose_named(bundle.artifact(wanted), allow_failed)
    usable = [artifact for artifact in bundle.manifest.artifacts if artifact.verdict == PASS]
    if not usable and allow_failed:
        usable = list(bundle.manifest.artifacts)
    int8 = [artifact for artifact in usable if artifact.precision == "int8" and suits_machine(artifact)]
    fp32 = [artifact for artifact in usable if artifact.precision == "fp32"]
    if int8 and not int8_saturates():
        return Choice(int8[0], f"INT8, {int8[0].verdict}, and exact here at full speed")
    if fp32:
        return Choice(fp32[0], f"FP32, {fp32[0].verdict}; {_why_not_int8(bundle)}")
    if int8:
        return Choice(int8[0], f"INT8, {int8[0].verdict}, with exact sums; no FP32 artifact passed parity")
    verdicts = ", ".join(f"{artifact.name}: {artifact.verdict}" for artifact in bundle.manifest.artifacts)
    raise ArtifactError(
        f"{bundle.path} has no artifact that passed parity ({verdicts}).", hint="--allow-failed uses one all the same"
    )


def _choose_named(artifact: Artifact, allow_failed: bool) -> Choice:
    if artifact.verdict == FAIL and not allow_failed:
        raise ArtifactError(
            f"{artifact.name} failed parity with the PyTorch model.",
            hint="see parity.html in the bundle; --allow-failed uses it all the same",
        )
    return Choice(artifact, "it was asked for")


def open_runner(bundle: Bundle, artifact: Artifact, threads: int | None = None) -> OrtRunner:
    return OrtRunner(bundle.path / artifact.name, threads=threads)


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
    if max_pixel_diff > _MAX_PIXEL_DIFF:
        raise SelfTestError(
            f"this machine ({decoder_version()}) decodes the golden images otherwise than where the bundle was "
            f"exported: pixels differ by up to {max_pixel_diff} of 255, expected at most {_MAX_PIXEL_DIFF}.",
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


def suits_machine(artifact: Artifact) -> bool:
    """Whether the artifact is made for this CPU, and so computes correctly on it.

    INT8 for x86 is right on every x86: where u8 x s8 sums would saturate, the runner has them added exactly.
    TensorRT's INT8 graph never suits a CPU, which takes most of it as slow float.
    """
    return artifact.precision != "int8" or runs_here(artifact.target)


def runs_here(target: str) -> bool:
    """Whether this machine is one that the target's INT8 graphs are made for."""
    return (target == "cpu-x86" and is_x86()) or (target == "cpu-arm" and is_arm64())


def _why_not_int8(bundle: Bundle) -> str:
    int8 = [artifact for artifact in bundle.manifest.artifacts if artifact.precision == "int8"]
    if not int8:
        return "the bundle has no INT8 artifact"
    here = [artifact for artifact in int8 if suits_machine(artifact)]
    if not here:
        return f"the bundle has INT8 for {', '.join(artifact.target for artifact in int8)}, not for this CPU"
    if all(artifact.verdict != PASS for artifact in here):
        return f"INT8 is {here[0].verdict}"
    return "INT8 is right here too, but about as slow: this CPU has no VNNI"

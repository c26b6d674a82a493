"""What a verdict rests on besides the logits: other ways to run, the nearest rung, the stages, and what would explain
a difference.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgetune.core.bundle import FAIL, NOT_RUN, Bundle
from edgetune.core.errors import EdgetuneError, first_line
from edgetune.core.tensors import LOGITS_OUTPUT
from edgetune.parity.diagnosis import explain_inputs, explain_outputs
from edgetune.parity.gate_set import GateSet
from edgetune.parity.gates import Gate, judge
from edgetune.parity.metrics import compare_logits
from edgetune.parity.records import LogitsPair, ParityEntry, Rung, StageCheck, Variation, failed
from edgetune.parity.stages import LOGITS, first_failed
from edgetune.parity.variations import noise_floor
from edgetune.runners.base import Runner, infer_images
from edgetune.runners.choice import RunnerOptions
from edgetune.runners.ort_providers import CPU
from edgetune.runners.ort_runner import OrtRunner
from edgetune.verify.by_the_book import open_for_parity
from edgetune.verify.file_check import damaged_constants, differences_from_record
from edgetune.verify.stages import StageJob, StageReference, check_artifact
from edgetune.verify.subjects import Subject
from edgetune.verify.variations import INTEGER_REFERENCE, rung_of, variations_of

INVARIANCE, RECORD, WEIGHTS = "invariance", "calibration record", "weights"
_EXPLAINED_IMAGES = 8


@dataclass(frozen=True)
class Scene:
    """What all artifacts of a bundle are looked at with: a few images, and what PyTorch makes of them."""

    bundle: Bundle
    gates: GateSet
    options: RunnerOptions
    stages: StageReference


def with_details(entry: ParityEntry, subject: Subject, pair: LogitsPair | None, scene: Scene) -> ParityEntry:
    """The entry of an open subject, failed where one of the checks fails, with the first stage that differs."""
    if entry.verdict == NOT_RUN:
        return entry
    if entry.max_abs_diff is not None:  # of NaN every comparison says the same
        try:
            entry = _with_variations(entry, subject, scene)
        except EdgetuneError as error:
            return failed(entry, f"a few images alone do not run: {error.message}", stage=INVARIANCE)
    if subject.choice.runner == CPU:
        job = StageJob(scene.bundle, subject.choice.artifact, scene.stages, scene.gates)
        entry = _with_stages(entry, check_artifact(job))
        entry = _with_file(_with_record(entry, subject, scene), subject, scene)
    if entry.verdict != FAIL:
        return entry
    entry = dataclasses.replace(entry, stage=entry.stage or LOGITS)
    return with_diagnosis(entry, pair, subject.runner, scene.stages)


def _with_variations(entry: ParityEntry, subject: Subject, scene: Scene) -> ParityEntry:
    choice = subject.choice
    measured = variations_of(scene.bundle, choice, subject.runner, scene.stages.pixels, scene.options)
    precision = choice.artifact.precision
    rung = rung_of(measured, precision, scene.gates.device.int8)
    if rung is None and (choice.runner != CPU or precision == "fp16"):
        rung = _nearest(subject, scene)
    entry = failed_by_variations(entry, measured.variations)
    largest, sqnr_db = noise_floor(measured.variations)
    entry = dataclasses.replace(
        entry, variations=measured.variations, rung=rung, noise_max_abs_diff=largest, noise_sqnr_db=sqnr_db
    )
    if rung is not None and rung.verdict == FAIL:
        entry = failed(entry, f"against {rung.reference}: {'; '.join(rung.reasons)}", stage="arithmetic")
    return entry


def failed_by_variations(entry: ParityEntry, variations: Sequence[Variation]) -> ParityEntry:
    """One reason for all of them: the first says what it is, the others follow from it."""
    broken = [each for each in variations if each.verdict == FAIL]
    if not broken:
        return entry
    names = ", ".join(each.name for each in broken)
    return failed(entry, f"its answers depend on how it is run ({names}): {broken[0].reason}", stage=INVARIANCE)


def _nearest(subject: Subject, scene: Scene) -> Rung | None:
    """float16 against the float32 graph that it was cast from; on a device, the same file by the CPU."""
    if subject.choice.runner == CPU and not _float_parents(scene):
        return None
    name, gate = _relative(subject, scene)
    try:
        with _open_relative(subject, scene) as reference:
            exact = infer_images(reference, scene.stages.pixels, LOGITS_OUTPUT)
    except (EdgetuneError, ModuleNotFoundError) as error:
        return Rung(name, 0, None, None, None, None, NOT_RUN, (first_line(error),))
    comparison = compare_logits(exact, infer_images(subject.runner, scene.stages.pixels, LOGITS_OUTPUT), None)
    judgement = judge(comparison, gate)
    finite = comparison.finite
    return Rung(
        name, comparison.images, comparison.max_abs_diff if finite else None, comparison.sqnr_db,
        comparison.top1_agreement if finite else None, None, judgement.verdict, judgement.reasons,
    )  # fmt: skip


def _float_parents(scene: Scene) -> list[str]:
    return [each.name for each in scene.bundle.manifest.artifacts if each.precision == "fp32"]


def _relative(subject: Subject, scene: Scene) -> tuple[str, Gate]:
    """What the nearest relative is called, and the gate against it."""
    if subject.choice.runner == CPU:
        return f"{_float_parents(scene)[0]} on the CPU", dataclasses.replace(scene.gates.fp16, max_drop=None)
    artifact = subject.choice.artifact
    gate: Gate = getattr(scene.gates.device, subject.candidate().arithmetic)
    return (INTEGER_REFERENCE if artifact.precision == "int8" else f"{artifact.name} on the CPU"), gate


def _open_relative(subject: Subject, scene: Scene) -> Runner:
    artifact, folder = subject.choice.artifact, scene.bundle.path
    if subject.choice.runner == CPU:
        return OrtRunner(folder / _float_parents(scene)[0])
    if artifact.precision == "int8":
        return OrtRunner(folder / artifact.name, optimise=False)
    return open_for_parity(folder / artifact.name, artifact.precision)


def _with_stages(entry: ParityEntry, checks: tuple[StageCheck, ...]) -> ParityEntry:
    """The stage of a failed entry is the first that failed, whatever noticed it before; what is behind it follows."""
    entry = dataclasses.replace(entry, stages=checks)
    first = first_failed(checks)
    if not first:
        return entry
    (check,) = [each for each in checks if each.stage == first]
    entry = failed(entry, f"{check.stage}: {check.reason}", stage=first)
    return entry if entry.stage == INVARIANCE else dataclasses.replace(entry, stage=first)


def _with_record(entry: ParityEntry, subject: Subject, scene: Scene) -> ParityEntry:
    """An INT8 graph must have the scales and zero points that its calibration gave it."""
    artifact = subject.choice.artifact
    if artifact.precision != "int8":
        return entry
    differences = differences_from_record(scene.bundle, artifact)
    if not differences:
        return entry
    more = f"; and {len(differences) - 3} more" if len(differences) > 3 else ""
    entry = failed(entry, f"it differs from {RECORD}: {'; '.join(differences[:3])}{more}")
    return dataclasses.replace(entry, stage=RECORD)


def _with_file(entry: ParityEntry, subject: Subject, scene: Scene) -> ParityEntry:
    damaged = damaged_constants(scene.bundle, subject.choice.artifact)
    if not damaged:
        return entry
    more = f" and {len(damaged) - 3} more" if len(damaged) > 3 else ""
    entry = failed(entry, f"the file has NaN or infinity in {', '.join(damaged[:3])}{more}")
    return dataclasses.replace(entry, stage=WEIGHTS)


def with_diagnosis(
    entry: ParityEntry, pair: LogitsPair | None, runner: Runner, reference: StageReference
) -> ParityEntry:
    """What would explain the difference, if one thing does."""
    diagnosis = ""
    if pair is not None:
        diagnosis = explain_outputs(pair.reference, pair.candidate)
    if not diagnosis and reference.tensors.logits is not None:
        rows = slice(_EXPLAINED_IMAGES)
        diagnosis = _explain_inputs(runner, reference.pixels[rows], reference.tensors.logits[rows])
    return dataclasses.replace(entry, diagnosis=diagnosis)


def _explain_inputs(runner: Runner, pixels: npt.NDArray[np.uint8], logits: npt.NDArray[np.float32]) -> str:
    try:
        return explain_inputs(lambda images: infer_images(runner, images, LOGITS_OUTPUT), pixels, logits)
    except EdgetuneError:
        return ""

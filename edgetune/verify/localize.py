"""Localisation: which block of an artifact broke, how, and the block alone with its input to show it."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgetune.core.errors import first_line
from edgetune.core.progress import Progress, no_progress
from edgetune.core.tensors import Array
from edgetune.parity.fault_kind import classify
from edgetune.parity.localize import Batches, Curve, find_culprit, measure
from edgetune.parity.records import BlockError, Localisation
from edgetune.runners.base import Runner

if TYPE_CHECKING:  # localisation needs onnx; who reads this file may not have it
    from edgetune.quantize.record_check import Mismatch
    from edgetune.runners.torch_runner import TorchRunner
    from edgetune.verify.localize_graphs import Sides

_BATCH = 2
_IMAGES = 64


@dataclass(frozen=True)
class LocalizeJob:
    """`reference` is the ONNX file that the candidate is held against, None for PyTorch, which `torch` opens.

    `images` is an array of images, or a callable that gives them in batches, the same each time. `record` is the
    content of `calibration.json`; `repro` the folder for the block alone, None for none. `open_runner` opens a model's
    bytes where the candidate does not run on ONNX Runtime's CPU.
    """

    candidate: Path
    precision: str
    reference: Path | None = None
    torch: Callable[[], TorchRunner] | None = None
    images: Array | Callable[[], Iterable[Array]] = field(default_factory=lambda: np.zeros(0, np.uint8))
    record: Mapping[str, Any] | None = None
    repro: Path | None = None
    open_runner: Callable[[bytes], Runner] | None = None


def localize(job: LocalizeJob, *, progress: Progress = no_progress) -> Localisation:
    """Never raises: what cannot be localised has an empty culprit, and the explanation says why."""
    try:
        from edgetune.verify.localize_engine import localize_engine
        from edgetune.verify.localize_graphs import open_sides

        if job.open_runner is not None:
            return localize_engine(job, _batches(job), progress)
        with open_sides(job, _batches(job)) as sides:
            return _localize(job, sides, progress)
    except Exception as error:  # noqa: BLE001 - the verdict stands without a culprit, and must not be lost with it
        return not_localised(f"the block that broke was not looked for: {first_line(error)}")


def not_localised(reason: str) -> Localisation:
    return Localisation("", "", "", reason, "", "", 0, ())


def _batches(job: LocalizeJob) -> Batches:
    images = job.images
    if callable(images):
        return lambda: _in_small_batches(images())
    return lambda: _in_small_batches([images[:_IMAGES]])


def _in_small_batches(batches: Iterable[Array]) -> Iterator[Array]:
    """A network's tensors are hundreds of times as large as its images: two images are in memory at a time."""
    left = _IMAGES
    for batch in batches:
        for start in range(0, min(len(batch), left), _BATCH):
            yield batch[start : min(start + _BATCH, left)]
        left -= len(batch)
        if left <= 0:
            return


def _localize(job: LocalizeJob, sides: Sides, progress: Progress) -> Localisation:
    from edgetune.verify.localize_int8 import make_point, mismatches, target_of

    target = target_of(job.record, job.candidate.name) if job.precision == "int8" else ""
    points = [make_point(block, sides.graph, job.record, target) for block in sides.blocks]
    with sides.streams(sides.cuts, [point.product for point in points if point.product_db is not None]) as streams:
        curves = measure(points, streams, sides.batches, progress=progress)
    found = find_culprit(curves, job.precision)
    wrong = mismatches(sides.graph, job.record, target)
    index, told = found.index, found.reason
    if index is None or _reads_wrong(sides, curves[index], wrong):
        index, told = _by_the_file(sides, curves, wrong, told)
    images = sum(len(batch) for batch in sides.batches())
    blocks = tuple(curve.record() for curve in curves)
    if index is None:
        return Localisation("", "", "", _sentence(told, sides.remark), "", "", images, blocks)
    return _describe(job, sides, curves[index], told, wrong, images, blocks)


def _reads_wrong(sides: Sides, curve: Curve, wrong: list[Mismatch]) -> bool:
    """Whether a block only suffers from how its input is quantized, which is where that tensor is made."""
    (block,) = [each for each in sides.blocks if each.tensor == curve.point.tensor]
    tensors = {each.tensor for each in wrong}
    return block.tensor not in tensors and not tensors.isdisjoint(block.inputs)


def _by_the_file(
    sides: Sides, curves: list[Curve], wrong: list[Mismatch], reason: str
) -> tuple[int | None, str]:  # fmt: skip
    """The block that the files alone call wrong, where its numbers do not, and why; else none and `reason`."""
    from edgetune.graph.constants import random_nodes

    tensors = {each.tensor for each in wrong}
    drawn = {node.name for node in random_nodes(sides.graph)}
    tensors_drawn = {block.tensor for block in sides.blocks if drawn.intersection(block.nodes)}
    for index, curve in enumerate(curves):
        if curve.point.tensor in tensors:
            return index, "its numbers are near the reference's, but the file is not as the calibration recorded"
        if curve.point.tensor in tensors_drawn:
            return index, "this runtime leaves it out, but others would run it"
    return None, reason


def _describe(
    job: LocalizeJob, sides: Sides, curve: Curve, told: str, wrong: list[Mismatch], images: int,
    blocks: tuple[BlockError, ...],
) -> Localisation:  # fmt: skip
    from edgetune.verify.localize_evidence import Examination
    from edgetune.verify.localize_int8 import record_notes
    from edgetune.verify.localize_repro import write_repro

    (block,) = [each for each in sides.blocks if each.tensor == curve.point.tensor]
    examination = Examination(sides, block, curve, job.precision)
    evidence = examination.evidence(record_notes(wrong, {block.tensor, *block.inputs}))
    fault = classify(evidence)
    repro = write_repro(sides, block, examination.worst, job.repro, job.precision) if job.repro is not None else ""
    return Localisation(
        culprit=block.name,
        module=block.module,
        kind=fault.kind,
        explanation=_sentence(f"{told}. {_capital(fault.sentence)}", sides.remark),
        option=shlex.join(["--keep-float", block.name]) if sides.is_reduced(block) else "",
        repro=repro,
        images=images,
        blocks=blocks,
    )


def _capital(sentence: str) -> str:
    return sentence[:1].upper() + sentence[1:]


def _sentence(told: str, remark: str) -> str:
    return _capital(told) + "." + (f" {_capital(remark)}." if remark else "")

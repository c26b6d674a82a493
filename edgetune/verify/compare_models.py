"""parity of two ONNX models with the same inputs, made by any tool: reference and candidate on the same data."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from edgetune.core.errors import DataError, ModelError, UsageError, first_line
from edgetune.core.files import sha256_of_file
from edgetune.core.onnx_scan import scan_precision
from edgetune.core.progress import Progress, no_progress
from edgetune.core.tensors import Array
from edgetune.data.arrays import ARRAY_SUFFIXES, open_arrays
from edgetune.parity.gate_set import DEFAULT_GATES, GateSet
from edgetune.parity.records import LogitsPair, ParityEntry, ParityReport, failed, incomplete
from edgetune.runners.ort_providers import CPU, EpChoice
from edgetune.runners.ort_runner import OrtRunner
from edgetune.verify.by_the_book import open_for_parity
from edgetune.verify.model_inputs import (
    ArraySource,
    Given,
    ImageSource,
    ModelFacts,
    Source,
    describe,
    image_form,
    list_images,
    model_facts,
    pixel_differences,
    preprocess_of,
    with_size,
)
from edgetune.verify.model_outputs import Side, collect
from edgetune.verify.model_verdicts import judge_outputs
from edgetune.verify.new_report import make_report

_FEW_ROWS = 16
PRECISIONS = ("fp32", "tf32", "fp16", "int8")
_UNROUNDED = "ONNX Runtime's CPU does not round this float16 model, so nothing is proven of a device that does"


@dataclass(frozen=True)
class CompareOptions:
    """`precision` None is found out from the two files, and the coarser one's gate is taken. The preprocessing is for
    models that do not carry theirs; what is given goes before what they carry. `candidate` says what runs the
    candidate; the reference runs on the CPU. `keep_inputs` asks for a few rows of what both models got.
    """

    gates: GateSet = DEFAULT_GATES
    precision: str | None = None
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    resize: int | None = None
    interpolation: str | None = None
    candidate: EpChoice = field(default_factory=EpChoice)
    keep_inputs: bool = False


@dataclass(frozen=True)
class ModelComparison:
    """`pairs` are the logits of each entry that has them, by its `artifact`. `inputs` are a few rows of the one input
    that both models are fed alike, None where they are not, and where they were not asked for. `flipped` are the files
    of the images whose label changed, as far as the report lists them, by sha256.
    """

    report: ParityReport
    pairs: dict[str, LogitsPair]
    precision: str
    inputs: Array | None
    flipped: dict[str, Path]


def compare_models(
    reference: Path, candidate: Path, data: Path, options: CompareOptions, *, progress: Progress = no_progress
) -> ModelComparison:
    """`data` is a folder of images, a `.npz` with one array an input, or a `.npy` for a single input.

    Raises:
        ModelError: a file is no ONNX model that runs, or the two take other inputs or have no output in common.
        TensorError: an output has no batch dimension, or another shape than the reference's.
        DataError: the data is no input of these models, or cannot be read any more.
        UsageError, ConfigError: as their messages say.
    """
    try:
        return _compare(reference, candidate, data, options, progress)
    except OSError as error:
        path = str(data if error.filename is None else error.filename)
        kind = ModelError if path in (str(reference), str(candidate)) else DataError
        raise kind(f"{path} cannot be read: {error.strerror or first_line(error)}.") from error


def _compare(
    reference: Path, candidate: Path, data: Path, options: CompareOptions, progress: Progress
) -> ModelComparison:  # fmt: skip
    precisions = tuple(_precision(path) for path in (reference, candidate))
    precision = _gate_name(precisions, options.precision)
    with contextlib.ExitStack() as stack:
        sides, unrounded = [], False
        for path, own, ep in zip((reference, candidate), precisions, (EpChoice(), options.candidate), strict=True):
            runner, rounds = _open(stack, path, own, ep)
            unrounded |= not rounds
            sides.append(Side(path.name, runner, model_facts(str(path), runner.input_specs, runner.metadata)))
        source, reasons = _source(data, sides[0].facts, sides[1].facts, options)
        collected = collect(source, sides[0], sides[1], progress)
        judged = judge_outputs(collected, sides[0], sides[1], options.gates.named(precision))
    remarks = _remarks(reference, candidate, precisions, precision if options.precision is None else "")
    entries = tuple(_completed(entry, reasons, remarks, unrounded=unrounded) for entry in judged.entries)
    report = make_report(str(data), judged.class_names, entries, collected.skipped)
    report = dataclasses.replace(report, classes=judged.classes)
    flipped = _flipped(source, entries)
    inputs = _few_inputs(source, data) if options.keep_inputs else None
    return ModelComparison(report, judged.pairs, precision, inputs, flipped)


def _flipped(source: Source, entries: tuple[ParityEntry, ...]) -> dict[str, Path]:
    if not isinstance(source, ImageSource):
        return {}
    return {flip.sha256: source.paths[flip.sha256] for entry in entries for flip in entry.flips}


def _few_inputs(source: Source, data: Path) -> Array | None:
    """Reads the first rows again. Equal dtypes and shapes are not enough: the same image may be normalised otherwise,
    or stand with its planes first for one model and last for the other.
    """
    batch = next(source.batches(_FEW_ROWS), None)
    if batch is None:
        raise DataError(f"the inputs in {data} can no longer be read.", hint="leave them in place while they are used")
    if len(batch.reference) != 1 or set(batch.reference) != set(batch.candidate):
        return None
    (name,) = batch.candidate
    theirs, ours = batch.reference[name], batch.candidate[name]
    return ours if theirs.dtype == ours.dtype and np.array_equal(theirs, ours) else None


def _precision(path: Path) -> str:
    if not path.is_file():
        raise ModelError(f"{path} does not exist or is not a file.", hint="give two .onnx files")
    return scan_precision(path)


def _gate_name(found: tuple[str, ...], given: str | None) -> str:
    if given is None:
        return max(found, key=PRECISIONS.index)
    if given not in PRECISIONS:
        raise UsageError(f"the precision {given!r} is not known; known: {', '.join(PRECISIONS)}.")
    return given


def _open(stack: contextlib.ExitStack, path: Path, precision: str, ep: EpChoice) -> tuple[OrtRunner, bool]:
    """An open runner, and whether it computes in the precision of the file."""
    if precision == "fp16" and ep.name == CPU:
        if importlib.util.find_spec("onnx") is not None:
            with contextlib.suppress(ModelError):  # float16 inputs, or nodes that only ONNX Runtime knows
                return stack.enter_context(open_for_parity(path, precision)), True
        return stack.enter_context(OrtRunner(path)), False
    return stack.enter_context(OrtRunner(path, ep=ep)), True


def _source(
    data: Path, reference: ModelFacts, candidate: ModelFacts, options: CompareOptions
) -> tuple[Source, tuple[str, ...]]:
    """Where inputs come from, and what the models' own words differ in."""
    if data.suffix.lower() in ARRAY_SUFFIXES and not data.is_dir():
        _check_same_inputs(reference, candidate)
        return ArraySource(open_arrays(data, reference.inputs)), ()
    if not data.exists():
        raise DataError(f"{data} does not exist.", hint="give a folder of images, a .npz or a .npy")
    models = (reference, candidate)
    forms = (image_form(reference), image_form(candidate))
    sizes = [with_size(model, form) for model, form in zip(models, forms, strict=True)]
    known = {size for size in sizes if size is not None}
    if len(known) != 1:
        what = "take images of other sizes" if known else "leave the size of their images open"
        told = f"{describe(reference.inputs)} and {describe(candidate.inputs)}"
        raise ModelError(f"the models {what}: {told}.", hint="give the inputs as they are in a .npz")
    given = Given(options.mean, options.std, options.resize, options.interpolation)
    models = _with_each_others(reference, candidate)
    specs = tuple(
        preprocess_of(model, form, next(iter(known)), given) for model, form in zip(models, forms, strict=True)
    )
    return ImageSource(list_images(data), forms, specs), _contradictions(reference, candidate)


def _check_same_inputs(reference: ModelFacts, candidate: ModelFacts) -> None:
    """A size that only one leaves open is the same input."""
    theirs, ours = ({spec.name: spec for spec in model.inputs} for model in (reference, candidate))
    same = set(theirs) == set(ours) and all(
        theirs[name].dtype == ours[name].dtype and len(theirs[name].shape) == len(ours[name].shape)
        and all(
            index == 0 or None in pair or pair[0] == pair[1]
            for index, pair in enumerate(zip(theirs[name].shape, ours[name].shape, strict=True))
        )
        for name in theirs
    )  # fmt: skip
    if not same:
        raise ModelError(
            f"the models take other inputs: {reference.title} takes {describe(reference.inputs)}; "
            f"{candidate.title} takes {describe(candidate.inputs)}."
        )


def _with_each_others(reference: ModelFacts, candidate: ModelFacts) -> tuple[ModelFacts, ModelFacts]:
    """A model that says nothing of its preprocessing has the other's: one was made of the other."""
    return (
        dataclasses.replace(reference, preprocess=reference.preprocess or candidate.preprocess),
        dataclasses.replace(candidate, preprocess=candidate.preprocess or reference.preprocess),
    )


def _contradictions(reference: ModelFacts, candidate: ModelFacts) -> tuple[str, ...]:
    """What makes the file a device gets another classifier than the reference's, whatever its graph computes."""
    found = []
    if reference.preprocess is not None and candidate.preprocess is not None:
        differences = pixel_differences(reference.preprocess, candidate.preprocess)
        found += [f"its metadata prepares images otherwise: {differences}"] if differences else []
    if reference.classes and candidate.classes and reference.classes != candidate.classes:
        found.append("its metadata names other classes, or in another order, than the reference's")
    return tuple(found)


def _remarks(reference: Path, candidate: Path, found: tuple[str, ...], chosen: str) -> tuple[str, ...]:
    remarks = []
    if chosen:
        whose = candidate.name if found[1] == chosen else reference.name
        remarks.append(f"judged by the gate for {chosen}, which {whose} computes in")
    if sha256_of_file(reference) == sha256_of_file(candidate):
        remarks.append("both are the same file")
    return tuple(remarks)


def _completed(
    entry: ParityEntry, reasons: tuple[str, ...], remarks: tuple[str, ...], *, unrounded: bool
) -> ParityEntry:  # fmt: skip
    if not entry.images:  # an output that the candidate lacks: there is nothing that a gate was held to
        return entry
    for reason in reasons:
        entry = failed(entry, reason, stage="pixels" if "images" in reason else "labels")
    if unrounded:
        entry = incomplete(entry, _UNROUNDED)
    return dataclasses.replace(entry, remarks=(*remarks, *entry.remarks))

"""Two models' outputs on the same batches: which are compared, and what is kept of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType

import numpy as np
import numpy.typing as npt

from edgetune.core.errors import DataError, ModelError, TensorError
from edgetune.core.progress import Progress
from edgetune.core.tensors import LOGITS_OUTPUT, Array, Feed, TensorSpec
from edgetune.data.image_folder import SkippedFile
from edgetune.parity.distance import RunningDistance
from edgetune.runners.base import Runner, infer_parts
from edgetune.verify.model_inputs import Images, ImageSource, ModelFacts, Source, describe

BATCH_ROWS = 8

_Logits = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Side:
    """One of the two models, open; `title` is what the report calls it."""

    title: str
    runner: Runner
    facts: ModelFacts


@dataclass
class Output:
    """What is kept of a pair of outputs: sums, and the rows themselves of those that labels are read from."""

    names: tuple[str, str]
    distance: RunningDistance
    rows: tuple[list[_Logits], list[_Logits]]


@dataclass(frozen=True)
class Collected:
    """`outputs` in the order of the reference's; `logits` is the one that has a label in each row, if one does.

    `first_images` are the pixels of the first batch, for explaining what differs; None for arrays. `missing` has a
    reason for each output, by name, that the reference makes and the candidate does not.
    """

    source: Source
    outputs: tuple[Output, ...]
    logits: Output | None
    first_images: Images | None
    answer: Callable[[Images], _Logits] | None
    remarks: tuple[str, ...]
    missing: dict[str, str]

    @property
    def skipped(self) -> tuple[SkippedFile, ...]:
        return tuple(self.source.skipped) if isinstance(self.source, ImageSource) else ()


def collect(source: Source, reference: Side, candidate: Side, progress: Progress) -> Collected:
    """Runs both models on every batch.

    Raises:
        ModelError: the two have no output in common.
        TensorError: an output has no row for each input, or another shape than the reference's.
        DataError: not one input could be read.
    """
    names, missing, remarks = _common_outputs(reference, candidate)
    runners = (_WholeBatches(reference.runner), _WholeBatches(candidate.runner))
    outputs = tuple(Output(pair, RunningDistance(), ([], [])) for pair in names)
    logits: Output | None = None
    first_images: Images | None = None
    for batch in source.batches(BATCH_ROWS):
        found = (infer_parts(runners[0], batch.reference), infer_parts(runners[1], batch.candidate))
        pairs = [(found[0][output.names[0]], found[1][output.names[1]]) for output in outputs]
        if not _has_begun(outputs):
            first_images = batch.images
            logits = next((output for output, pair in zip(outputs, pairs, strict=True) if _has_labels(pair)), None)
        for output, pair in zip(outputs, pairs, strict=True):
            _add(output, pair, keep=output is logits)
        progress("parity", len(source.keys), source.total)
    if not _has_begun(outputs):
        raise _nothing_read(source)
    progress("parity", source.total, source.total)
    return Collected(source, outputs, logits, first_images, _answerer(source, runners[1], logits), remarks, missing)


def _has_begun(outputs: Sequence[Output]) -> bool:
    return outputs[0].distance.rows > 0


def _common_outputs(
    reference: Side, candidate: Side
) -> tuple[list[tuple[str, str]], dict[str, str], tuple[str, ...]]:  # fmt: skip
    """Names of the outputs to compare, `logits` first; why others of the reference cannot be; and remarks."""
    theirs, ours = ({spec.name: spec for spec in side.runner.output_specs} for side in (reference, candidate))
    same = [name for name in theirs if name in ours and _is_numeric(theirs[name]) == _is_numeric(ours[name])]
    left, over = ([spec for spec in specs.values() if spec.name not in same] for specs in (theirs, ours))
    pairs = [(name, name) for name in same if _is_numeric(theirs[name])]
    unread = [name for name in same if not _is_numeric(theirs[name])]
    remarks = [f"not compared, as these are no arrays of numbers: {', '.join(unread)}"] if unread else []
    if len(left) == len(over) == 1 and _may_be_the_same(left[0], over[0]):
        which = "only other output" if same else "only output"
        remarks.append(f"the candidate's {which} {over[0].name!r} is taken for the reference's {left[0].name!r}")
        pairs.append((left[0].name, over[0].name))
        left, over = [], []
    if not pairs:
        raise _nothing_in_common(reference, candidate)
    alone = [spec.name for spec in over if spec.name not in theirs]
    if alone:
        remarks.append(f"not compared, as the candidate alone makes them: {', '.join(alone)}")
    pairs.sort(key=lambda pair: pair[0] != LOGITS_OUTPUT)
    return pairs, {spec.name: _why_missing(spec, ours.get(spec.name)) for spec in left}, tuple(remarks)


def _may_be_the_same(theirs: TensorSpec, ours: TensorSpec) -> bool:
    """Of one rank, and of sizes that do not contradict. ONNX Runtime gives an output of unknown rank no dimensions."""
    if not (_is_numeric(theirs) and _is_numeric(ours)):
        return False
    if not theirs.shape or not ours.shape:
        return True
    pairs = zip(theirs.shape[1:], ours.shape[1:], strict=False)
    return len(theirs.shape) == len(ours.shape) and all(None in pair or pair[0] == pair[1] for pair in pairs)


def _why_missing(theirs: TensorSpec, ours: TensorSpec | None) -> str:
    if ours is None:
        return f"the candidate lacks the reference's output {describe((theirs,))}"
    return f"the reference's output is {describe((theirs,))}, the candidate's {describe((ours,))}"


def _nothing_in_common(reference: Side, candidate: Side) -> ModelError:
    return ModelError(
        f"the models have no output in common that holds numbers: {reference.title} makes "
        f"{describe(reference.runner.output_specs)}; {candidate.title} makes {describe(candidate.runner.output_specs)}."
    )


def _is_numeric(spec: TensorSpec) -> bool:
    """ONNX Runtime names what is no array of numbers `tensor(string)`, `seq(...)` or `map(...)`."""
    return "(" not in spec.dtype


def _has_labels(pair: tuple[Array, Array]) -> bool:
    return all(array.ndim == 2 and array.shape[1] > 1 and array.dtype.kind == "f" for array in pair)


def _add(output: Output, pair: tuple[Array, Array], *, keep: bool) -> None:
    reference, candidate = pair
    if reference.shape != candidate.shape:
        raise TensorError(
            f"the reference's output {output.names[0]!r} is {reference.shape}, "
            f"the candidate's {output.names[1]!r} {candidate.shape}."
        )
    output.distance.add(reference, candidate)
    if keep:
        for rows, array in zip(output.rows, pair, strict=True):
            rows.append(array.astype(np.float32))


def _nothing_read(source: Source) -> DataError:
    skipped = source.skipped if isinstance(source, ImageSource) else []
    first = f"; the first: {skipped[0].path}: {skipped[0].reason}" if skipped else "."
    return DataError(f"none of {source.total} inputs could be read{first}")


def _answerer(source: Source, runner: Runner, logits: Output | None) -> Callable[[Images], _Logits] | None:
    """Pixels to the candidate's logits."""
    if logits is None or not isinstance(source, ImageSource):
        return None
    return lambda images: infer_parts(runner, source.candidate_feed(images))[logits.names[1]].astype(np.float32)


class _WholeBatches:
    """A runner whose inputs may have a fixed batch, and whose outputs have a row for each row that went in."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        sizes = {spec.shape[0] for spec in runner.input_specs if spec.shape}
        scalars = [spec.name for spec in runner.input_specs if not spec.shape]
        fixed = sizes - {None}
        if scalars or len(fixed) > 1:
            why = f"{scalars[0]!r} has none" if scalars else f"its inputs have {sorted(map(str, fixed))}"
            raise TensorError(f"every input needs the same batch dimension: {why} ({describe(runner.input_specs)}).")
        self._fixed = next(iter(fixed), None)

    @property
    def name(self) -> str:
        return self._runner.name

    @property
    def input_specs(self) -> tuple[TensorSpec, ...]:
        return self._runner.input_specs

    @property
    def output_specs(self) -> tuple[TensorSpec, ...]:
        return self._runner.output_specs

    @property
    def min_batch(self) -> int:
        return self._fixed or self._runner.min_batch

    @property
    def max_batch(self) -> int | None:
        return self._fixed or self._runner.max_batch

    def infer(self, feed: Feed) -> dict[str, Array]:
        """Without the outputs that are no arrays of numbers."""
        rows = len(next(iter(feed.values())))
        numeric = {spec.name for spec in self.output_specs if _is_numeric(spec)}
        outputs = {name: array for name, array in self._runner.infer(feed).items() if name in numeric}
        for name, array in outputs.items():
            if array.ndim == 0 or len(array) != rows:
                raise TensorError(f"the output {name!r} is {array.shape} for {rows} rows, expected ({rows}, ...).")
        return outputs

    def __enter__(self) -> _WholeBatches:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """The runner inside is its owner's to close."""

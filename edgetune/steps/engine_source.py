"""Which ONNX file an engine is built from, and the batches it is built for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edgetune.core.bundle import MANIFEST_NAME, PASS, Artifact, Bundle, load_bundle
from edgetune.core.engine_record import BuildOptions
from edgetune.core.errors import ArtifactError, ModelError, UsageError
from edgetune.engine.protocol import InputProfile
from edgetune.graph.onnx_file import OnnxFile, read_onnx_file
from edgetune.graph.precision import FP16, FP32, INT8, input_shapes, model_precision

AUTO = "auto"

_DEFAULT_MAX_BATCH = 8


@dataclass(frozen=True)
class EngineSource:
    """`calibration_sha256` is that of the bundle's `calibration.json`, empty where nothing was calibrated."""

    file: OnnxFile
    precision: str
    calibration_sha256: str


def find_source(path: Path, precision: str, *, allow_failed: bool) -> EngineSource:
    """The artifact of a bundle that has the precision (`auto`: INT8, FP16 or FP32, the first that passed parity), or
    the ONNX file itself.

    Raises:
        ArtifactError: the bundle has no such artifact, or it failed parity and `allow_failed` is not set.
        ModelError, BundleError, UsageError: as their messages say.
    """
    if not (path / MANIFEST_NAME).is_file() and (path.is_file() or path.suffix == ".onnx"):
        return _single_file(path, precision)
    bundle = load_bundle(path)
    artifact = _choose(bundle, precision, allow_failed)
    calibration = bundle.manifest.files.get("calibration.json") if artifact.precision == INT8 else None
    file = read_onnx_file(path / artifact.name)
    return EngineSource(file, artifact.precision, calibration.sha256 if calibration is not None else "")


def _single_file(path: Path, precision: str) -> EngineSource:
    file = read_onnx_file(path)
    own = model_precision(file.model)
    if precision not in (AUTO, own):
        raise UsageError(
            f"{path.name} computes in {own}, and --precision {precision} was asked for: an engine's precision is its "
            "model's.",
            hint="edgetune export --fp16 and edgetune quantize --target tensorrt write models of other precisions",
        )
    return EngineSource(file, own, "")


def _choose(bundle: Bundle, precision: str, allow_failed: bool) -> Artifact:
    wanted = (INT8, FP16, FP32) if precision == AUTO else (precision,)
    present = [
        artifact
        for word in wanted
        for artifact in bundle.manifest.artifacts
        if artifact.precision == word and (word != INT8 or artifact.target == "tensorrt")
    ]
    if not present:
        made_by = {INT8: "--int8 --target tensorrt", FP16: "--fp16"}.get(precision, "")
        raise ArtifactError(
            f"{bundle.path} has no {precision} artifact for TensorRT.", hint=f"edgetune export RUN --out DIR {made_by}"
        )
    usable = [artifact for artifact in present if artifact.verdict == PASS or allow_failed]
    if not usable:
        verdicts = ", ".join(f"{artifact.name}: {artifact.verdict}" for artifact in present)
        raise ArtifactError(
            f"no artifact to build from passed parity with the PyTorch model ({verdicts}).",
            hint="see parity.html in the bundle; --allow-failed builds it all the same",
        )
    return usable[0]


@dataclass(frozen=True)
class Batches:
    """Batch sizes as they were asked for; None leaves one to the model and the defaults."""

    smallest: int | None = None
    best: int | None = None
    largest: int | None = None


def fit_batches(file: OnnxFile, wanted: Batches) -> tuple[int, int, int]:
    """Smallest, best and largest batch of an engine; a model of fixed batch has no choice.

    Raises:
        UsageError: they are out of order, or not what the model has.
        ModelError: something else than the batch is left open.
    """
    fixed = _fixed_batch(file)
    given = [size for size in (wanted.smallest, wanted.best, wanted.largest) if size is not None]
    if fixed is not None:
        other = next((size for size in given if size != fixed), None)
        if other is not None:
            raise UsageError(f"{file.path.name} has the fixed batch {fixed}, and {other} was asked for.")
        return fixed, fixed, fixed
    smallest = wanted.smallest or 1
    best = wanted.best or smallest
    largest = wanted.largest or max(_DEFAULT_MAX_BATCH, best)
    if not smallest <= best <= largest:
        raise UsageError(
            f"the batches {smallest}, {best}, {largest} are out of order.",
            hint="--min-batch is at most --opt-batch, and that at most --max-batch",
        )
    return smallest, best, largest


def _fixed_batch(file: OnnxFile) -> int | None:
    """The batch of a model without open sizes, None where the batch is open."""
    shapes = input_shapes(file.model)
    for name, shape in shapes:
        if None in shape[1:]:
            shown = ", ".join("?" if size is None else str(size) for size in shape)
            raise ModelError(
                f"{file.path.name}: the input {name!r} has the shape ({shown}); only its first size may be open.",
                hint="export it with fixed image sizes",
            )
    batches = {shape[0] for _, shape in shapes if shape}
    return None if None in batches or not batches else next(iter(sorted(size for size in batches if size is not None)))


def profiles(file: OnnxFile, options: BuildOptions) -> tuple[InputProfile, ...]:
    """A profile for every input whose batch is open."""
    sizes = (options.min_batch, options.opt_batch, options.max_batch)
    return tuple(
        InputProfile(name, *(tuple(batch if size is None else size for size in shape) for batch in sizes))
        for name, shape in input_shapes(file.model)
        if None in shape
    )

"""stages: where on the way from file bytes to label a bundle's artifacts first differ from the PyTorch model."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from edgetune.core.bundle import FAIL, NOT_RUN, PASS, Artifact, Bundle
from edgetune.core.errors import (
    BundleError,
    DataError,
    EdgetuneError,
    ImageError,
    MissingDependencyError,
    ModelError,
    TensorError,
    WeightsError,
    first_line,
)
from edgetune.core.files import sha256_of_bytes
from edgetune.core.preprocess import PreprocessSpec, preprocess_image
from edgetune.core.run import HEAD_NAME, Run
from edgetune.core.tensors import FEATURES_OUTPUT, IMAGE_INPUT, LOGITS_OUTPUT
from edgetune.data.image_folder import ImageFile
from edgetune.parity.gate_set import DEFAULT_GATES, GateSet
from edgetune.parity.records import StageCheck
from edgetune.parity.stages import FEATURES, NORMALISED, PIXELS, Floats, StageTensors, judge_stages, normalise
from edgetune.parity.statements import Statement, check_golden, check_statements, statement_from_metadata
from edgetune.runners.base import Runner, infer_images
from edgetune.runners.ort_runner import OrtRunner
from edgetune.verify.by_the_book import open_for_parity
from edgetune.verify.reference import has_torch, load_run_backbone, load_stored_reference

if TYPE_CHECKING:
    from edgetune.runners.torch_runner import TorchRunner

MAX_IMAGES = 16
_BATCH = 4

# These torchvision backbones rescale what they are given, from ImageNet's mean and std to 0.5, before they convolve.
_RESCALING = ("googlenet", "inception_v3")
_HALVES = (0.5, 0.5, 0.5)

_NO_ONNX = "onnx is not installed, which it takes to look inside the graph"

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class StageReference:
    """`pixels` uint8 `(N, H, W, 3)` of at most 16 images, and what the PyTorch model makes of them."""

    pixels: Pixels
    tensors: StageTensors


@dataclass(frozen=True)
class StageJob:
    """One artifact to follow, stage by stage, on the reference's images."""

    bundle: Bundle
    artifact: Artifact
    reference: StageReference
    gates: GateSet = DEFAULT_GATES


def check_bundle(bundle: Bundle, found_run: tuple[Path, Run] | None) -> tuple[StageCheck, ...]:
    """Whether manifest, run and ONNX files speak of the same preprocessing and classes, and whether the golden files
    give the recorded pixels here. Needs no torch and no images.
    """
    manifest = Statement("the manifest", bundle.manifest.preprocess, bundle.manifest.classes)
    others = [_ask_onnx(bundle.path / artifact.name) for artifact in bundle.manifest.artifacts]
    if found_run is not None:
        run = found_run[1]
        others.insert(0, Statement("the run", run.preprocess, run.classes))
    return (*check_statements(manifest, others), check_golden(bundle))


def _ask_onnx(path: Path) -> Statement:
    try:
        with OrtRunner(path, threads=1) as runner:
            return statement_from_metadata(path.name, runner.metadata)
    except (ModelError, MissingDependencyError) as error:
        return Statement(path.name, None, None, problem=f"{path.name} could not be asked: {error.message}")


def check_pixels(files: Sequence[ImageFile], spec: PreprocessSpec) -> StageCheck:
    """Our pixels of at most 16 of the images against torchvision's, which must be the same, bit for bit."""
    if importlib.util.find_spec("torchvision") is None:
        return StageCheck(PIXELS, NOT_RUN, None, 0.0, "torchvision is not installed, which the pixels are held against")
    from edgetune.models.reference_pixels import torchvision_pixels

    worst, where, compared, others = 0, "", 0, 0
    for file, data, pixels in _read_spread(files, spec):
        reference = torchvision_pixels(data, spec)
        if reference is None:
            others += 1
            continue
        compared += 1
        difference = int(np.abs(pixels.astype(np.int16) - reference).max())
        worst, where = (difference, file.path.name) if difference > worst else (worst, where)
    told = "1 image as torchvision has it" if compared == 1 else f"{compared} images as torchvision has them"
    if others:
        told += f"; {others} with transparency or more than 8 bits, which torchvision treats otherwise, not compared"
    if compared == 0:
        return StageCheck(PIXELS, NOT_RUN, None, 0.0, told)
    if worst > 0:
        reason = f"{where} comes out otherwise than with torchvision, by up to {worst} of 255"
        return StageCheck(PIXELS, FAIL, float(worst), 0.0, reason)
    return StageCheck(PIXELS, PASS, 0.0, 0.0, told)


def stage_reference(
    bundle: Bundle, found_run: tuple[Path, Run] | None, files: Sequence[ImageFile], live: TorchRunner | None = None
) -> StageReference:
    """The live model's tensors on a spread of the images; without it, the stored logits of the images they know. An
    open `live` model of the run is used as it is, else the run's is opened.

    Raises:
        DataError: not one image can be read.
    """
    read = _read_spread(files, bundle.manifest.preprocess)
    if not read:
        raise DataError(f"none of {len(files)} images could be read.")
    spec = first_layer_spec(bundle)
    pixels = np.stack([image for _, _, image in read])
    tensors, why = _open_live(found_run, pixels, live)
    if tensors is not None:
        return StageReference(pixels, StageTensors(normalise(pixels, spec), *tensors))
    rows, logits = _stored_logits(bundle, [sha256_of_bytes(data) for _, data, _ in read])
    pixels = pixels[rows]
    return StageReference(pixels, StageTensors(normalise(pixels, spec), None, logits, f"no PyTorch model: {why}"))


def first_layer_spec(bundle: Bundle) -> PreprocessSpec:
    """The manifest's preprocessing with the mean and std that the first convolution sees."""
    spec = bundle.manifest.preprocess
    if bundle.manifest.backbone not in _RESCALING:
        return spec
    return PreprocessSpec(spec.resize_size, spec.crop_size, spec.interpolation, _HALVES, _HALVES)


def _read_spread(files: Sequence[ImageFile], spec: PreprocessSpec) -> list[tuple[ImageFile, bytes, Pixels]]:
    """At most 16 readable images, evenly from the first to the last."""
    rows = dict.fromkeys(int(row) for row in np.linspace(0, len(files) - 1, min(MAX_IMAGES, len(files))))
    read = [_read(files[row], spec) for row in rows]
    return [entry for entry in read if entry is not None]


def _read(file: ImageFile, spec: PreprocessSpec) -> tuple[ImageFile, bytes, Pixels] | None:
    try:
        data = file.path.read_bytes()
        return file, data, preprocess_image(data, spec, name=str(file.path))
    except (OSError, ImageError):
        return None


def _open_live(
    found_run: tuple[Path, Run] | None, pixels: Pixels, live: TorchRunner | None
) -> tuple[tuple[Floats, Floats] | None, str]:
    """The live model's features and logits, or why there is no live model."""
    if found_run is None:
        return None, "the bundle's run is gone or has changed"
    if not has_torch():
        return None, "torch is not installed"
    try:
        extractor = live.module.extractor if live is not None else None
        return _live_tensors(*found_run, pixels, extractor), ""
    except (TensorError, WeightsError, ModuleNotFoundError) as error:  # a bundle may crop otherwise than its run
        return None, first_line(error)


def _live_tensors(folder: Path, run: Run, pixels: Pixels, extractor: Any) -> tuple[Floats, Floats]:
    """Features of PyTorch's backbone, and the run's head on them."""
    from edgetune.heads.head import load_head
    from edgetune.models.head import FeatureExtractor
    from edgetune.runners.torch_runner import TorchRunner

    if extractor is None:
        extractor = FeatureExtractor(load_run_backbone(run).module, run.preprocess)
    with TorchRunner(extractor, run.preprocess.crop_size, FEATURES_OUTPUT) as runner:
        features = _infer(runner, pixels)[FEATURES_OUTPUT]
    return features, load_head(folder / HEAD_NAME).logits(features)


def _stored_logits(bundle: Bundle, hashes: list[str]) -> tuple[list[int], Floats | None]:
    """Which images the stored reference knows, with their logits; all images and no logits where it knows none."""
    try:
        known = load_stored_reference(bundle).rows
    except BundleError:
        known = {}
    rows = [row for row, sha256 in enumerate(hashes) if sha256 in known]
    if not rows:
        return list(range(len(hashes))), None
    return rows, np.stack([known[hashes[row]] for row in rows])


def check_artifact(job: StageJob) -> tuple[StageCheck, ...]:
    """One check each of `normalised`, `features`, `logits`, `probabilities` and `labels`; `first_failed` names the
    stage to blame. NOT-RUN where torch, the run or onnx is lacking, or where the artifact does not run.
    """
    path, precision = job.bundle.path / job.artifact.name, job.artifact.precision
    candidate = _candidate_tensors(path, precision, job.reference.pixels)
    return judge_stages(job.reference.tensors, candidate, first_layer_spec(job.bundle), precision, job.gates)


def _candidate_tensors(path: Path, precision: str, pixels: Pixels) -> StageTensors:
    """Logits are those of the file as it is; the tensors inside are those of a copy that also gives them out."""
    try:
        with open_for_parity(path, precision) as runner:
            logits = infer_images(runner, pixels, LOGITS_OUTPUT)
    except ModuleNotFoundError:
        return StageTensors(None, None, None, _NO_ONNX)
    except EdgetuneError as error:
        return StageTensors(None, None, None, error.message)
    try:
        tapped = _run_tapped(path, precision, pixels)
    except ModuleNotFoundError:
        return StageTensors(None, None, logits, _NO_ONNX)
    except EdgetuneError as error:
        return StageTensors(None, None, logits, f"its tensors could not be had: {error.message}")
    why = "the graph has no tensor that can be compared"
    return StageTensors(tapped.get(NORMALISED), tapped.get(FEATURES), logits, why)


def _run_tapped(path: Path, precision: str, pixels: Pixels) -> dict[str, Floats]:
    """The tensors by stage, as far as the graph has them."""
    from edgetune.graph.compose import read_model
    from edgetune.graph.fp16_emulation import emulate_fp16
    from edgetune.graph.taps import with_taps

    model = read_model(path)
    model, taps = with_taps(emulate_fp16(model) if precision == "fp16" else model)
    with OrtRunner(model.SerializeToString()) as runner:
        outputs = _infer(runner, pixels)
    return {stage: outputs[tensor] for stage, tensor in taps.items()}


def _infer(runner: Runner, pixels: Pixels) -> dict[str, Floats]:
    """All outputs of an open runner as float32, a few images at a time: tensors inside are large."""
    parts = [runner.infer({IMAGE_INPUT: pixels[row : row + _BATCH]}) for row in range(0, len(pixels), _BATCH)]
    return {name: np.concatenate([part[name] for part in parts]).astype(np.float32) for name in parts[0]}

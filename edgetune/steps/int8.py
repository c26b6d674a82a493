"""One INT8 target of an export: calibrate, quantize the backbone, and fit the head on what it now computes."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgetune.core.config import to_dict
from edgetune.core.errors import DataError
from edgetune.core.files import cache_root, pretty_json, sha256_of_file
from edgetune.core.fingerprint import fingerprint
from edgetune.core.preprocess import decoder_version
from edgetune.core.progress import Progress
from edgetune.core.run import Run, Skipped, SplitFile
from edgetune.data.image_folder import ImageFile, SkippedFile
from edgetune.data.samples import SampleStream, batches
from edgetune.features.cache import FeatureCache
from edgetune.features.extract import extract_features
from edgetune.graph.compose import add_head, read_model, set_metadata, write_model
from edgetune.heads.linear import LinearHead, refit_linear
from edgetune.quantize.calibrate import CalibrationRecord, calibration_record, pick_calibration_files
from edgetune.quantize.qdq import quantize_model
from edgetune.runners.ort_runner import OrtRunner, ort_version

_BATCH = 8


@dataclass(frozen=True)
class Int8Job:
    """`root` is where the run's images are now."""

    run: Run
    root: Path
    target: str
    calibration_images: int
    refit_head: bool


def int8_name(target: str) -> str:
    return f"model.int8.{target}.onnx"


def write_int8(
    job: Int8Job, features_model: Path, head: LinearHead, folder: Path, progress: Progress
) -> CalibrationRecord:
    """Writes the target's model and `calibration.json` into `folder`; `head` is the FP32 head.

    Raises:
        DataError: no image to calibrate with, or none left to fit the head on.
    """
    picked = pick_calibration_files(job.run, job.calibration_images)
    skipped: list[SkippedFile] = []
    with tempfile.TemporaryDirectory() as scratch:
        quantized = Path(scratch) / "features.onnx"
        ranges = quantize_model(features_model, quantized, _calibration_batches(job, picked, skipped, progress))
        if job.refit_head:
            head = _refit(job, quantized, progress)
        model = add_head(read_model(quantized), head.weight, head.bias)
    set_metadata(model, job.run.classes, job.run.preprocess)
    write_model(folder / int8_name(job.target), model)
    named = tuple(Skipped(file.path.relative_to(job.root).as_posix(), file.reason) for file in skipped)
    origin = "fitted on the quantized backbone's features" if job.refit_head else "the FP32 head"
    record = calibration_record(picked, named, job.target, ranges, origin)
    (folder / "calibration.json").write_bytes(pretty_json(to_dict(record)))
    return record


def _calibration_batches(
    job: Int8Job, picked: tuple[SplitFile, ...], skipped: list[SkippedFile], progress: Progress
) -> Iterator[npt.NDArray[np.uint8]]:
    """Images whose content is what it was at the fit; others go to `skipped`."""
    files = [ImageFile(job.root / file.path, file.label) for file in picked]
    expected = {job.root / file.path: file.sha256 for file in picked}
    done = 0
    with SampleStream(files, job.run.preprocess) as stream:
        for samples, images in batches(stream, _BATCH, skipped.append):
            same = np.array([expected[sample.file.path] == sample.sha256 for sample in samples])
            changed = [sample.file.path for sample, unchanged in zip(samples, same, strict=True) if not unchanged]
            skipped += [SkippedFile(path, "was changed after the fit") for path in changed]
            done += len(samples)
            progress("calibration", min(done, len(files) - 1), len(files))
            if same.any():
                yield images[same]
    progress("calibration", len(files), len(files))


def _refit(job: Int8Job, quantized: Path, progress: Progress) -> LinearHead:
    """The head at the run's L2 strength, on training features as this INT8 backbone computes them."""
    files = [ImageFile(job.root / file.path, file.label) for file in job.run.split.train]
    key = fingerprint({
        "graph": sha256_of_file(quantized), "preprocess": to_dict(job.run.preprocess), "decoder": decoder_version(),
        "layer": "pooled", "view": None, "runner": f"onnxruntime {ort_version()} CPU", "precision": "int8",
    })  # fmt: skip
    cache = FeatureCache(cache_root() / "features" / key)
    table = extract_features(
        files, job.run.preprocess, cache, lambda: OrtRunner(quantized), batch_size=_BATCH, progress=progress
    )
    expected = {job.root / file.path: file.sha256 for file in job.run.split.train}
    same = np.array([expected[file.path] == sha256 for file, sha256 in zip(table.files, table.hashes, strict=True)])
    labels = table.labels[same]
    missing = set(range(len(job.run.classes))) - set(labels.tolist())
    if missing:
        names = ", ".join(job.run.classes[label] for label in sorted(missing))
        raise DataError(f"no unchanged training image is left of {names}.", hint="fit again, or use --keep-head")
    return refit_linear(table.features[same], labels, len(job.run.classes), job.run.head.l2)

"""What `quantize.py` quantizes and judges: a classifier with its 1000 ImageNet classes, and real ImageNet images."""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from torchvision.models import ResNet18_Weights

from edgetune.core.files import sha256_of_file
from edgetune.core.preprocess import PreprocessSpec, decoder_version, preprocess_image
from edgetune.core.tensors import LOGITS_OUTPUT
from edgetune.graph.compose import add_head, read_model, set_metadata, write_model
from edgetune.graph.graph_cache import exporter_version
from edgetune.models.checkpoint import read_state_dict
from edgetune.models.weights import load_backbone
from edgetune.runners.base import infer_images
from edgetune.runners.ort_runner import OrtRunner, ort_version
from edgetune.steps.feature_source import features_model_path, identity_now

CALIBRATION_IMAGES = 128


@dataclass(frozen=True)
class Prepared:
    """The files in a work folder; arrays of images are uint8 `(N, H, W, 3)`, logits float32 `(N, 1000)`."""

    folder: Path

    @property
    def model(self) -> Path:
        return self.folder / "model.onnx"

    @property
    def calibration_files(self) -> Path:
        """A folder with copies of the calibration images as they were found."""
        return self.folder / "calibration"

    @property
    def calibration(self) -> Path:
        return self.folder / "calibration.npy"

    @property
    def evaluation(self) -> Path:
        return self.folder / "evaluation.npy"

    @property
    def labels(self) -> Path:
        """Class indices int64 `(N,)` of the evaluation images."""
        return self.folder / "labels.npy"

    @property
    def reference(self) -> Path:
        """The FP32 model's logits of the evaluation images."""
        return self.folder / "reference.npy"


def prepare(folder: Path, data: Path, model_name: str, *, fresh: bool = False) -> Prepared:
    """Writes model, images and reference logits into `folder`, unless it has them already for the same request.

    Raises:
        WeightsError: the package with the model's weights is not installed.
    """
    prepared = Prepared(folder)
    record = folder / "prepared.json"
    request = {
        "model": model_name, "labels": sha256_of_file(data / "labels.csv"), "images": CALIBRATION_IMAGES,
        "exporter": exporter_version(), "decoder": decoder_version(), "runtime": str(ort_version()),
    }  # fmt: skip
    if not fresh and record.is_file() and json.loads(record.read_text()) == request:
        return prepared
    shutil.rmtree(folder / "tools", ignore_errors=True)
    record.unlink(missing_ok=True)
    spec = _write_classifier(prepared.model, model_name)
    _write_images(prepared, data, spec)
    with OrtRunner(prepared.model, threads=1) as runner:
        np.save(prepared.reference, compute_logits(runner, np.load(prepared.evaluation)))
    record.write_text(json.dumps(request, indent=2))
    return prepared


def compute_logits(runner: OrtRunner, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Logits `(N, 1000)` of images `(N, H, W, 3)`, one image a call, which every tool's graph accepts."""
    rows = [infer_images(runner, image[np.newaxis], LOGITS_OUTPUT) for image in images]
    return np.concatenate(rows)


def _write_classifier(path: Path, model_name: str) -> PreprocessSpec:
    """The published backbone with the published head for 1000 classes, exported as `edgetune export` does."""
    backbone = load_backbone(model_name)
    spec = backbone.architecture.preprocess
    state = read_state_dict(backbone.weights_path)
    weight, bias = (state[name].numpy().astype(np.float32) for name in ("_fc.weight", "_fc.bias"))
    model = add_head(read_model(features_model_path(identity_now(backbone), lambda: backbone)), weight, bias)
    # The index makes the names unique: ImageNet has two kinds of crane and of maillot.
    names = enumerate(ResNet18_Weights.DEFAULT.meta["categories"])
    set_metadata(model, tuple(f"{index} {name}" for index, name in names), spec)
    write_model(path, model)
    return spec


def _write_images(prepared: Prepared, data: Path, spec: PreprocessSpec) -> None:
    """The first images in the order of their content's hashes calibrate, all others judge."""
    with (data / "labels.csv").open(newline="") as stream:
        rows = [(data / row["file"], int(row["imagenet_class_index"])) for row in csv.DictReader(stream)]
    rows.sort(key=lambda row: sha256_of_file(row[0]))
    calibration, evaluation = rows[:CALIBRATION_IMAGES], rows[CALIBRATION_IMAGES:]
    shutil.rmtree(prepared.calibration_files, ignore_errors=True)
    prepared.calibration_files.mkdir()
    for path, _ in calibration:
        shutil.copy(path, prepared.calibration_files / path.name)
    for destination, part in ((prepared.calibration, calibration), (prepared.evaluation, evaluation)):
        np.save(destination, np.stack([preprocess_image(path.read_bytes(), spec, name=path.name) for path, _ in part]))
    np.save(prepared.labels, np.array([label for _, label in evaluation], dtype=np.int64))

"""The PyTorch side of parity: the live model rebuilt from a run, or its logits as a bundle stores them."""

from __future__ import annotations

import dataclasses
import importlib.util
import io
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from edgetune.core.bundle import Bundle
from edgetune.core.errors import BundleError, RunError, WeightsError
from edgetune.core.files import ARCHIVE_ERRORS, sha256_of_file
from edgetune.core.run import HEAD_NAME, RUN_NAME, Run, load_run
from edgetune.core.tensors import LOGITS_OUTPUT

if TYPE_CHECKING:
    from edgetune.models.weights import Backbone
    from edgetune.runners.torch_runner import TorchRunner

REFERENCE_NAME = "reference.npz"


@dataclass(frozen=True)
class StoredReference:
    """Logits float32 `(N, classes)` of the PyTorch model by the content hash of the image."""

    name: str
    rows: dict[str, npt.NDArray[np.float32]]


def has_torch() -> bool:
    return importlib.util.find_spec("torch") is not None


def load_run_backbone(run: Run) -> Backbone:
    """The run's backbone with the very weights, layer and preprocessing it was fitted on.

    Raises:
        WeightsError: the weights file is gone, or is another one than the run's; or today's libraries make other
            tensors of it.
    """
    from edgetune.models.weights import find_published_weights, load_backbone

    path = Path(run.backbone.weights_path)
    if not path.is_file() and run.options.get("weights") is None:
        path = find_published_weights(run.backbone.name)
    if not path.is_file():
        raise WeightsError(f"the run's weights file {path} is gone.", hint="put it back, or fit again")
    if sha256_of_file(path) != run.backbone.weights_sha256:
        raise WeightsError(
            f"{path} is not the file that the run was fitted on (sha256 {run.backbone.weights_sha256[:12]}...).",
            hint=f"put the original weights back at {run.backbone.weights_path}, or fit again",
        )
    backbone = load_backbone(
        run.backbone.name, path, layer=run.backbone.layer, image_size=run.preprocess.crop_size
    )  # fmt: skip
    if backbone.tensors_sha256 != run.backbone.tensors_sha256:
        raise WeightsError(
            f"{path} gives other tensors of {run.backbone.name} than when the run was fitted "
            f"(sha256 {backbone.tensors_sha256[:12]}..., expected {run.backbone.tensors_sha256[:12]}...).",
            hint="install the versions of torch, torchvision and timm that run.json names, or fit again",
        )
    # What the run records counts, not what the libraries publish today.
    architecture = dataclasses.replace(backbone.architecture, preprocess=run.preprocess)
    return dataclasses.replace(backbone, architecture=architecture)


def open_classifier(run_folder: Path, run: Run, backbone: Backbone) -> TorchRunner:
    """The PyTorch model of a run behind the Runner contract: FP32 on the CPU."""
    from edgetune.heads.head import load_head
    from edgetune.models.head import Classifier, FeatureExtractor
    from edgetune.runners.torch_runner import TorchRunner

    head = load_head(run_folder / HEAD_NAME)
    shape = head.classes, head.feature_dim
    if shape != (len(run.classes), run.backbone.feature_dim):
        raise RunError(f"{run_folder / HEAD_NAME} has shape {shape}, which does not fit {RUN_NAME}.")
    classifier = Classifier(FeatureExtractor(backbone.module, run.preprocess), head.weight, head.bias, head.hidden)
    return TorchRunner(classifier, run.preprocess.crop_size, LOGITS_OUTPUT)


def open_live_reference(found: tuple[Path, Run] | None) -> TorchRunner | None:
    """The PyTorch model of a run that was found; None without a run or without torch.

    Raises:
        WeightsError, ModuleNotFoundError: the model cannot be rebuilt here.
    """
    if found is None or not has_torch():
        return None
    return open_classifier(*found, load_run_backbone(found[1]))


def find_run(bundle: Bundle, wanted: Path | None) -> tuple[Path, Run] | None:
    """The run that the bundle came from: `wanted`, else the recorded one if it is still there, unchanged.

    Raises:
        RunError: `wanted` is another run than the bundle's.
    """
    origin = bundle.manifest.run
    folder = wanted if wanted is not None else Path(origin.path)
    record = folder / RUN_NAME
    if not record.is_file() or sha256_of_file(record) != origin.sha256:
        if wanted is not None:
            raise RunError(f"{wanted} is not the run that {bundle.path} was exported from.")
        return None
    return folder, load_run(folder)


def stored_reference_bytes(name: str, hashes: tuple[str, ...], logits: npt.NDArray[np.float32]) -> bytes:
    stream = io.BytesIO()
    np.savez_compressed(stream, name=np.array(name), sha256=np.array(hashes), logits=logits)
    return stream.getvalue()


def load_stored_reference(bundle: Bundle) -> StoredReference:
    """Raises `BundleError` when the bundle's stored reference cannot be read."""
    path = bundle.path / REFERENCE_NAME
    try:
        with np.load(path, allow_pickle=False) as table:
            rows = {str(sha256): row for sha256, row in zip(table["sha256"], table["logits"], strict=True)}
            return StoredReference(f"{table['name']}, stored", rows)
    except ARCHIVE_ERRORS as error:
        raise BundleError(f"{path} holds no reference logits that can be read: {error}") from error

"""Photographs to compare on, and bundles with a fault that their digests do not betray."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from PIL import ExifTags, Image

from edgetune.core.bundle import Artifact, Manifest, load_bundle, write_manifest
from edgetune.core.files import sha256_of_file
from edgetune.core.run import HEAD_NAME, load_run

if TYPE_CHECKING:
    from torch import nn

CLASSES = ("flower-left", "flower-right", "temple-left", "temple-right")
_TURNED = 6  # EXIF: turn by 90 degrees clockwise to view


def write_photos(folder: Path, per_class: int, *, seed: int, turned: int = 0) -> Path:
    """Overlapping cuts of scikit-learn's two photographs, as JPEG of 320 to 400 px, in four classes that are not easy
    to tell apart. The first `turned` of each class lie on their side, and say so in their EXIF.
    """
    from sklearn.datasets import load_sample_images

    temple, flower = (Image.fromarray(pixels) for pixels in load_sample_images().images)
    generator = np.random.default_rng(seed)
    for name in CLASSES:
        (folder / name).mkdir(parents=True)
        for index in range(per_class):
            cut = _cut(flower if "flower" in name else temple, generator, is_left="left" in name)
            exif = Image.Exif()
            if index < turned:
                exif[ExifTags.Base.Orientation] = _TURNED
                cut = cut.transpose(Image.Transpose.ROTATE_90)
            cut.save(folder / name / f"{index:02d}.jpg", quality=92, exif=exif)
    return folder


def _cut(photo: Image.Image, generator: np.random.Generator, *, is_left: bool) -> Image.Image:
    width, height = (int(generator.integers(320, 400)) for _ in range(2))
    span = photo.width - width
    left = int(generator.integers(0, span * 6 // 10) if is_left else generator.integers(span * 4 // 10, span))
    top = int(generator.integers(0, photo.height - height))
    return photo.crop((left, top, left + width, top + height))


def random_backbone(folder: Path) -> dict[str, Any]:
    """`model` and `weights` of a small network with random weights, whose normalisation differs from channel to
    channel.
    """
    import torch
    from torchvision.models import shufflenet_v2_x0_5

    torch.manual_seed(0)
    torch.save(shufflenet_v2_x0_5(weights=None).state_dict(), folder / "random.pth")
    return {"model": "shufflenet_v2_x0_5", "weights": folder / "random.pth"}


def half_of(photos: Path, folder: Path) -> Path:
    """Every second photograph: an earlier state of the same data."""
    for image in sorted(photos.glob("*/*.jpg"))[::2]:
        target = folder / image.relative_to(photos)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(image, target)
    return folder


def parity_process(*words: str | Path) -> tuple[int, dict[str, Any]]:
    """The exit code and the data of a real `edgetune parity --json`."""
    command = [sys.executable, "-m", "edgetune.cli.main", "parity", *map(str, words), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert "Traceback" not in done.stderr, done.stderr
    envelope: dict[str, Any] = json.loads(done.stdout)
    assert envelope["exit_code"] == done.returncode
    return done.returncode, envelope["data"]


def bundle_with(healthy: Path, folder: Path, models: Mapping[str, onnx.ModelProto], **changes: Any) -> Path:
    """A copy of `healthy` whose artifacts of these names hold these models, and whose manifest has `changes`."""
    shutil.copytree(healthy, folder)
    for name, model in models.items():
        (folder / name).write_bytes(model.SerializeToString())
    manifest = load_bundle(healthy).manifest
    artifacts = tuple(_digested(artifact, folder) for artifact in manifest.artifacts)
    return _sealed(folder, dataclasses.replace(manifest, artifacts=artifacts, **changes))


def bundle_beside(healthy: Path, folder: Path, models: Mapping[str, tuple[str, onnx.ModelProto]]) -> Path:
    """A copy of `healthy` with more artifacts, by file name: each with the kind of the artifact that it was made from.

    One run of parity judges them all, and the healthy ones beside them.
    """
    shutil.copytree(healthy, folder)
    bundle = load_bundle(healthy)
    added = []
    for name, (source, model) in models.items():
        (folder / name).write_bytes(model.SerializeToString())
        added.append(_digested(dataclasses.replace(bundle.artifact(source), name=name), folder))
    return _sealed(folder, dataclasses.replace(bundle.manifest, artifacts=(*bundle.manifest.artifacts, *added)))


def _digested(artifact: Artifact, folder: Path) -> Artifact:
    path = folder / artifact.name
    return dataclasses.replace(artifact, sha256=sha256_of_file(path), size_bytes=path.stat().st_size)


def _sealed(folder: Path, manifest: Manifest) -> Path:
    write_manifest(folder, manifest)
    load_bundle(folder)
    return folder


def only_float(healthy: Path, folder: Path) -> Path:
    """A copy of `healthy` with its FP32 artifact alone."""
    shutil.copytree(healthy, folder)
    manifest = load_bundle(healthy).manifest
    for artifact in manifest.artifacts:
        if artifact.precision != "fp32":
            (folder / artifact.name).unlink()
    kept = tuple(artifact for artifact in manifest.artifacts if artifact.precision == "fp32")
    return _sealed(folder, dataclasses.replace(manifest, artifacts=kept))


def exported_again(run_folder: Path, change: Callable[[nn.Module], None]) -> onnx.ModelProto:
    """The run's model as a user would export it whose backbone has changed since."""
    from edgetune.graph.compose import add_head, set_metadata
    from edgetune.graph.to_onnx import export_features
    from edgetune.heads.head import load_head
    from edgetune.models.head import FeatureExtractor
    from edgetune.verify.reference import load_run_backbone

    run = load_run(run_folder)
    module = load_run_backbone(run).module
    change(module)
    head = load_head(run_folder / HEAD_NAME)
    features = export_features(FeatureExtractor(module, run.preprocess), run.preprocess.crop_size)
    model = add_head(features, head.weight, head.bias, head.hidden)
    set_metadata(model, run.classes, run.preprocess)
    return model

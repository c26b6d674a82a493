"""The broken block of an artifact that failed, as part of its entry."""

from __future__ import annotations

import dataclasses
import importlib.util
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgetune.core.bundle import Artifact, Bundle
from edgetune.core.files import sha256_of_bytes
from edgetune.core.progress import Progress, no_progress
from edgetune.core.run import Run
from edgetune.parity.records import ParityEntry
from edgetune.runners.base import Runner
from edgetune.runners.ort_providers import CPU, EpChoice, EpOptions
from edgetune.runners.ort_runner import OrtRunner
from edgetune.runners.trt_runner import TrtRunner
from edgetune.verify.details import Scene
from edgetune.verify.file_check import calibration_of
from edgetune.verify.judging import arithmetic_of
from edgetune.verify.localize import LocalizeJob, localize
from edgetune.verify.reference import has_torch, load_run_backbone, open_classifier
from edgetune.verify.subjects import Subject

if TYPE_CHECKING:
    from edgetune.runners.torch_runner import TorchRunner

EngineBuilder = Callable[[Path, str, Path], Path]

_WITHOUT_ONNX = "the block that broke was not looked for: onnx is not installed, which it takes to cut a graph"


@dataclass(frozen=True)
class Place:
    """Where PyTorch's model is, and the folder that the broken block goes to; None where there is none. `build` makes
    an engine of an ONNX file for a backend, in a cache folder, and returns the engine's.
    """

    run: tuple[Path, Run] | None
    repro: Path | None
    build: EngineBuilder | None = None


def with_localisation(
    entry: ParityEntry, subject: Subject, scene: Scene, place: Place, *, progress: Progress = no_progress
) -> ParityEntry:
    """The entry with what `localize` found."""
    if importlib.util.find_spec("onnx") is None:
        return dataclasses.replace(entry, remarks=(*entry.remarks, _WITHOUT_ONNX))
    with tempfile.TemporaryDirectory(prefix="edgetune-") as scratch:
        job = _job(subject, scene, place, Path(scratch))
        return dataclasses.replace(entry, localisation=localize(job, progress=progress))


def _job(subject: Subject, scene: Scene, place: Place, scratch: Path) -> LocalizeJob:
    artifact = subject.choice.artifact
    return LocalizeJob(
        candidate=scene.bundle.path / artifact.name,
        precision=arithmetic_of(artifact.precision, subject.choice.runner),
        reference=_float_parent(scene.bundle, artifact),
        torch=_torch_opener(place.run),
        images=scene.stages.pixels,
        record=calibration_of(scene.bundle, artifact),
        repro=None if place.repro is None else place.repro / _folder_name(subject),
        open_runner=_prefix_opener(subject, scene, place.build, scratch),
    )


def _prefix_opener(
    subject: Subject, scene: Scene, build: EngineBuilder | None, scratch: Path
) -> Callable[[bytes], Runner] | None:
    """What runs a part of the artifact's graph as the artifact is run; None for the CPU, which runs it whole."""
    kind, sealed = subject.choice.runner, subject.sealed
    if kind == CPU:
        return None
    if sealed is not None and build is not None:
        return lambda content: _built(content, sealed.key.host.backend, build, scratch)
    ep = EpChoice(kind, EpOptions(crop_size=scene.bundle.manifest.preprocess.crop_size))
    return lambda content: OrtRunner(content, ep=ep)


def _built(content: bytes, backend: str, build: EngineBuilder, scratch: Path) -> Runner:
    """An engine of these bytes, in a cache that is thrown away."""
    path = scratch / f"{sha256_of_bytes(content)[:16]}.onnx"
    path.write_bytes(content)
    return TrtRunner(build(path, backend, scratch / "engines"))


def _torch_opener(found: tuple[Path, Run] | None) -> Callable[[], TorchRunner] | None:
    """None without the run or without torch: then PyTorch is nobody's reference."""
    if found is None or not has_torch():
        return None
    run_folder, run = found
    return lambda: open_classifier(run_folder, run, load_run_backbone(run))


def _float_parent(bundle: Bundle, artifact: Artifact) -> Path | None:
    """The float32 graph that an artifact was made from; None for that graph itself, which PyTorch is the parent of."""
    parents = [each for each in bundle.manifest.artifacts if each.precision == "fp32" and each.name != artifact.name]
    return bundle.path / parents[0].name if parents and artifact.precision != "fp32" else None


def _folder_name(subject: Subject) -> str:
    name = subject.choice.artifact.name.removesuffix(".onnx")
    return name if subject.choice.runner == CPU else f"{name}-{subject.choice.runner}"

"""The run folder: what a fit did, so completely that export and parity can rebuild its model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgetune.core.config import from_dict, to_dict
from edgetune.core.errors import ConfigError, DataError, RunError
from edgetune.core.files import pretty_json, read_json, sha256_of_file
from edgetune.core.head_recipe import UNWEIGHTED, HeadRecipe, TrainingRecipe
from edgetune.core.preprocess import PreprocessSpec

RUN_NAME = "run.json"
HEAD_NAME = "head.safetensors"
METRICS_NAME = "metrics.json"
SCHEMA_VERSION = 1


@dataclass(frozen=True)
class SplitFile:
    """One image of a split; `path` is relative to the data folder, `sha256` is of the file's bytes."""

    path: str
    sha256: str
    label: int


@dataclass(frozen=True)
class Skipped:
    path: str
    reason: str


@dataclass(frozen=True)
class Finding:
    """Something about the images that their owner should know, as one sentence; `paths` are relative to the root."""

    kind: str
    message: str
    paths: tuple[str, ...] = ()


@dataclass(frozen=True)
class Split:
    """`root` is the data folder's absolute path at the time of the fit; `group_by` the expression that kept images
    together, empty for none.
    """

    root: str
    train: tuple[SplitFile, ...]
    val: tuple[SplitFile, ...]
    skipped: tuple[Skipped, ...]
    test: tuple[SplitFile, ...] = ()
    findings: tuple[Finding, ...] = ()
    group_by: str = ""


@dataclass(frozen=True)
class BackboneRecord:
    """`unchanged_tensors` were compared bit for bit with the weights file after the fit, `unchanged_buffers`
    of them buffers such as BN statistics; `tensors_sha256` is the digest that file and backbone share. `layer` is the
    one whose pooled output the features are, empty for the backbone's own features.
    """

    name: str
    weights_path: str
    weights_sha256: str
    tensors_sha256: str
    feature_dim: int
    unchanged_tensors: int
    unchanged_buffers: int
    layer: str = ""


@dataclass(frozen=True)
class FeaturesRecord:
    """`views` augmented versions of each training image were used beside the image itself."""

    runner: str
    precision: str
    from_cache: int
    computed: int
    views: int = 0


@dataclass(frozen=True)
class HeadRecord:
    """The fields of `HeadRecipe`, how many folds chose and calibrated it, and the sha256 of the head's file. Answers
    whose highest probability is below `reject_below` are none of the classes; None where nothing is rejected.
    """

    kind: str
    l2: float
    folds: int
    sha256: str
    class_weights: str = UNWEIGHTED
    seed: int = 0
    temperature: float = 1.0
    training: TrainingRecipe | None = None
    reject_below: float | None = None

    @property
    def recipe(self) -> HeadRecipe:
        return HeadRecipe(self.kind, self.l2, self.class_weights, self.seed, self.temperature, self.training)


@dataclass(frozen=True)
class Run:
    schema_version: int
    task: str
    created: str
    options: dict[str, Any]
    versions: dict[str, str]
    classes: tuple[str, ...]
    preprocess: PreprocessSpec
    backbone: BackboneRecord
    features: FeaturesRecord
    head: HeadRecord
    split: Split


def write_run(folder: Path, run: Run) -> None:
    (folder / RUN_NAME).write_bytes(pretty_json(to_dict(run)))


def load_run(folder: Path) -> Run:
    """Reads `run.json` and checks the head file against it.

    Raises:
        RunError: no run, a damaged one, or one of another schema version.
    """
    path = folder / RUN_NAME
    if not path.is_file():
        raise RunError(f"{folder} is not a run: it has no {RUN_NAME}.", hint="write one with edgetune fit")
    try:
        content = read_json(path)
        version = content.get("schema_version") if isinstance(content, dict) else None
        if version != SCHEMA_VERSION:
            raise RunError(f"{path} has schema version {version!r}, this edgetune reads {SCHEMA_VERSION}.")
        run = from_dict(Run, content, str(path))
    except (DataError, ConfigError) as error:
        raise RunError(f"the run's record is damaged: {error}", hint="fit again with edgetune fit") from error
    head = folder / HEAD_NAME
    if not head.is_file() or sha256_of_file(head) != run.head.sha256:
        raise RunError(f"{head} is missing or was changed after the fit.", hint="fit again with edgetune fit")
    return run

"""What a fit writes down of itself in `run.json`."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from edgetune.core.run import (
    SCHEMA_VERSION,
    BackboneRecord,
    FeaturesRecord,
    Finding,
    HeadRecord,
    Run,
    Skipped,
    Split,
    SplitFile,
)
from edgetune.core.versions import library_versions
from edgetune.data.image_folder import ImageFolder
from edgetune.features.extract import FeatureTable
from edgetune.heads.fit import HeadFit
from edgetune.models.identity import BackboneIdentity
from edgetune.steps.feature_source import FeatureSource
from edgetune.steps.fit_findings import relative_name
from edgetune.steps.fit_journal import recorded


@dataclass(frozen=True)
class Parts:
    """What a run is put together from; `backbone` was compared with its weights file."""

    folder: ImageFolder
    backbone: BackboneIdentity
    source: FeatureSource
    fitted: HeadFit
    findings: tuple[Finding, ...]


def record_run(
    options: dict[str, Any], parts: Parts, splits: tuple[FeatureTable, FeatureTable, FeatureTable | None],
    head_sha256: str,
) -> Run:  # fmt: skip
    """`splits` are train, val and test; `options` are recorded but for those that do not change the result."""
    tables = [table for table in splits if table is not None]
    return Run(
        schema_version=SCHEMA_VERSION,
        task="classification",
        created=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        options=recorded(options),
        versions=library_versions(),
        classes=parts.folder.classes,
        preprocess=parts.backbone.preprocess,
        backbone=_backbone(parts.backbone),
        features=_features(parts.source, tables),
        head=_head(parts.fitted, head_sha256),
        split=_split(parts, splits, options["group_by"]),
    )


def _backbone(identity: BackboneIdentity) -> BackboneRecord:
    return BackboneRecord(
        name=identity.name,
        weights_path=str(identity.weights_path),
        weights_sha256=identity.weights_sha256,
        tensors_sha256=identity.tensors_sha256,
        feature_dim=identity.feature_dim,
        unchanged_tensors=identity.tensors,
        unchanged_buffers=identity.buffers,
        layer=identity.layer,
    )


def _features(source: FeatureSource, tables: Sequence[FeatureTable]) -> FeaturesRecord:
    cached = sum(table.from_cache for table in tables)
    images = sum(len(table.files) for table in tables)
    return FeaturesRecord(source.runner, source.precision, cached, images - cached, len(tables[0].views))


def _head(fitted: HeadFit, sha256: str) -> HeadRecord:
    recipe = fitted.recipe
    return HeadRecord(
        kind=recipe.kind,
        l2=recipe.l2,
        folds=fitted.folds,
        sha256=sha256,
        class_weights=recipe.class_weights,
        seed=recipe.seed,
        temperature=recipe.temperature,
        training=recipe.training,
        reject_below=None if fitted.reject is None else fitted.reject.below,
    )


def _split(parts: Parts, splits: tuple[FeatureTable, FeatureTable, FeatureTable | None], group_by: str) -> Split:
    folder = parts.folder

    def files(table: FeatureTable | None) -> tuple[SplitFile, ...]:
        if table is None:
            return ()
        pairs = zip(table.files, table.hashes, strict=True)
        return tuple(SplitFile(relative_name(folder, file.path), sha256, file.label) for file, sha256 in pairs)

    train, val, test = splits
    skipped = [*folder.skipped, *(file for table in splits if table is not None for file in table.skipped)]
    named = tuple(Skipped(relative_name(folder, file.path), file.reason) for file in skipped)
    return Split(
        str(folder.root.absolute()), files(train), files(val), named, files(test), parts.findings, group_by
    )  # fmt: skip

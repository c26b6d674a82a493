"""What the owner of the images and weights should know, gathered from all who noticed something."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from edgetune.core.files import printable
from edgetune.core.run import Finding
from edgetune.data.findings import findings_of
from edgetune.data.image_folder import ImageFolder
from edgetune.features.duplicates import SplitImages, find_duplicates
from edgetune.features.extract import FeatureTable

_SPLITS = ("train", "val", "test")


def gather_findings(
    folder: ImageFolder, tables: Sequence[FeatureTable | None], notes: Sequence[str]
) -> tuple[Finding, ...]:
    """`tables` are those of train, val and test; `notes` are sentences about the weights."""
    splits = [
        _split_images(folder, name, table) for name, table in zip(_SPLITS, tables, strict=True) if table is not None
    ]
    return (
        *(Finding("weights", note) for note in notes),
        *folder.findings,
        *findings_of(_readable(folder, tables)),
        *find_duplicates(splits, folder.classes),
    )


def _readable(folder: ImageFolder, tables: Sequence[FeatureTable | None]) -> ImageFolder:
    """What is left of the folder: a class is not judged where none of its images could be read."""
    train, val, test = (() if table is None else table.files for table in tables)
    return dataclasses.replace(folder, train=train, val=val, test=test)


def relative_name(folder: ImageFolder, path: Path) -> str:
    """As a run records it: relative to the images' root, in valid UTF-8."""
    return printable(path.relative_to(folder.root).as_posix())


def _split_images(folder: ImageFolder, name: str, table: FeatureTable) -> SplitImages:
    paths = [relative_name(folder, file.path) for file in table.files]
    return SplitImages(name, paths, table.hashes, table.labels, table.features)

"""What is told of the images is true of those that could be read."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from edgetune.core.run import Finding
from edgetune.data.image_folder import ImageFile, ImageFolder, SkippedFile
from edgetune.features.table import FeatureTable
from edgetune.steps.fit_findings import gather_findings

ROOT = Path("/data")


def _files(split: str, count: int) -> tuple[ImageFile, ...]:
    return tuple(ImageFile(ROOT / split / f"{label}/{index}.png", label) for label in (0, 1) for index in range(count))


def _table(files: tuple[ImageFile, ...], broken: tuple[ImageFile, ...], seed: int) -> FeatureTable:
    features = np.random.default_rng(seed).standard_normal((len(files), 32)).astype(np.float32)
    return FeatureTable(
        features=features,
        labels=np.array([file.label for file in files], np.int64),
        files=files,
        hashes=tuple(f"{seed}{index:063d}" for index in range(len(files))),
        skipped=tuple(SkippedFile(file.path, "cut off") for file in broken),
        cached=np.zeros(len(files), np.bool_),
        views=(),
        view_rows=np.arange(0),
    )


def test_a_class_whose_val_images_are_all_broken_is_said_not_to_be_judged() -> None:
    train, val = _files("train", 12), _files("val", 2)
    scanned = Finding("no-group", "told by the listing.")
    folder = ImageFolder(ROOT, ("ant", "bee"), train, val, (), (), (scanned,))
    tables = (_table(train, (), 1), _table(val[:2], val[2:], 2), None)
    told = gather_findings(folder, tables, ("the weights are odd",))
    assert [(finding.kind, finding.message) for finding in told] == [
        ("weights", "the weights are odd"),
        ("no-group", "told by the listing."),
        ("missing-class", "val has no images of 1 of 2 classes, which are not judged: bee."),
    ]


def test_nothing_is_told_of_what_can_be_read() -> None:
    train, val = _files("train", 12), _files("val", 2)
    folder = ImageFolder(ROOT, ("ant", "bee"), train, val, ())
    assert gather_findings(folder, (_table(train, (), 1), _table(val, (), 2), None), ()) == ()

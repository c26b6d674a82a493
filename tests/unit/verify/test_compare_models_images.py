"""Two ONNX files on the same images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgetune.core.bundle import FAIL, PASS
from edgetune.verify.compare_models import CompareOptions
from tests.unit.verify.onnx_pairs import (
    IMAGE_WEIGHTS,
    NORMALISED,
    SIZE,
    SPEC,
    classifier,
    compare,
    only,
)


@pytest.mark.parametrize(("theirs", "ours"), [("planes", "pixels"), ("last", "planes"), ("pixels", "last")])
def test_images_reach_each_model_in_its_own_form(tmp_path: Path, images: Path, theirs: str, ours: str) -> None:
    """Normalised outside or inside, planes first or last: the same numbers."""
    entry = only(
        compare(classifier(tmp_path / "a.onnx", theirs), classifier(tmp_path / "b.onnx", ours), images, NORMALISED)
    )
    assert (entry.verdict, entry.images) == (PASS, 24), entry.reasons
    assert entry.max_abs_diff is not None
    assert entry.max_abs_diff < 1e-4


def test_class_folders_in_sorted_order_are_the_labels(tmp_path: Path, images: Path) -> None:
    path = classifier(tmp_path / "a.onnx", "pixels")
    found = compare(path, path, images)
    logits = found.pairs["a.onnx"].reference
    labels = np.array([0] * 12 + [1] * 12)  # ants, bees
    assert only(found).reference_accuracy == float(np.mean(logits.argmax(axis=1) == labels))
    assert [each.images for each in only(found).per_class] == [12, 12]


def test_names_in_the_metadata_go_before_the_folders_order(tmp_path: Path, images: Path) -> None:
    plain = classifier(tmp_path / "a.onnx", "pixels")
    named = classifier(tmp_path / "b.onnx", "pixels", metadata={"edgetune.classes": ["bees", "ants"]})
    sorted_, by_name = only(compare(plain, plain, images)), only(compare(named, named, images))
    assert sorted_.reference_accuracy is not None
    assert by_name.reference_accuracy == pytest.approx(1 - sorted_.reference_accuracy)
    assert compare(named, named, images).report.class_names == ("bees", "ants")


@pytest.mark.parametrize(
    ("layout", "remark"),
    [
        ("flat", "the images are in no class folders, so there is no accuracy"),
        ("three", "no accuracy: 3 class folders, and the models have 2 outputs"),
        ("named", "no accuracy: the class folder 'bees' is not in the model's metadata"),
    ],
)
def test_without_labels_a_remark_says_why(tmp_path: Path, images: Path, layout: str, remark: str) -> None:
    metadata = {"edgetune.classes": ["ants", "wasps"]} if layout == "named" else None
    path = classifier(tmp_path / "a.onnx", "pixels", metadata=metadata)
    if layout == "flat":
        for file in list(images.glob("*/*.png")):
            file.rename(images / file.name)
    if layout == "three":
        (images / "wasps").mkdir()
    entry = only(compare(path, path, images))
    assert (entry.verdict, entry.reference_accuracy) == (PASS, None)
    assert remark in entry.remarks


def test_splits_are_no_classes(tmp_path: Path, images: Path) -> None:
    for split in ("train", "val"):
        (tmp_path / "data" / split).mkdir(parents=True)
    (images / "ants").rename(tmp_path / "data" / "val" / "ants")
    (images / "bees").rename(tmp_path / "data" / "val" / "bees")
    path = classifier(tmp_path / "a.onnx", "pixels")
    entry = only(compare(path, path, tmp_path / "data"))
    assert entry.images == 24
    assert entry.reference_accuracy is not None


def test_metadata_replaces_options(tmp_path: Path, images: Path) -> None:
    """A model that says nothing is prepared like the one it was made of."""
    told = classifier(tmp_path / "a.onnx", "planes", metadata={"edgetune.preprocess": SPEC})
    assert only(compare(told, classifier(tmp_path / "b.onnx", "planes"), images)).verdict == PASS
    assert only(compare(told, classifier(tmp_path / "c.onnx", "pixels"), images)).verdict == PASS


@pytest.mark.parametrize(
    ("theirs", "ours", "reason", "stage"),
    [
        (
            {"edgetune.preprocess": SPEC},
            {"edgetune.preprocess": {**SPEC, "resize_size": 8, "interpolation": "bicubic"}},
            "its metadata prepares images otherwise: resize_size 8, the reference 9; "
            "interpolation bicubic, the reference bilinear",
            "pixels",
        ),
        (
            {"edgetune.classes": ["ants", "bees"]},
            {"edgetune.classes": ["bees", "ants"]},
            "its metadata names other classes, or in another order, than the reference's",
            "labels",
        ),
    ],
    ids=["preprocessing", "classes"],
)
def test_the_same_graph_with_other_metadata_is_another_classifier(
    tmp_path: Path, images: Path, theirs: Any, ours: Any, reason: str, stage: str
) -> None:
    models = (
        classifier(tmp_path / "a.onnx", "pixels", metadata=theirs),
        classifier(tmp_path / "b.onnx", "pixels", metadata=ours),
    )
    entry = only(compare(*models, images))
    assert (entry.verdict, entry.reasons, entry.stage) == (FAIL, (reason,), stage)


def test_what_a_candidate_does_to_pixels_is_told(tmp_path: Path, images: Path) -> None:
    swapped = IMAGE_WEIGHTS.reshape(3, SIZE * SIZE, 2)[::-1].reshape(-1, 2)
    models = (classifier(tmp_path / "a.onnx", "planes"), classifier(tmp_path / "b.onnx", "planes", swapped))
    entry = only(compare(*models, images, CompareOptions(mean=(0.5, 0.5, 0.5), std=(0.3, 0.3, 0.3))))
    assert entry.verdict == FAIL
    assert entry.diagnosis.startswith("red and blue are swapped would explain it")


def test_a_file_that_is_no_image_is_skipped_and_said(tmp_path: Path, images: Path) -> None:
    (images / "ants" / "broken.png").write_bytes(b"nothing")
    path = classifier(tmp_path / "a.onnx", "pixels")
    found = compare(path, path, images)
    assert only(found).images == 24
    assert [Path(file.path).name for file in found.report.skipped] == ["broken.png"]

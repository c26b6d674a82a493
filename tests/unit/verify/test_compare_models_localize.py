"""What two ONNX files leave for localisation and for reports, and files that disappear."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edgetune.core.bundle import FAIL, PASS
from edgetune.core.errors import DataError, ModelError
from edgetune.steps.parity_models import ModelsOptions, parity_of_models
from edgetune.verify.compare_models import CompareOptions, compare_models
from tests.unit.verify.onnx_pairs import (
    IMAGE_WEIGHTS,
    KEPT,
    NORMALISED,
    SIZE,
    SPEC,
    WEIGHTS,
    X,
    classifier,
    compare,
    linear,
    only,
)


def test_inputs_are_kept_where_both_models_are_fed_alike(tmp_path: Path, images: Path, rows: Path) -> None:
    reference = classifier(tmp_path / "a.onnx", "planes")
    inputs = compare(reference, classifier(tmp_path / "b.onnx", "planes", -IMAGE_WEIGHTS), images, KEPT).inputs
    first = np.asarray(Image.open(images / "ants" / "01.png"), np.float64) / 255
    normalised = (first - [0.5, 0.4, 0.3]) / [0.2, 0.3, 0.4]
    assert inputs is not None
    assert inputs.shape == (16, 3, SIZE, SIZE)
    assert inputs.dtype == np.float32
    np.testing.assert_allclose(inputs[0], normalised.transpose(2, 0, 1), atol=1e-5)
    kept = compare(linear(tmp_path / "c.onnx"), linear(tmp_path / "d.onnx"), rows, KEPT).inputs
    np.testing.assert_array_equal(kept, X[:16])
    assert compare(reference, reference, images, NORMALISED).inputs is None


@pytest.mark.parametrize(
    ("form", "spec"),
    [("last", None), ("planes", {"mean": [0.5, 0.4, 0.31]}), ("pixels", None)],
    ids=["axes", "mean", "dtype"],
)
def test_inputs_are_not_kept_where_models_are_fed_otherwise(
    tmp_path: Path, images: Path, form: str, spec: dict[str, Any] | None
) -> None:
    """float32 of rank 4 on both sides, and yet not the same numbers."""
    theirs = classifier(tmp_path / "a.onnx", "planes", metadata={"edgetune.preprocess": SPEC})
    ours = classifier(tmp_path / "b.onnx", form, metadata={"edgetune.preprocess": {**SPEC, **(spec or {})}})
    assert compare(theirs, ours, images, CompareOptions(keep_inputs=True)).inputs is None


def test_blocks_of_models_that_are_fed_otherwise_are_not_blamed(tmp_path: Path, images: Path) -> None:
    theirs, ours = (
        classifier(tmp_path / "a.onnx", "planes"), classifier(tmp_path / "b.onnx", "last", -IMAGE_WEIGHTS)
    )  # fmt: skip
    report = parity_of_models(theirs, ours, images, ModelsOptions(compare=NORMALISED, localize=True))
    (entry,) = report.artifacts
    assert entry.verdict == FAIL
    assert entry.localisation is not None
    assert entry.localisation.culprit == ""
    assert "are not fed the same one input" in entry.localisation.explanation


def test_an_output_that_is_not_there_has_no_block_to_blame(tmp_path: Path, rows: Path) -> None:
    reference = linear(tmp_path / "a.onnx", extra=True)
    report = parity_of_models(reference, linear(tmp_path / "b.onnx"), rows, ModelsOptions(localize=True))
    assert [entry.verdict for entry in report.artifacts] == [PASS, FAIL]
    assert [entry.localisation for entry in report.artifacts] == [None, None]


def test_flipped_images_are_named_by_folder_and_shown(tmp_path: Path, images: Path) -> None:
    """Negated weights turn every label of two."""
    models = classifier(tmp_path / "a.onnx", "pixels"), classifier(tmp_path / "b.onnx", "pixels", -IMAGE_WEIGHTS)
    files = {hashlib.sha256(path.read_bytes()).hexdigest(): path for path in images.glob("*/*.png")}
    found = compare(*models, images)
    assert found.flipped == files
    assert len(files) == 24
    assert {flip.sha256: flip.file for flip in only(found).flips} == {
        sha256: f"{path.parent.name}/{path.name}" for sha256, path in files.items()
    }
    parity_of_models(*models, images, ModelsOptions(out=tmp_path / "out"))
    assert (tmp_path / "out" / "parity.html").read_text().count("data:image/jpeg") == 24


def test_only_flipped_images_are_given_out(tmp_path: Path, images: Path, rows: Path) -> None:
    path = classifier(tmp_path / "a.onnx", "pixels")
    assert compare(path, path, images).flipped == {}
    turned = compare(linear(tmp_path / "c.onnx"), linear(tmp_path / "d.onnx", -WEIGHTS), rows)
    assert len(only(turned).flips) > 0
    assert turned.flipped == {}


def test_images_that_disappear_while_running_are_one_line(tmp_path: Path, images: Path) -> None:
    """Localisation reads the first of them again."""

    def remove(stage: str, done: int, total: int) -> None:
        if stage == "parity" and done == total:
            for file in images.glob("*/*.png"):
                file.unlink()

    path = classifier(tmp_path / "a.onnx", "planes")
    with pytest.raises(DataError, match="can no longer be read"):
        compare_models(path, path, images, KEPT, progress=remove)


def test_a_model_that_disappears_while_running_is_one_line(tmp_path: Path, rows: Path) -> None:
    reference, candidate = linear(tmp_path / "a.onnx"), linear(tmp_path / "b.onnx")

    def remove(stage: str, done: int, total: int) -> None:
        if stage == "parity" and done == total:
            candidate.unlink(missing_ok=True)

    with pytest.raises(ModelError, match=r"b\.onnx cannot be read: No such file or directory\.$"):
        compare_models(reference, candidate, rows, CompareOptions(), progress=remove)


def test_a_folder_that_cannot_be_read_is_one_line(
    tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path) -> Any:
        raise PermissionError(13, "Permission denied", str(path))

    path = classifier(tmp_path / "a.onnx", "pixels")
    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(DataError, match=r"images cannot be read: Permission denied\.$"):
        compare(path, path, images)

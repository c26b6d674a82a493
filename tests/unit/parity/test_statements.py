from __future__ import annotations

import dataclasses
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgetune.core.bundle import FAIL, NOT_RUN, PASS, SCHEMA_VERSION, Bundle, Manifest, RunOrigin
from edgetune.core.config import to_dict
from edgetune.core.files import canonical_json
from edgetune.core.golden import GoldenSet, write_golden
from edgetune.core.preprocess import PreprocessSpec
from edgetune.parity.records import StageCheck
from edgetune.parity.statements import (
    METADATA_CLASSES,
    METADATA_PREPROCESS,
    Statement,
    check_golden,
    check_statements,
    statement_from_metadata,
)

SPEC = PreprocessSpec(24, 20, "bilinear", (0.5, 0.4, 0.3), (0.2, 0.25, 0.3))
MANIFEST = Statement("the manifest", SPEC, ("ants", "bees", "wasps"))


def _other(**changed: object) -> Statement:
    return dataclasses.replace(MANIFEST, source="the run", **changed)  # type: ignore[arg-type]


def _brief(checks: tuple[StageCheck, ...]) -> list[tuple[str, str, str]]:
    return [(check.stage, check.verdict, check.reason) for check in checks]


def test_what_agrees_passes_in_three_stages() -> None:
    told = "all agree: the manifest, the run, the run"
    checks = check_statements(MANIFEST, [_other(), _other()])
    assert _brief(checks) == [("pixels", PASS, told), ("normalised", PASS, told), ("labels", PASS, told)]


@pytest.mark.parametrize(
    ("field", "value", "stage", "words"),
    [
        ("resize_size", 32, "pixels", "resize_size is 24 px in the manifest, 32 px in the run"),
        ("crop_size", 16, "pixels", "crop_size is 20 px in the manifest, 16 px in the run"),
        ("interpolation", "bicubic", "pixels", "interpolation is bilinear in the manifest, bicubic in the run"),
        ("mean", (0.5, 0.4, 0.31), "normalised",
         "mean is (0.5, 0.4, 0.3) in the manifest, (0.5, 0.4, 0.31) in the run"),
        ("std", (0.3, 0.25, 0.2), "normalised",
         "std is (0.2, 0.25, 0.3) in the manifest, (0.3, 0.25, 0.2) in the run"),
    ],
)  # fmt: skip
def test_a_preprocessing_that_differs_fails_with_both_values(
    field: str, value: object, stage: str, words: str
) -> None:  # fmt: skip
    other = _other(preprocess=dataclasses.replace(SPEC, **{field: value}))  # type: ignore[arg-type]
    checks = check_statements(MANIFEST, [_other(), other])
    assert _brief(checks)[0] == (stage, FAIL, words)
    assert [check.stage for check in checks].count(stage) == 1
    assert [check.verdict for check in checks[1:]] == [PASS, PASS]


@pytest.mark.parametrize(
    ("classes", "words"),
    [
        (("bees", "ants", "wasps"), "class 0 is 'ants' in the manifest, 'bees' in the run, and 1 more differ"),
        (("ants", "bees", "Wasps"), "class 2 is 'wasps' in the manifest, 'Wasps' in the run"),
        (("ants", "bees"), "there are 3 classes in the manifest, 2 in the run"),
        (None, "the run does not name its classes"),
    ],
    ids=["permuted", "renamed", "fewer", "none"],
)
def test_classes_that_differ_fail_with_both_names(classes: tuple[str, ...] | None, words: str) -> None:
    checks = check_statements(MANIFEST, [_other(classes=classes)])
    assert _brief(checks)[0] == ("labels", FAIL, words)
    assert [check.stage for check in checks] == ["labels", "pixels", "normalised"]


def test_a_file_that_does_not_say_how_images_are_preprocessed_fails() -> None:
    checks = check_statements(MANIFEST, [_other(preprocess=None)])
    assert _brief(checks)[0] == ("pixels", FAIL, "the run does not say how images are preprocessed")


def test_what_could_not_be_asked_is_not_run_and_takes_nothing_from_the_others() -> None:
    silent = Statement("model.onnx", None, None, problem="model.onnx could not be asked: no ONNX Runtime")
    checks = check_statements(MANIFEST, [_other(), silent])
    assert [check.verdict for check in checks] == [NOT_RUN, PASS, PASS, PASS]
    assert checks[0].reason == silent.problem
    assert "model.onnx" not in checks[1].reason
    checks = check_statements(MANIFEST, [silent])
    assert {check.verdict for check in checks} == {NOT_RUN}
    assert {check.verdict for check in check_statements(MANIFEST, [])} == {NOT_RUN}


def test_metadata_are_read_as_compose_writes_them() -> None:
    compose = pytest.importorskip("edgetune.graph.compose", exc_type=ImportError)
    assert (METADATA_CLASSES, METADATA_PREPROCESS) == (compose.METADATA_CLASSES, compose.METADATA_PREPROCESS)
    metadata = {METADATA_CLASSES: '["ä","b"]', METADATA_PREPROCESS: canonical_json(to_dict(SPEC)).decode()}
    assert statement_from_metadata("m.onnx", metadata) == Statement("m.onnx", SPEC, ("ä", "b"))


@pytest.mark.parametrize("text", ["", "{", "5", "null", '{"crop_size": 3}', "[1, 2]"])
def test_metadata_that_make_no_sense_say_nothing(text: str) -> None:
    statement = statement_from_metadata("m.onnx", {METADATA_CLASSES: text, METADATA_PREPROCESS: text})
    assert statement == Statement("m.onnx", None, None)


def _bundle(folder: Path, *, off_by: int = 0, size: int = 20) -> Bundle:
    files = {}
    pixels = np.empty((2, size, size, 3), np.uint8)
    for index, level in enumerate((60, 120)):
        stream = io.BytesIO()
        Image.new("RGB", (24, 24), (level, level, level)).save(stream, "PNG")
        files[f"{index}.png"] = stream.getvalue()
        pixels[index] = level
    pixels[1, 3, 4, 2] += off_by
    write_golden(folder, GoldenSet(tuple(files), pixels, {}), files)
    manifest = Manifest(SCHEMA_VERSION, "classification", ("a", "b"), SPEC, RunOrigin("", ""), "b", "0", "", (), {})
    return Bundle(folder, manifest)


@pytest.mark.parametrize(("off_by", "verdict"), [(0, PASS), (8, PASS), (9, FAIL)])
def test_golden_pixels_may_differ_by_eight_steps(off_by: int, verdict: str, tmp_path: Path) -> None:
    check = check_golden(_bundle(tmp_path, off_by=off_by))
    assert (check.stage, check.verdict, check.max_abs_diff, check.limit) == ("pixels", verdict, float(off_by), 8.0)
    assert check.reason.startswith("golden image 1.png is decoded otherwise" if off_by > 8 else "2 golden images on")


def test_golden_images_of_another_size_fail_with_both(tmp_path: Path) -> None:
    check = check_golden(_bundle(tmp_path, size=22))
    assert check.verdict == FAIL
    assert check.reason == "the golden images come out at 20 px here, 22 px where the bundle was exported"


def test_a_golden_image_that_cannot_be_decoded_fails(tmp_path: Path) -> None:
    bundle = _bundle(tmp_path)
    (tmp_path / "golden" / "0.png").write_bytes(b"no image")
    check = check_golden(bundle)
    assert check.verdict == FAIL
    assert "a golden image: image is not an image that can be read" in check.reason


def test_a_bundle_without_golden_images_is_not_run(tmp_path: Path) -> None:
    bundle = _bundle(tmp_path)
    (tmp_path / "golden" / "golden.npz").unlink()
    check = check_golden(bundle)
    assert check.verdict == NOT_RUN
    assert "holds no golden set" in check.reason

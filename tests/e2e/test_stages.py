"""Stages of a real bundle, with its INT8 artifacts, from the default backbone's real weights."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from edgetune.core.bundle import FAIL, PASS, Bundle, load_bundle
from edgetune.core.run import Run
from edgetune.data.image_folder import ImageFile, scan_labelled
from edgetune.parity.records import StageCheck
from edgetune.parity.stages import first_failed
from edgetune.verify.reference import find_run
from edgetune.verify.stages import (
    StageJob,
    StageReference,
    check_artifact,
    check_bundle,
    check_pixels,
    stage_reference,
)

pytestmark = pytest.mark.e2e

Found = tuple[Path, Run]


@pytest.fixture(scope="module")
def bundle(small_bundle: Path) -> Bundle:
    return load_bundle(small_bundle)


@pytest.fixture(scope="module")
def found(bundle: Bundle) -> Found:
    run = find_run(bundle, None)
    assert run is not None
    return run


@pytest.fixture(scope="module")
def files(bundle: Bundle, photos: Path) -> tuple[ImageFile, ...]:
    return scan_labelled(photos, bundle.manifest.classes)[0]


@pytest.fixture(scope="module")
def reference(bundle: Bundle, found: Found, files: tuple[ImageFile, ...]) -> StageReference:
    return stage_reference(bundle, found, files)


def test_a_healthy_bundle_passes_every_stage(
    bundle: Bundle, found: Found, files: tuple[ImageFile, ...], reference: StageReference
) -> None:
    common = (*check_bundle(bundle, found), check_pixels(files, bundle.manifest.preprocess))
    assert {check.verdict for check in common} == {PASS}, common
    assert {artifact.precision for artifact in bundle.manifest.artifacts} == {"fp32", "int8"}
    for artifact in bundle.manifest.artifacts:
        checks = check_artifact(StageJob(bundle, artifact, reference))
        assert {check.verdict for check in checks} == {PASS}, (artifact.name, checks)
        assert first_failed(checks) == ""


def test_int8_is_half_a_grey_level_off_where_it_is_normalised(bundle: Bundle, reference: StageReference) -> None:
    """(128 - 127.5) / 127.5 = 0.00392: allowed, and stated."""
    for artifact in bundle.manifest.artifacts:
        check = check_artifact(StageJob(bundle, artifact, reference))[0]
        expected = 0.5 / 127.5 if artifact.precision == "int8" else 0.0
        assert check.max_abs_diff == pytest.approx(expected, rel=0, abs=1e-6)


def test_an_int8_artifact_is_far_enough_inside_its_limits(bundle: Bundle, reference: StageReference) -> None:
    """What is judged below 10 and 6 dB has 18 and more when it is healthy."""
    for artifact in bundle.manifest.artifacts:
        checks = check_artifact(StageJob(bundle, artifact, reference))
        for check in (checks[1], checks[2]):
            assert _sqnr_db(check) > (18.0 if artifact.precision == "int8" else 105.0)


def _sqnr_db(check: StageCheck) -> float:
    return float(check.reason.removeprefix("SQNR is ").split(" dB")[0])


def test_a_manifest_of_another_backbones_preprocessing_fails_before_anything_else(
    bundle: Bundle, found: Found, files: tuple[ImageFile, ...]
) -> None:
    spec = dataclasses.replace(
        bundle.manifest.preprocess, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), interpolation="nearest"
    )
    changed = Bundle(bundle.path, dataclasses.replace(bundle.manifest, preprocess=spec))
    checks = check_bundle(changed, found)
    assert first_failed(checks) == "pixels"
    told = [check.reason for check in checks if check.verdict == FAIL]
    assert "interpolation is nearest in the manifest, bicubic in the run" in told
    assert "mean is (0.485, 0.456, 0.406) in the manifest, (0.5, 0.5, 0.5) in model.onnx" in told
    assert any("is decoded otherwise than where the bundle was exported" in reason for reason in told)
    artifact = bundle.artifact("model.onnx")
    followed = check_artifact(StageJob(changed, artifact, stage_reference(changed, found, files)))
    assert first_failed(followed) == "normalised"
    assert "the graph normalises with mean (0.5, 0.5, 0.5) and std (0.5, 0.5, 0.5)" in followed[0].reason

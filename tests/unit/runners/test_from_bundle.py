"""Which artifact a machine takes, and how it notices that it computes something else."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgetune.core.bundle import SCHEMA_VERSION, Artifact, Bundle, Manifest, RunOrigin, load_bundle, write_manifest
from edgetune.core.errors import ArtifactError, SelfTestError
from edgetune.core.files import sha256_of_file
from edgetune.core.golden import GoldenSet, write_golden
from edgetune.core.preprocess import PreprocessSpec
from edgetune.runners import from_bundle
from edgetune.runners.from_bundle import choose_artifact, open_runner, self_test, suits_machine
from tests.unit.runners.test_contract import mean_model

SPEC = PreprocessSpec(4, 4, "bilinear", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
COLOUR = (10, 20, 30)
# The model is the mean colour times [[1, 0, -1], [0.5, 0.5, 0.5]].
LOGITS = np.array([[-20.0, 30.0]], dtype=np.float32)
FP32, INT8, ARM, TENSORRT = (
    "model.onnx", "model.int8.cpu-x86.onnx", "model.int8.cpu-arm.onnx", "model.int8.tensorrt.onnx"
)  # fmt: skip


def _bundle(folder: Path, verdicts: dict[str, str], logits: np.ndarray = LOGITS, pixel: int = 10) -> Bundle:
    folder.mkdir()
    for name in verdicts:
        (folder / name).write_bytes(mean_model())
    stream = io.BytesIO()
    Image.new("RGB", (4, 4), COLOUR).save(stream, "PNG")
    pixels = np.full((1, 4, 4, 3), COLOUR, dtype=np.uint8)
    pixels[0, 0, 0, 0] = pixel
    golden = GoldenSet(("0.png",), pixels, dict.fromkeys(verdicts, logits))
    write_golden(folder, golden, {"0.png": stream.getvalue()})
    artifacts = tuple(
        Artifact(name, "onnx", "int8" if "int8" in name else "fp32", name.split(".")[2] if "int8" in name else "any",
                 sha256_of_file(folder / name), (folder / name).stat().st_size, verdict, 1.0)
        for name, verdict in verdicts.items()
    )  # fmt: skip
    manifest = Manifest(
        SCHEMA_VERSION, "classification", ("a", "b"), SPEC, RunOrigin("run", "0"), "mean", "0", "now", artifacts, {}
    )
    write_manifest(folder, manifest)
    return load_bundle(folder)


@pytest.fixture(params=[True, False], ids=["VNNI", "no VNNI"])
def vnni(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    monkeypatch.setattr(from_bundle, "is_x86", lambda: True)
    monkeypatch.setattr(from_bundle, "int8_saturates", lambda: not request.param)
    return bool(request.param)


@pytest.mark.parametrize(
    ("verdicts", "with_vnni", "without"),
    [
        ({FP32: "PASS", INT8: "PASS"}, INT8, FP32),
        ({FP32: "PASS", INT8: "FAIL"}, FP32, FP32),
        ({FP32: "PASS", INT8: "NOT-RUN"}, FP32, FP32),
        ({FP32: "FAIL", INT8: "PASS"}, INT8, INT8),
        ({FP32: "PASS", TENSORRT: "PASS"}, FP32, FP32),
        ({FP32: "FAIL", TENSORRT: "PASS"}, None, None),
        ({FP32: "PASS", TENSORRT: "PASS", INT8: "PASS"}, INT8, FP32),
        ({FP32: "PASS", ARM: "PASS"}, FP32, FP32),
        ({FP32: "FAIL", INT8: "FAIL"}, None, None),
        ({FP32: "PASS"}, FP32, FP32),
    ],
)
def test_the_artifact_passed_parity_and_is_right_here(
    verdicts: dict[str, str], with_vnni: str | None, without: str | None, vnni: bool, tmp_path: Path
) -> None:
    bundle = _bundle(tmp_path / "b", verdicts)
    expected = with_vnni if vnni else without
    if expected is None:
        with pytest.raises(ArtifactError, match="no artifact that passed parity"):
            choose_artifact(bundle)
    else:
        choice = choose_artifact(bundle)
        assert choice.artifact.name == expected
        assert choose_artifact(bundle, allow_failed=True).artifact.name == expected


@pytest.mark.parametrize(
    ("machine", "suitable"),
    [("x86_64", INT8), ("AMD64", INT8), ("aarch64", ARM), ("arm64", ARM), ("riscv64", None)],
)
def test_int8_is_for_the_cpu_that_its_target_names(
    machine: str, suitable: str | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("platform.machine", lambda: machine)
    bundle = _bundle(tmp_path / "b", dict.fromkeys((FP32, INT8, ARM, TENSORRT), "PASS"))
    suiting = [artifact.name for artifact in bundle.manifest.artifacts if suits_machine(artifact)]
    assert suiting == [FP32, *([suitable] if suitable else [])]


@pytest.mark.parametrize(
    ("verdicts", "words"),
    [
        ({FP32: "PASS"}, "the bundle has no INT8 artifact"),
        ({FP32: "PASS", INT8: "FAIL", TENSORRT: "PASS"}, "INT8 is FAIL"),
        ({FP32: "PASS", ARM: "PASS", TENSORRT: "PASS"}, "INT8 for cpu-arm, tensorrt, not for this CPU"),
        ({FP32: "PASS", INT8: "PASS"}, "this CPU has no VNNI"),
    ],
)
def test_the_reason_for_fp32_is_told(
    verdicts: dict[str, str], words: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    monkeypatch.setattr(from_bundle, "int8_saturates", lambda: True)
    choice = choose_artifact(_bundle(tmp_path / "b", verdicts))
    assert choice.artifact.name == FP32
    assert words in choice.reason


def test_what_failed_is_taken_only_when_told_to(tmp_path: Path) -> None:
    bundle = _bundle(tmp_path / "b", {FP32: "FAIL"})
    with pytest.raises(ArtifactError, match="failed parity"):
        choose_artifact(bundle, FP32)
    assert choose_artifact(bundle, FP32, allow_failed=True).artifact.name == FP32
    assert choose_artifact(bundle, allow_failed=True).artifact.name == FP32
    with pytest.raises(ArtifactError, match="has no artifact 'engine'") as caught:
        choose_artifact(bundle, "engine")
    assert FP32 in caught.value.hint


def test_the_self_test_passes_where_pixels_and_logits_are_the_same(tmp_path: Path) -> None:
    bundle = _bundle(tmp_path / "b", {FP32: "PASS"})
    with open_runner(bundle, bundle.artifact(FP32)) as runner:
        tested = self_test(bundle, bundle.artifact(FP32), runner)
    assert (tested.images, tested.max_pixel_diff) == (1, 0)
    assert tested.max_logit_diff < 1e-4


@pytest.mark.parametrize(
    ("logits", "pixel", "words"),
    [
        ([[-20.0, 30.5]], 10, r"golden logits differ by up to 0\.5, expected at most 0\.0305"),
        ([[-20.0, 30.0]], 60, "pixels differ by up to 50 of 255, expected at most 8"),
    ],
    ids=["other logits", "another decoder"],
)
def test_a_machine_that_computes_something_else_is_noticed(
    logits: list[list[float]], pixel: int, words: str, tmp_path: Path
) -> None:
    bundle = _bundle(tmp_path / "b", {FP32: "PASS"}, np.array(logits, np.float32), pixel)
    with open_runner(bundle, bundle.artifact(FP32)) as runner, pytest.raises(SelfTestError, match=words):
        self_test(bundle, bundle.artifact(FP32), runner)

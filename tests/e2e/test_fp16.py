"""`export --fp16` on real weights and images: the file, its record, its proof, and the engine that TensorRT builds."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import TensorProto

from edgetune.cli.main import cli
from edgetune.core.bundle import PASS, load_bundle
from edgetune.core.engine_record import TENSORRT_RTX
from edgetune.core.errors import DataError
from edgetune.core.files import sha256_of_file
from edgetune.core.golden import load_golden
from edgetune.core.progress import no_progress
from edgetune.core.run import load_run
from edgetune.graph.float_view import element_types
from edgetune.graph.inspect import describe_onnx
from edgetune.runners.ort_runner import OrtRunner
from edgetune.runners.trt_library import installed_backends
from edgetune.steps.fp16 import write_fp16
from tests.e2e.test_rtx_parse import _build, _convolution_types

pytestmark = pytest.mark.e2e

NAME = "model.fp16.onnx"


@pytest.fixture(scope="module")
def told(small_run: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The bundle, and what the command said."""
    out = tmp_path_factory.mktemp("bundles") / "half"
    words = ["export", str(small_run), "--out", str(out), "--fp16", "--calibration-images", "20"]
    done = CliRunner().invoke(cli, words, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return out, done.output


@pytest.fixture(scope="module")
def bundle(told: tuple[Path, str]) -> Path:
    return told[0]


def test_the_manifest_lists_it_as_passed(bundle: Path) -> None:
    artifact = load_bundle(bundle).artifact(NAME)
    assert (artifact.role, artifact.precision, artifact.target, artifact.verdict) == ("onnx", "fp16", "tensorrt", PASS)
    assert artifact.size_bytes < 0.55 * load_bundle(bundle).artifact("model.onnx").size_bytes


def test_every_convolution_and_the_head_compute_in_half(bundle: Path) -> None:
    model = onnx.load(bundle / NAME)
    onnx.checker.check_model(model, full_check=True)
    types = element_types(model)
    products = [node for node in model.graph.node if node.op_type in ("Conv", "Gemm")]
    assert len(products) == 50
    assert {types[node.output[0]] for node in products} == {TensorProto.FLOAT16}
    assert sum(node.op_type == "Cast" for node in model.graph.node) == 3  # of the pixels, to half, and back
    described, reference = describe_onnx(bundle / NAME), describe_onnx(bundle / "model.onnx")
    for key in ("inputs", "outputs", "classes", "preprocess", "opset", "ir_version"):
        assert described[key] == reference[key]


def test_its_distance_is_that_of_float16(bundle: Path) -> None:
    """Rounding to 11 bits, layer after layer: far from float32's 110 dB, and far from INT8's 30."""
    entries = {entry["artifact"]: entry for entry in json.loads((bundle / "parity.json").read_text())["artifacts"]}
    entry = entries[NAME]
    assert entry["runner"].endswith("rounding to float16")
    assert 38 < entry["sqnr_db"] < 70
    assert entry["top1_agreement"] == 1.0
    assert entry["candidate_accuracy"] == entry["reference_accuracy"]
    assert "rounding" not in entries["model.onnx"]["runner"]


def test_the_record_names_training_images_by_hash(bundle: Path, small_run: Path) -> None:
    record = json.loads((bundle / "fp16.json").read_text())
    run = load_run(small_run)
    listed = {image["sha256"] for image in record["images"]}
    assert len(listed) == 20
    assert listed <= {file.sha256 for file in run.split.train} - {file.sha256 for file in run.split.val}
    assert (record["limit"], record["kept_float"]) == (8188.0, {})
    assert record["half_nodes"] == len(onnx.load(bundle / "model.onnx").graph.node) - 4  # normalisation
    assert load_bundle(bundle).manifest.files["fp16.json"].sha256 == sha256_of_file(bundle / "fp16.json")


def test_changed_and_missing_images_show_no_ranges(bundle: Path, small_run: Path, tmp_path: Path) -> None:
    run = load_run(small_run)
    shutil.copytree(run.split.root, tmp_path / "photos")
    files = run.split.train[:4]
    (tmp_path / "photos" / files[1].path).unlink()
    shutil.copy(tmp_path / "photos" / files[0].path, tmp_path / "photos" / files[2].path)
    shutil.copy(bundle / "model.onnx", tmp_path / "model.onnx")
    record = write_fp16(run, tmp_path / "photos", files, tmp_path / "model.onnx", no_progress)
    assert record.images == (files[0], files[3])
    assert {file.path: file.reason.split(":")[0] for file in record.skipped} == {
        files[1].path: "cannot be read",
        files[2].path: "was changed after the fit",
    }
    with pytest.raises(DataError, match="not one of 2 training images"):
        write_fp16(run, tmp_path / "photos", files[1:3], tmp_path / "model.onnx", no_progress)


def test_the_command_tells_what_stays_float(told: tuple[Path, str]) -> None:
    assert "operators, 0 kept in float32; ranges from 20 training images" in told[1]


def test_golden_logits_are_there_and_near_those_of_this_cpu(bundle: Path) -> None:
    golden, _ = load_golden(load_bundle(bundle))
    with OrtRunner(bundle / NAME) as runner:
        logits = runner.infer({"image": golden.pixels})["logits"]
    limit = 0.02 * max(1.0, float(np.abs(golden.logits[NAME]).max()))
    assert np.abs(logits - golden.logits[NAME]).max() < limit
    assert (golden.logits[NAME] != golden.logits["model.onnx"]).any()


@pytest.mark.skipif(
    TENSORRT_RTX not in installed_backends(),
    reason="TensorRT-RTX is not installed; pip install 'edgetune[tensorrt-rtx]'",
)
def test_tensorrt_computes_every_convolution_in_half(bundle: Path) -> None:
    answer = _build(bundle / NAME)
    types = _convolution_types(answer)
    assert answer["input"] == ["image", "UINT8"]
    assert set(types) == {"Half"}
    assert len(types) >= 48  # of 49: the last one may become a matrix product
    products = [line for line in answer["layers"] if "FcAdd" in line.split(",", 1)[0]]
    assert products
    assert all("Datatype: Half" in line for line in products)

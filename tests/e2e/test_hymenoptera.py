"""The main job on real photos with real weights, by the commands a user types."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from edgetune.core.bundle import load_bundle
from edgetune.core.preprocess import preprocess_image
from edgetune.core.run import load_run
from edgetune.core.tensors import IMAGE_INPUT, LOGITS_OUTPUT
from tests.serving import running_server

pytestmark = pytest.mark.e2e
torch = pytest.importorskip("torch")


def edgetune(*words: str, expect: int = 0) -> dict[str, Any]:
    command = [sys.executable, "-m", "edgetune.cli.main", *words, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == expect, done.stderr + done.stdout
    data: dict[str, Any] = json.loads(done.stdout)
    return data


@pytest.fixture(scope="module")
def run(hymenoptera: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "hymenoptera"
    edgetune("fit", str(hymenoptera), "--out", str(folder))
    return folder


@pytest.fixture(scope="module")
def bundle(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundles") / "hymenoptera"
    edgetune("export", str(run), "--out", str(folder), "--int8", "--target", "cpu-x86")
    return folder


@pytest.fixture(scope="module")
def photo(hymenoptera: Path) -> Path:
    return min((hymenoptera / "val" / "bees").glob("*.jpg"))


def test_the_head_reaches_the_accuracy_of_a_solved_regression(run: Path) -> None:
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["task"] == "classification"
    assert metrics["images"] == 153
    assert metrics["top1_accuracy"] >= 0.947
    low, high = metrics["top1_accuracy_ci95"]
    assert low < metrics["top1_accuracy"] < high
    with (run / "results.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    losses = [float(row["cv_log_loss"]) for row in rows]
    assert len(rows) >= 20
    (chosen,) = [row for row in rows if float(row["l2"]) == pytest.approx(load_run(run).head.l2, rel=1e-4)]
    assert float(chosen["cv_log_loss"]) <= 1.001 * min(losses) + 1e-6


def test_the_placeholder_gif_is_reported_by_name(run: Path) -> None:
    record = load_run(run)
    assert [file.path for file in record.split.skipped] == ["train/ants/imageNotFound.gif"]
    assert (len(record.split.train), len(record.split.val)) == (244, 153)


def test_the_run_records_that_the_backbone_stayed(run: Path) -> None:
    backbone = load_run(run).backbone
    assert (backbone.unchanged_tensors, backbone.unchanged_buffers) == (294, 147)


def test_a_second_fit_takes_every_feature_from_the_cache_and_gives_the_same_head(
    run: Path, hymenoptera: Path, tmp_path: Path
) -> None:
    again = edgetune("fit", str(hymenoptera), "--out", str(tmp_path / "again"))
    assert again["data"]["features"]["from_cache"] == 397
    assert again["data"]["features"]["computed"] == 0
    assert (tmp_path / "again" / "head.safetensors").read_bytes() == (run / "head.safetensors").read_bytes()


def test_parity_passes_on_all_validation_photos(bundle: Path, hymenoptera: Path, tmp_path: Path) -> None:
    report = edgetune("parity", str(bundle), "--data", str(hymenoptera), "--out", str(tmp_path))["data"]
    exact, int8 = report["artifacts"]
    assert (exact["artifact"], exact["reference"], exact["images"]) == ("model.onnx", "torch cpu", 153)
    assert exact["max_abs_diff"] <= 1e-4
    assert exact["top1_agreement"] == 1.0
    assert exact["sqnr_db"] >= 100
    assert int8["top1_agreement"] >= 0.97
    assert int8["reference_accuracy"] - int8["candidate_accuracy"] <= 0.01
    assert {exact["verdict"], int8["verdict"]} == {"PASS"}
    assert int8["certified"] is False  # 153 images cannot prove one point
    assert json.loads((tmp_path / "parity.json").read_text())["verdict"] == "PASS"
    assert b"model.int8.cpu-x86.onnx" in (tmp_path / "parity.html").read_bytes()


def test_parity_without_the_run_uses_the_stored_reference(bundle: Path, hymenoptera: Path, tmp_path: Path) -> None:
    moved = tmp_path / "device" / "bundle"
    shutil.copytree(bundle, moved)
    origin = load_bundle(bundle).manifest.run.path
    hidden = Path(origin).with_name("hidden")
    Path(origin).rename(hidden)
    try:
        known = edgetune("parity", str(moved), "--data", str(hymenoptera))["data"]
        unknown = edgetune("parity", str(moved), "--data", str(hymenoptera / "train"), expect=3)["data"]
    finally:
        hidden.rename(origin)
    assert {entry["verdict"] for entry in known["artifacts"]} == {"PASS"}
    assert known["artifacts"][0]["reference"] == "torch cpu, stored"
    assert {entry["verdict"] for entry in unknown["artifacts"]} == {"NOT-RUN"}


def test_one_photo_gets_one_answer_by_every_way(bundle: Path, run: Path, photo: Path) -> None:
    from edgetune.verify.reference import load_run_backbone, open_classifier

    record = load_run(run)
    pixels = preprocess_image(photo.read_bytes(), record.preprocess)
    with open_classifier(run, record, load_run_backbone(record)) as reference:
        expected = reference.infer({IMAGE_INPUT: pixels[np.newaxis]})[LOGITS_OUTPUT][0]
    predicted = edgetune("predict", str(bundle), str(photo), "--artifact", "model.onnx")["data"]["images"][0]
    with running_server(bundle, "--artifact", "model.onnx") as address:
        body = photo.read_bytes()
        served = httpx.post(f"{address}/v1/classify?logits=1", content=body, timeout=30).json()
    np.testing.assert_allclose(predicted["logits"], expected, rtol=0, atol=1e-4)
    np.testing.assert_allclose(served["logits"], expected, rtol=0, atol=1e-4)
    assert predicted["predictions"][0]["label"] == served["predictions"][0]["label"] == "bees"
    assert record.classes[int(expected.argmax())] == "bees"


def test_bench_times_both_artifacts_and_recommends_one(bundle: Path) -> None:
    result = edgetune("bench", str(bundle), "--runs", "10", "--threads", "1")["data"]
    assert [row["artifact"] for row in result["rows"]] == ["model.onnx", "model.int8.cpu-x86.onnx"]
    assert all(row["latency"][0]["p50_ms"] > 0 for row in result["rows"])
    assert result["recommended"] in {row["artifact"] for row in result["rows"]}


def test_info_knows_runs_bundles_and_models(bundle: Path, run: Path) -> None:
    assert edgetune("info", str(run))["data"]["kind"] == "run"
    assert edgetune("info", str(bundle))["data"]["intact"] is True
    assert edgetune("info", str(bundle / "model.int8.cpu-x86.onnx"))["data"]["quantized"] is True


def test_calibration_is_recorded_and_uses_training_images_only(bundle: Path, run: Path) -> None:
    record = json.loads((bundle / "calibration.json").read_text())
    train = {file.sha256 for file in load_run(run).split.train}
    used = {file["sha256"] for file in record["images"]}
    assert len(used) == 244
    assert used <= train
    (target,) = record["targets"]
    assert target["target"] == "cpu-x86"
    assert target["integer_layers"] == len(target["layers"]) == 49
    assert all(entry["low"] <= entry["high"] for entry in target["ranges"].values())

"""Bundles with one fault each, all digests right: parity must fail them, and say where the fault is."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest

from edgetune.core.bundle import load_bundle
from edgetune.core.preprocess import preprocess_image
from edgetune.core.run import HEAD_NAME
from edgetune.data.image_folder import scan_labelled
from edgetune.parity.records import ParityEntry, ParityReport
from edgetune.runners.base import infer_images
from edgetune.runners.ort_runner import OrtRunner
from edgetune.steps.parity import ParityOptions, parity
from edgetune.verify.by_the_book import open_for_parity
from tests import faults
from tests.fault_bundles import (
    bundle_beside,
    bundle_with,
    exported_again,
    half_of,
    only_float,
    parity_process,
    random_backbone,
    write_photos,
)
from tests.fault_table import ALL, BATCH_NORM, FAULTS, FLOAT, HALF, LOCALISED, TENSORRT, X86, Fault, file_name

if TYPE_CHECKING:
    from torch import nn

pytestmark = pytest.mark.e2e
torch = pytest.importorskip("torch")
pytest.importorskip("sklearn")

Models = Mapping[str, tuple[str, onnx.ModelProto]]


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("faults")


@pytest.fixture(scope="module")
def judged_photos(room: Path) -> Path:
    """12 photographs, a third of which lie on their side."""
    return write_photos(room / "judged", 3, seed=1, turned=1)


@pytest.fixture(scope="module")
def run(room: Path) -> Path:
    from edgetune.steps.fit import FitOptions, fit

    write_photos(room / "photos", 16, seed=0, turned=2)
    return fit(room / "photos", room / "run", FitOptions()).run_path


@pytest.fixture(scope="module")
def healthy(run: Path, room: Path) -> Path:
    from edgetune.quantize.rounding import WeightOptions
    from edgetune.steps.export import ExportOptions, export

    options = ExportOptions(int8=True, fp16=True, weights=WeightOptions(rounding=False), search_s=0, refit_head=False)
    return export(run, room / "healthy", options).bundle_path


@pytest.fixture(scope="module")
def healthy_float(healthy: Path, room: Path) -> Path:
    return only_float(healthy, room / "float")


@pytest.fixture(scope="module")
def older_run(run: Path, room: Path) -> Path:
    """The same backbone on half of the images: another head."""
    from edgetune.steps.fit import FitOptions, fit

    return fit(half_of(room / "photos", room / "fewer"), room / "older", FitOptions()).run_path


@pytest.fixture(scope="module")
def models(healthy: Path, run: Path, older_run: Path) -> dict[str, tuple[str, onnx.ModelProto]]:
    """Every faulty model with the artifact it comes from, by the fault's name."""
    from edgetune.heads.head import load_head

    sources = {name: onnx.load(healthy / name) for name in (FLOAT, X86, TENSORRT)}
    planted = {name: (_kind(name, fault), fault.plant(sources[fault.source])) for name, fault in FAULTS.items()}
    older = load_head(older_run / HEAD_NAME)
    with_older_head = faults.with_head(older.weight, older.bias)
    return planted | {
        "older-head": (FLOAT, with_older_head(sources[FLOAT])),
        "int8-older-head": (X86, with_older_head(sources[X86])),
        "batch-norm": (FLOAT, exported_again(run, _change_batch_norm)),
    }


def _kind(name: str, fault: Fault) -> str:
    return HALF if name.startswith("fp16") else fault.source


def _change_batch_norm(module: nn.Module) -> None:
    variance = module.get_submodule(BATCH_NORM).running_var
    assert isinstance(variance, torch.Tensor)
    variance.mul_(2.0)


@pytest.fixture(scope="module")
def reports(healthy: Path, run: Path, models: Models, judged_photos: Path, room: Path) -> tuple[ParityReport, ...]:
    """All faulty artifacts beside the healthy ones, judged at once; those of one layer with localisation, which takes
    its time.
    """
    made = []
    for name, is_localised in (("plain", False), ("localised", True)):
        chosen = {file_name(fault): models[fault] for fault in models if (fault in LOCALISED) is is_localised}
        bundle = bundle_beside(healthy, room / name, chosen)
        made.append(parity(bundle, judged_photos, ParityOptions(run=run, localize=is_localised)))
    return tuple(made)


def entry_of(reports: tuple[ParityReport, ...], name: str) -> ParityEntry:
    (entry,) = [entry for report in reports for entry in report.artifacts if entry.artifact == file_name(name)]
    return entry


def told(entry: ParityEntry) -> str:
    return " ".join((*entry.reasons, *entry.remarks, entry.diagnosis))


def test_the_faults_are_there(healthy: Path, models: Models, judged_photos: Path, room: Path) -> None:
    """By other means than parity's: else a test that finds a fault would prove nothing."""
    bundle = load_bundle(healthy)
    files, _ = scan_labelled(judged_photos, bundle.manifest.classes)
    spec = bundle.manifest.preprocess
    images = np.stack([preprocess_image(file.path.read_bytes(), spec) for file in files[::2]])
    before = {name: _logits(open_for_parity(healthy / name, _precision(name)), images) for name in (FLOAT, X86, HALF)}
    before[TENSORRT] = _logits(OrtRunner(healthy / TENSORRT), images)
    (room / "one").mkdir()
    for name, (source, model) in models.items():
        path = room / "one" / file_name(name)
        path.write_bytes(model.SerializeToString())
        logits = _logits(open_for_parity(path, _precision(source)), images)
        if logits.shape == before[source].shape:
            change = float(np.abs(logits - before[source]).max())
            assert not change <= (0.005 if ALL[name].shows else -1.0), f"{name} changes the logits by {change}"


def _precision(name: str) -> str:
    return "fp16" if name == HALF else "int8" if "int8" in name else "fp32"


def _logits(runner: OrtRunner, images: Any) -> Any:
    with runner:
        return infer_images(runner, images, "logits")


def test_the_healthy_pass_beside_the_faulty(reports: tuple[ParityReport, ...]) -> None:
    for report in reports:
        healthy = {
            entry.artifact: entry for entry in report.artifacts if entry.artifact in (FLOAT, X86, TENSORRT, HALF)
        }
        assert len(healthy) == 4
        assert {entry.verdict for entry in healthy.values()} == {"PASS"}, [told(entry) for entry in healthy.values()]
        assert "FAIL" not in {stage.verdict for stage in report.stages}


@pytest.mark.parametrize("name", ALL)
def test_a_faulty_artifact_fails_and_the_fault_is_named(name: str, reports: tuple[ParityReport, ...]) -> None:
    entry, fault = entry_of(reports, name), ALL[name]
    assert entry.verdict == "FAIL", told(entry)
    assert entry.reasons
    if fault.stage:
        assert entry.stage == fault.stage, told(entry)
    if fault.words:
        assert re.search(fault.words, told(entry), re.IGNORECASE), told(entry)
    if fault.variation:
        failed = [variation.name for variation in entry.variations if variation.verdict == "FAIL"]
        assert any(re.search(fault.variation, variation) for variation in failed), failed


@pytest.mark.parametrize("name", LOCALISED)
def test_the_broken_layer_is_found(name: str, reports: tuple[ParityReport, ...]) -> None:
    entry = entry_of(reports, name)
    assert entry.localisation is not None, told(entry)
    found = f"{entry.localisation.culprit} {entry.localisation.module}"
    assert re.search(ALL[name].module, found), f"{found}: {entry.localisation.explanation}"
    assert ALL[name].kind in {"", entry.localisation.kind}, entry.localisation.explanation


def test_a_swapped_input_by_the_command(healthy_float: Path, run: Path, judged_photos: Path, tmp_path: Path) -> None:
    model = faults.bgr_input(onnx.load(healthy_float / FLOAT))
    bundle = bundle_with(healthy_float, tmp_path / "bundle", {FLOAT: model})
    code, data = parity_process(bundle, "--data", judged_photos, "--run", run)
    assert code == 3
    assert data["artifacts"][0]["verdict"] == "FAIL"
    assert data["artifacts"][0]["stage"] == "normalised"


def test_labels_in_another_order_in_the_models_metadata(
    healthy_float: Path, run: Path, judged_photos: Path, tmp_path: Path
) -> None:
    """The logits are right, and what reads the labels from the file says others."""
    model = faults.labels_in_metadata(onnx.load(healthy_float / FLOAT))
    bundle = bundle_with(healthy_float, tmp_path / "bundle", {FLOAT: model})
    report = parity(bundle, judged_photos, ParityOptions(run=run))
    assert report.verdict == "FAIL"
    assert _failed_stages(dataclasses.asdict(report)) == {"labels"}


def test_labels_in_another_order_than_the_manifests(
    healthy_float: Path, run: Path, judged_photos: Path, tmp_path: Path
) -> None:
    classes = load_bundle(healthy_float).manifest.classes
    bundle = bundle_with(healthy_float, tmp_path / "bundle", {}, classes=(*classes[1:], classes[0]))
    code, data = parity_process(bundle, "--data", judged_photos, "--run", run)
    assert code == 3
    assert "labels" in _failed_stages(data)


@pytest.mark.parametrize("change", [{"resize_size": 288}, {"interpolation": "bilinear"}])
def test_another_preprocessing_than_the_runs(
    change: dict[str, Any], healthy_float: Path, run: Path, judged_photos: Path, tmp_path: Path
) -> None:
    """The images that the model is judged on would be prepared alike for both sides, and nothing would differ."""
    spec = dataclasses.replace(load_bundle(healthy_float).manifest.preprocess, **change)
    bundle = bundle_with(healthy_float, tmp_path / "bundle", {}, preprocess=spec)
    report = parity(bundle, judged_photos, ParityOptions(run=run))
    assert report.verdict == "FAIL"
    assert "pixels" in _failed_stages(dataclasses.asdict(report))


def _failed_stages(report: Mapping[str, Any]) -> set[str]:
    """Of the report, and of its artifacts."""
    lists = [report["stages"], *(entry["stages"] for entry in report["artifacts"])]
    named = {stage["stage"] for stages in lists for stage in stages if stage["verdict"] == "FAIL"}
    return named | {entry["stage"] for entry in report["artifacts"] if entry["verdict"] == "FAIL"}


def test_mean_and_std_swapped(room: Path, run: Path, judged_photos: Path, tmp_path: Path) -> None:
    """On a backbone whose channels have means of their own."""
    from edgetune.steps.export import ExportOptions, export
    from edgetune.steps.fit import FitOptions, fit

    options = FitOptions(**random_backbone(tmp_path))
    own_run = fit(room / "photos", tmp_path / "run", options).run_path
    good = export(own_run, tmp_path / "good", ExportOptions()).bundle_path
    swapped = faults.mean_and_std_swapped(onnx.load(good / FLOAT))
    bundle = bundle_beside(good, tmp_path / "bundle", {file_name("swapped"): (FLOAT, swapped)})
    code, data = parity_process(bundle, "--data", judged_photos, "--run", own_run)
    assert code == 3
    verdicts = {entry["artifact"]: (entry["verdict"], entry["stage"]) for entry in data["artifacts"]}
    assert verdicts == {FLOAT: ("PASS", ""), file_name("swapped"): ("FAIL", "normalised")}

"""Servers and engines with one fault each: parity must fail them, or say that they could not be judged."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from edgetune.core.bundle import load_bundle
from edgetune.parity.records import ParityEntry
from edgetune.steps.parity import ParityOptions, parity
from tests import fault_servers
from tests.fault_bundles import half_of, parity_process, random_backbone, write_photos
from tests.fault_table import FLOAT
from tests.serving import running_server
from tests.unit.core.engine_records import HOST, KEY, engine_record, host_with, write_engine

pytestmark = pytest.mark.e2e
pytest.importorskip("torch")
pytest.importorskip("sklearn")


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("servers")


@pytest.fixture(scope="module")
def judged(room: Path) -> Path:
    """8 photographs, half of which lie on their side."""
    return write_photos(room / "judged", 2, seed=1, turned=1)


@pytest.fixture(scope="module")
def run(room: Path) -> Path:
    from edgetune.steps.fit import FitOptions, fit

    write_photos(room / "photos", 16, seed=0, turned=2)
    return fit(room / "photos", room / "run", FitOptions(**random_backbone(room))).run_path


@pytest.fixture(scope="module")
def healthy(run: Path, room: Path) -> Path:
    from edgetune.steps.export import ExportOptions, export

    return export(run, room / "healthy", ExportOptions()).bundle_path


def told(entry: ParityEntry) -> str:
    return " ".join((*entry.reasons, *entry.remarks, entry.diagnosis))


def test_an_engine_of_another_version(healthy: Path, run: Path, judged: Path, tmp_path: Path) -> None:
    """It cannot run, which is no PASS; and with --require it fails."""
    host = host_with(HOST, backend_version="8.0.0.0")
    key = dataclasses.replace(KEY, host=host, onnx_sha256=load_bundle(healthy).artifact(FLOAT).sha256)
    write_engine(tmp_path / "engines" / "old", engine_record(key, artifact=FLOAT))
    words = (healthy, "--data", judged, "--run", run, "--engine-cache", tmp_path / "engines")
    code, data = parity_process(*words, "--runner", "engine")
    assert (code, [entry["verdict"] for entry in data["artifacts"]]) == (3, ["NOT-RUN"])
    code, data = parity_process(*words, "--runner", "cpu", "--runner", "engine", "--require")
    assert code == 3
    assert sorted(entry["verdict"] for entry in data["artifacts"]) == ["FAIL", "PASS"]


PREPARED = {
    "without-antialias": fault_servers.without_antialias,
    "off-centre": fault_servers.off_centre,
    "bgr": fault_servers.bgr,
    "exif-ignored": fault_servers.exif_ignored,
    "squashed": fault_servers.squashed,
    "transposed": fault_servers.transposed,
    "recompressed": fault_servers.recompressed,
}
ANSWERED: dict[str, Callable[[Path], AbstractContextManager[str]]] = {
    "probabilities": lambda bundle: fault_servers.faulty_server(bundle, answer=fault_servers.probabilities),
    "previous-answer": lambda bundle: fault_servers.faulty_server(bundle, answer=fault_servers.PreviousAnswer()),
    "other-classes": lambda bundle: fault_servers.faulty_server(
        bundle, classes=load_bundle(bundle).manifest.classes[::-1]
    ),
}


def judge_server(bundle: Path, data: Path, run: Path, url: str) -> tuple[str, list[ParityEntry], list[ParityEntry]]:
    """The verdict, the entries of artifacts here, and those of the server."""
    report = parity(bundle, data, ParityOptions(run=run, url=url))
    served = [entry for entry in report.artifacts if entry.runner.startswith("server")]
    return report.verdict, [entry for entry in report.artifacts if entry not in served], served


def test_a_server_that_is_right_passes(healthy: Path, run: Path, judged: Path) -> None:
    with fault_servers.faulty_server(healthy) as url:
        verdict, _, served = judge_server(healthy, judged, run, url)
    assert served
    assert verdict == "PASS", [told(entry) for entry in served]


@pytest.mark.parametrize("name", PREPARED)
def test_a_server_that_prepares_images_otherwise(name: str, healthy: Path, run: Path, judged: Path) -> None:
    with fault_servers.faulty_server(healthy, PREPARED[name]) as url:
        verdict, here, served = judge_server(healthy, judged, run, url)
    assert verdict == "FAIL"
    assert {entry.verdict for entry in here} == {"PASS"}
    failed = [entry for entry in served if entry.verdict == "FAIL"]
    assert {entry.stage for entry in failed} == {"pixels"}, [told(entry) for entry in served]


@pytest.mark.parametrize("name", ANSWERED)
def test_a_server_that_answers_otherwise(name: str, healthy: Path, run: Path, judged: Path) -> None:
    with ANSWERED[name](healthy) as url:
        verdict, here, served = judge_server(healthy, judged, run, url)
    assert verdict == "FAIL"
    assert {entry.verdict for entry in here} == {"PASS"}
    assert "FAIL" in {entry.verdict for entry in served}


def test_a_server_that_still_serves_the_bundle_before(
    healthy: Path, run: Path, judged: Path, room: Path, tmp_path: Path
) -> None:
    from edgetune.steps.export import ExportOptions, export
    from edgetune.steps.fit import FitOptions, fit

    older = fit(
        half_of(room / "photos", tmp_path / "fewer"), tmp_path / "run", FitOptions(**random_backbone(room))
    ).run_path
    before = export(older, tmp_path / "healthy", ExportOptions()).bundle_path
    with running_server(before) as url:
        code, data = parity_process(healthy, "--data", judged, "--run", run, "--url", url)
    assert code == 3
    failed = [entry for entry in data["artifacts"] if entry["verdict"] == "FAIL"]
    assert failed
    assert all(entry["runner"].startswith("server") for entry in failed)
    assert re.search("bundle|artifact", " ".join(text for entry in failed for text in entry["reasons"]))

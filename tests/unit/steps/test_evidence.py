from __future__ import annotations

import dataclasses
import json
import socket
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edgetune.cli.main import main
from edgetune.core.bundle import load_bundle, write_manifest
from edgetune.core.engine_files import engine_cache
from edgetune.core.engine_record import EngineKey
from edgetune.core.errors import DataError, EdgetuneError, OutputExistsError
from edgetune.core.files import canonical_json, sha256_of_bytes, sha256_of_file
from edgetune.core.power import Cooling, PowerState
from edgetune.runners.ort_probe import ProviderFinding
from edgetune.steps import doctor as doctor_step
from edgetune.steps import evidence as step
from edgetune.steps.doctor import DoctorResult, Finding
from edgetune.steps.evidence import KIND, SCHEMA_VERSION, EvidenceOptions, write_evidence
from edgetune.steps.measured import BENCH, PARITY, Subject
from edgetune.verify.reference import stored_reference_bytes
from tests.unit.core.engine_records import KEY, engine_record, write_engine
from tests.unit.runners.mean_bundle import FP32, TENSORRT, mean_bundle

COLOURS = {"a": (200, 20, 30), "b": (10, 20, 30)}
KEYS = [
    "kind", "schema_version", "created", "versions", "backends", "machine", "findings", "power_before", "power_after",
    "slowdowns", "bundle", "bench", "parity", "engines", "errors", "digest",
]  # fmt: skip


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EDGETUNE_CACHE", str(tmp_path / "cache"))
    return engine_cache()


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    for name, colour in COLOURS.items():
        (folder / name).mkdir(parents=True)
        Image.new("RGB", (4, 4), colour).save(folder / name / f"{name}.png")
    return folder


def logits(colour: tuple[int, int, int]) -> list[float]:
    """What the model of the bundle computes: the colour times [[1, 0, -1], [0.5, 0.5, 0.5]]."""
    red, green, blue = colour
    return [float(red - blue), (red + green + blue) / 2]


def bundle_with_reference(folder: Path, images: Path, sign: int = 1) -> Path:
    bundle = mean_bundle(folder, {FP32: "PASS", TENSORRT: "PASS"})
    hashes = tuple(sha256_of_file(images / name / f"{name}.png") for name in COLOURS)
    table = np.array([logits(colour) for colour in COLOURS.values()], np.float32)
    (folder / "reference.npz").write_bytes(stored_reference_bytes("torch", hashes, sign * table))
    write_manifest(folder, bundle.manifest)
    return folder


def read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_bytes())
    assert list(content) == KEYS
    digest = content.pop("digest")
    assert sha256_of_bytes(canonical_json(content)) == digest
    return content


def test_a_machine_alone_is_described(tmp_path: Path) -> None:
    written = write_evidence(tmp_path / "deep" / "e.json")
    content = read(tmp_path / "deep" / "e.json")
    assert (content["kind"], content["schema_version"]) == (KIND, SCHEMA_VERSION)
    assert content == written.content
    assert content["machine"]["python"] == ".".join(map(str, sys.version_info[:3]))
    assert {"cpu", "TensorRT", "TensorRT-RTX", "engine cache"} <= {finding["name"] for finding in content["findings"]}
    assert [content[part] for part in ("bundle", "bench", "parity", "engines", "errors")] == [None, None, None, [], {}]


def test_a_bundle_is_timed_and_judged_and_its_engines_are_listed(tmp_path: Path, images: Path, cache: Path) -> None:
    bundle = bundle_with_reference(tmp_path / "b", images)
    onnx_sha256 = sha256_of_file(bundle / TENSORRT)
    key = EngineKey(KEY.host, onnx_sha256, KEY.calibration_sha256, KEY.precision, KEY.options)
    write_engine(cache / "mine", dataclasses.replace(engine_record(key), artifact="built_from_a_copy.onnx"))
    write_engine(cache / "of another bundle")
    stages: list[str] = []
    write_evidence(
        tmp_path / "e.json",
        EvidenceOptions(bundle, images),
        progress=lambda stage, _done, _total: stages.append(stage),
    )
    content = read(tmp_path / "e.json")
    assert content["errors"] == {}
    assert content["bundle"]["digest"] == json.loads((bundle / "manifest.json").read_bytes())["digest"]
    assert content["bundle"]["classes"] == 2
    assert [artifact["sha256"] for artifact in content["bundle"]["artifacts"]][1] == onnx_sha256
    assert {row["artifact"] for row in content["bench"]["rows"]} == {FP32, TENSORRT}
    assert all(latency["p50_ms"] > 0 for row in content["bench"]["rows"] for latency in row["latency"])
    assert (content["parity"]["verdict"], content["parity"]["data"], content["parity"]["skipped"]) == (
        "PASS", "<data>", 0,
    )  # fmt: skip
    assert {(entry["images"], entry["candidate_accuracy"]) for entry in content["parity"]["artifacts"]} == {(2, 1.0)}
    (engine,) = content["engines"]
    assert (engine["fingerprint"], engine["artifact"]) == ("mine", TENSORRT)
    assert engine["layers"] == {"count": 1, "kinds": {"correlation": 1}}
    assert engine["proof"]["holds"] is True
    assert {"batch 1", "batch 8", "parity"} <= set(stages)


def test_without_reference_parity_is_not_run_and_says_why(tmp_path: Path, images: Path) -> None:
    bundle = mean_bundle(tmp_path / "b", {FP32: "PASS"})
    write_evidence(tmp_path / "e.json", EvidenceOptions(bundle.path))
    content = read(tmp_path / "e.json")
    assert content["parity"]["verdict"] == "NOT-RUN"
    assert content["parity"]["reasons"] == [
        "data: the images do not fit the bundle, or there are none; edgetune parity on the device tells more."
    ]
    assert content["errors"][PARITY] == content["parity"]["reasons"][0]
    assert content["bench"]["recommended"] == FP32


def test_no_user_host_or_folder_is_in_the_file(tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "Home of Erika" / "mustermann"
    home.mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("USER", "mustermann")
    monkeypatch.setenv("EDGETUNE_CACHE", str(home / "cache"))
    monkeypatch.setattr(socket, "gethostname", lambda: "secret-camera-17.lab.example")
    private = images.rename(home / "private photos")
    (private / "a" / "aunt frida.png").write_bytes(b"no image")
    bundle = bundle_with_reference(home / "b", private)
    spoken = f"{home}/x of mustermann on secret-camera-17, 48:b0:2d:12:ab:ef, /srv/elsewhere/mine.onnx"
    monkeypatch.setattr(step, "doctor", lambda _: DoctorResult((Finding("system", spoken, True, spoken),), {}))
    write_evidence(home / "e.json", EvidenceOptions(bundle, private))
    spoiled = bundle / "model.onnx"
    spoiled.write_bytes(spoiled.read_bytes() + b"\0")
    write_evidence(home / "spoiled.json", EvidenceOptions(bundle, private))
    assert read(home / "spoiled.json")["errors"]["bundle"].startswith("<bundle>/model.onnx was changed")
    assert read(home / "e.json")["parity"]["skipped"] == 1
    assert read(home / "e.json")["findings"][0]["value"] == (
        "~/x of <user> on <host>, <hardware address>, <folder>/mine.onnx"
    )
    for file in (home / "e.json", home / "spoiled.json"):
        text = file.read_text().lower()
        planted = (
            "mustermann",
            "erika",
            "secret-camera",
            "48:b0",
            "elsewhere",
            "private photos",
            "frida",
            str(tmp_path),
        )
        assert [word for word in planted if word in text] == []


PLANTED = ("geheim_projekt", "frida_am_strand", "Kunde Mueller", "Nichts")


def write_private_evidence(tmp_path: Path, bundle: Path, data: Path | None) -> dict[str, Any]:
    """The evidence, in which nothing that was planted stands."""
    path = tmp_path / "e.json"
    write_evidence(path, EvidenceOptions(bundle, data, force=True))
    text = path.read_text()
    assert [word for word in (*PLANTED, str(tmp_path)) if word in text] == []
    return read(path)


def test_a_class_that_the_bundle_lacks_is_not_named(tmp_path: Path, images: Path) -> None:
    bundle = bundle_with_reference(tmp_path / "b", images)
    (images / PLANTED[0]).mkdir()
    content = write_private_evidence(tmp_path, bundle, images)
    assert content["errors"][PARITY].startswith("data: the images do not fit the bundle")
    assert content["parity"] == {"verdict": "NOT-RUN", "artifacts": [], "reasons": [content["errors"][PARITY]]}


def test_images_that_cannot_be_read_are_not_named(tmp_path: Path, images: Path) -> None:
    bundle = bundle_with_reference(tmp_path / "b", images)
    for name in COLOURS:
        (images / name / f"{name}.png").write_bytes(b"no image")
        (images / name / f"{PLANTED[1]}.png").write_bytes(b"no image")
    content = write_private_evidence(tmp_path, bundle, images)
    assert content["errors"][PARITY].startswith("data: ")


def test_classes_are_not_named_by_a_bundle_that_loads_or_not(
    tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(part: str, subject: Subject, progress: object) -> Any:
        raise KeyError(f"{PLANTED[2]} of {PLANTED[0]}")

    monkeypatch.setattr(step, "measure", fails)
    bundle = bundle_with_reference(tmp_path / "b", images)
    manifest = load_bundle(bundle).manifest
    write_manifest(bundle, dataclasses.replace(manifest, classes=(PLANTED[0], PLANTED[2])))
    content = write_private_evidence(tmp_path, bundle, images)
    assert content["errors"] == {BENCH: "KeyError: '<name> of <name>'", PARITY: "KeyError"}
    (bundle / PLANTED[0]).mkdir()
    (bundle / PLANTED[0] / f"{PLANTED[1]}.jpg").write_bytes(b"")
    content = write_private_evidence(tmp_path, bundle, images)
    assert content["errors"] == {
        "bundle": "<bundle> holds files that its manifest does not list: <name>/<name>."
    }  # fmt: skip


def test_a_class_whose_name_is_a_common_word_spoils_nothing(
    tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = bundle_with_reference(tmp_path / "b", images)
    write_evidence(tmp_path / "before.json", EvidenceOptions(bundle, images))
    for name in ("model", "bench", "cpu", "0", "p50_ms"):
        (images / "a" / name).mkdir()
    manifest = load_bundle(bundle).manifest
    write_manifest(bundle, dataclasses.replace(manifest, classes=("a", "b", "model", "bench", "0")))
    write_evidence(tmp_path / "after.json", EvidenceOptions(bundle, images))
    before, after = (read(tmp_path / f"{name}.json") for name in ("before", "after"))
    judged = [file.pop("parity") for file in (after, before)]
    assert keys(after) == keys(before)
    assert set(judged[0]) == set(judged[1])
    assert [set(entry) for entry in judged[0]["artifacts"]] == [set(entry) for entry in judged[1]["artifacts"]]
    assert {row["artifact"] for row in after["bench"]["rows"]} == {FP32, TENSORRT}
    assert after["bench"]["recommended"] == before["bench"]["recommended"]
    # Free space, which one of them tells, may change meanwhile.
    assert [each["name"] for each in after["findings"]] == [each["name"] for each in before["findings"]]


def keys(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: keys(item) for key, item in value.items()}
    return [keys(item) for item in value] if isinstance(value, list) else None


def test_engines_of_another_cache_are_listed_and_measured(
    tmp_path: Path, images: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Subject] = []

    def measure(part: str, subject: Subject, progress: object) -> Any:
        asked.append(subject)
        raise DataError("no")

    monkeypatch.setattr(step, "measure", measure)
    monkeypatch.chdir(tmp_path)
    bundle = bundle_with_reference(tmp_path / "b", images)
    key = EngineKey(KEY.host, sha256_of_file(bundle / TENSORRT), KEY.calibration_sha256, KEY.precision, KEY.options)
    write_engine(cache / "of the user", engine_record(key))
    write_engine(tmp_path / "Engines of Frida" / "mine", engine_record(key))
    write_evidence(Path("e.json"), EvidenceOptions(Path("b"), Path("images"), Path("Engines of Frida")))
    content = read(tmp_path / "e.json")
    assert [engine["fingerprint"] for engine in content["engines"]] == ["mine"]
    assert asked == [Subject(tmp_path / "b", tmp_path / "images", tmp_path / "Engines of Frida")] * 2
    assert content["findings"][-1]["value"].startswith("<engine cache>, 1 engine")
    assert "Frida" not in (tmp_path / "e.json").read_text()


def test_the_providers_for_gpus_are_in_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = ProviderFinding("cuda", False, f"{tmp_path}/libcuda.so.1 cannot be loaded", "install the NVIDIA driver")
    monkeypatch.setattr(doctor_step, "offered_providers", lambda: ("cuda",))
    monkeypatch.setattr(doctor_step, "probe_providers", lambda names: (found,))
    monkeypatch.setattr(doctor_step, "gpu_identity", lambda: None)
    write_evidence(tmp_path / "e.json")
    (finding,) = [finding for finding in read(tmp_path / "e.json")["findings"] if finding["name"] == "runner cuda"]
    assert finding["value"] == "not usable: <folder>/libcuda.so.1 cannot be loaded"
    assert (finding["ok"], finding["advice"]) == (None, "install the NVIDIA driver")


def test_a_part_that_fails_is_noted_and_the_others_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> Any:
        raise RuntimeError("the driver said no\nand more")

    monkeypatch.setattr(step, "read_power_state", fails)
    monkeypatch.setattr(step, "measure", fails)
    bundle = mean_bundle(tmp_path / "b", {FP32: "PASS"})
    write_evidence(tmp_path / "e.json", EvidenceOptions(bundle.path))
    content = read(tmp_path / "e.json")
    said = "RuntimeError: the driver said no"
    assert content["errors"] == {"power": said, BENCH: said, PARITY: "RuntimeError"}
    assert (content["power_before"], content["bench"], content["parity"]["verdict"]) == (None, None, "NOT-RUN")
    assert content["machine"]["architecture"]


def test_what_slowed_the_machine_down_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calm = PowerState("15W", 0, None, None, None, None, None, {"oc3_event_cnt": 1}, None)
    hot = dataclasses.replace(calm, cooling=(Cooling("gpu-throttle", 2, 5),), counters={"oc3_event_cnt": 3})
    states = iter([calm, hot])
    monkeypatch.setattr(step, "read_power_state", lambda: next(states))
    write_evidence(tmp_path / "e.json")
    content = read(tmp_path / "e.json")
    assert content["power_before"]["power_mode"] == "15W"
    assert content["slowdowns"] == [
        "gpu-throttle was slowed down to step 2 after the measurements",
        "oc3_event_cnt rose by 2 during the measurements",
    ]


def test_a_file_that_is_there_stays(tmp_path: Path) -> None:
    path = tmp_path / "e.json"
    write_evidence(path)
    before = path.read_bytes()
    with pytest.raises(OutputExistsError, match="exists already"):
        write_evidence(path)
    assert path.read_bytes() == before
    write_evidence(path, EvidenceOptions(force=True))
    path.write_text('{"kind": "my diary"}')
    with pytest.raises(OutputExistsError, match="no evidence that edgetune wrote"):
        write_evidence(path, EvidenceOptions(force=True))
    assert path.read_text() == '{"kind": "my diary"}'


def test_places_that_take_no_file_are_refused_before_anything_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(step, "_collect", None)
    bundle = mean_bundle(tmp_path / "b", {FP32: "PASS"})
    with pytest.raises(OutputExistsError, match="a bundle never changes"):
        write_evidence(bundle.path / "golden" / "e.json", EvidenceOptions(bundle.path))
    with pytest.raises(OutputExistsError, match="is a folder"):
        write_evidence(tmp_path)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(EdgetuneError, match="takes no new files"):
        write_evidence(tmp_path / "file" / "e.json")


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    with pytest.raises(SystemExit) as ended:
        main(["doctor", *words])
    said = capsys.readouterr()
    assert isinstance(ended.value.code, int)
    return ended.value.code, said.out + said.err


def test_a_failed_parity_is_evidence_and_is_told(
    tmp_path: Path, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = bundle_with_reference(tmp_path / "b", images, sign=-1)
    code, said = run(capsys, "--evidence", str(tmp_path / "e.json"), "--bundle", str(bundle), "--data", str(images))
    assert code == 0
    assert f"parity FAIL: {FP32}" in said
    assert "send this file with your report" in said
    assert read(tmp_path / "e.json")["parity"]["verdict"] == "FAIL"


def test_the_command_speaks_json_and_knows_its_options(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, said = run(capsys, "--evidence", str(tmp_path / "e.json"), "--json")
    data = json.loads(said)["data"]
    assert (code, data["path"], data["kind"]) == (0, str(tmp_path / "e.json"), KIND)
    assert data["digest"] == json.loads((tmp_path / "e.json").read_bytes())["digest"]
    for words, sentence in (
        (["--bundle", "b"], "are for --evidence FILE"),
        (["--evidence", "x.json", "--data", "d"], "--data is for --bundle BUNDLE"),
        (["--engine-cache"], "requires an argument"),
    ):
        code, said = run(capsys, *words)
        assert (code, sentence in said) == (2, True)
    code, said = run(capsys, "--evidence", str(tmp_path / "e.json"))
    assert (code, "exists already" in said) == (1, True)
    for before in ([], ["--evidence", str(tmp_path / "e.json"), "--force"]):
        code, said = run(capsys, *before, "--engine-cache", str(tmp_path / "engines of mine"), "--json")
        assert (code, json.loads(said)["data"]["findings"][-1]["name"]) == (0, "engine cache")
        shown = "<engine cache>, none" if before else f"{tmp_path / 'engines of mine'}, none"
        assert json.loads(said)["data"]["findings"][-1]["value"] == shown

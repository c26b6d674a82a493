"""Bundles with one artifact that cannot be judged like the others: its entry says so, and the others stand."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image

from edgetune.core.bundle import FAIL, NOT_RUN, PASS, Bundle, write_manifest
from edgetune.core.files import sha256_of_file
from edgetune.data.image_folder import ImageFile
from edgetune.parity.gate_set import DEFAULT_GATES
from edgetune.parity.records import ParityEntry
from edgetune.verify.reference import REFERENCE_NAME, stored_reference_bytes
from edgetune.verify.session import JudgeJob, judge_bundle
from tests.unit.runners.mean_bundle import FP16, FP32, TENSORRT, mean_bundle

COLOURS = [(200, 10, 10), (10, 10, 200), (90, 200, 10), (10, 60, 90)]


def _logits(colour: tuple[int, int, int]) -> list[float]:
    return [float(colour[0] - colour[2]), sum(colour) / 2.0]


@pytest.fixture
def files(tmp_path: Path) -> tuple[ImageFile, ...]:
    (tmp_path / "images").mkdir()
    paths = [tmp_path / "images" / f"{index}.png" for index in range(len(COLOURS))]
    for path, colour in zip(paths, COLOURS, strict=True):
        Image.new("RGB", (4, 4), colour).save(path)
    return tuple(ImageFile(path, int(np.argmax(_logits(colour)))) for path, colour in zip(paths, COLOURS, strict=True))


@pytest.fixture
def bundle(tmp_path: Path, files: tuple[ImageFile, ...]) -> Bundle:
    made = mean_bundle(tmp_path / "b", {FP32: PASS, FP16: PASS, TENSORRT: PASS})
    hashes = tuple(sha256_of_file(file.path) for file in files)
    table = np.array([_logits(colour) for colour in COLOURS], np.float32)
    (made.path / REFERENCE_NAME).write_bytes(stored_reference_bytes("torch", hashes, table))
    write_manifest(made.path, made.manifest)
    return made


def _judge(bundle: Bundle, files: tuple[ImageFile, ...], **changes: object) -> dict[str, ParityEntry]:
    job = JudgeJob(bundle, None, files, DEFAULT_GATES, ("cpu",))
    judged = judge_bundle(dataclasses.replace(job, **changes))  # type: ignore[arg-type]
    return {entry.artifact: entry for entry in judged.entries.values()}


def _change(bundle: Bundle, name: str, content: bytes) -> None:
    (bundle.path / name).write_bytes(content)


def test_the_bundle_itself_passes(bundle: Bundle, files: tuple[ImageFile, ...]) -> None:
    entries = _judge(bundle, files)
    assert {entry.verdict for entry in entries.values()} == {PASS}, entries
    assert entries[FP32].images == 4


@pytest.mark.parametrize("name", [FP32, FP16, TENSORRT])
def test_a_file_that_was_cut_off_has_failed_to_load(bundle: Bundle, files: tuple[ImageFile, ...], name: str) -> None:
    _change(bundle, name, (bundle.path / name).read_bytes()[:120])
    entries = _judge(bundle, files)
    assert (entries[name].verdict, entries[name].stage) == (FAIL, "load")
    assert {entry.verdict for key, entry in entries.items() if key != name} == {PASS}


def test_an_output_of_another_name_has_failed(bundle: Bundle, files: tuple[ImageFile, ...]) -> None:
    model = onnx.load(bundle.path / TENSORRT)
    model.graph.output[0].name = model.graph.node[-1].output[0] = "scores"
    _change(bundle, TENSORRT, model.SerializeToString())
    entries = _judge(bundle, files)
    assert entries[TENSORRT].verdict == FAIL
    assert "the outputs ['scores'], expected 'logits'" in entries[TENSORRT].reasons[0]
    assert entries[FP32].verdict == PASS


def test_an_input_of_another_name_has_failed(bundle: Bundle, files: tuple[ImageFile, ...]) -> None:
    model = onnx.load(bundle.path / FP32)
    model.graph.input[0].name = model.graph.node[0].input[0] = "picture"
    _change(bundle, FP32, model.SerializeToString())
    entries = _judge(bundle, files)
    assert entries[FP32].verdict == FAIL
    assert "picture" in entries[FP32].reasons[0]
    assert entries[TENSORRT].verdict == PASS


def test_a_record_that_knows_nothing_of_the_target_is_no_error(bundle: Bundle, files: tuple[ImageFile, ...]) -> None:
    _change(bundle, "calibration.json", b'{"targets": []}')
    assert _judge(bundle, files)[TENSORRT].verdict == PASS


@pytest.mark.parametrize(("require", "unread", "verdict"), [(False, 1, NOT_RUN), (True, 1, NOT_RUN), (True, 0, PASS)])
def test_images_that_cannot_be_read_prove_nothing(
    bundle: Bundle, files: tuple[ImageFile, ...], require: bool, unread: int, verdict: str
) -> None:
    """One of five is more than a tenth."""
    broken = files[0].path.with_name("broken.png")
    broken.write_bytes(b"no image")
    entries = _judge(bundle, files + (ImageFile(broken, 0),) * unread, require=require)
    assert {entry.verdict for entry in entries.values()} == {verdict}
    if unread:
        assert entries[FP32].reasons[-1] == "1 of 5 images could not be read"


def test_a_damaged_number_is_named(bundle: Bundle, files: tuple[ImageFile, ...]) -> None:
    model = onnx.load(bundle.path / TENSORRT)
    (weight,) = [each for each in model.graph.initializer if each.name == "weight"]
    values = onnx.numpy_helper.to_array(weight).copy()
    values[0, 0] = np.nan
    weight.CopyFrom(onnx.numpy_helper.from_array(values, "weight"))
    _change(bundle, TENSORRT, model.SerializeToString())
    entry = _judge(bundle, files)[TENSORRT]
    assert (entry.verdict, entry.stage) == (FAIL, "weights")
    assert entry.reasons[-1] == "the file has NaN or infinity in weight"

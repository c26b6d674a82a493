"""Which file an engine is built from, and for which batches."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from edgetune.core.bundle import Artifact, Manifest, RunOrigin, write_manifest
from edgetune.core.engine_record import BuildOptions
from edgetune.core.errors import ArtifactError, BundleError, ModelError, UsageError
from edgetune.core.files import sha256_of_file
from edgetune.core.preprocess import PreprocessSpec
from edgetune.engine.protocol import InputProfile
from edgetune.graph.onnx_file import OnnxFile
from edgetune.steps.engine_source import Batches, find_source, fit_batches, profiles
from tests.unit.quantize.qdq_breaks import float_weight, rewire, set_to
from tests.unit.quantize.qdq_graphs import good

_Size = int | str | None


def _file(*shapes: list[_Size]) -> OnnxFile:
    """A file of which only the inputs matter."""
    inputs = [
        helper.make_tensor_value_info(f"x{index}", TensorProto.FLOAT, shape) for index, shape in enumerate(shapes)
    ]
    graph = helper.make_graph([], "inputs", inputs, [])
    return OnnxFile(Path("m.onnx"), helper.make_model(graph), "0" * 64, is_single=True)


_OPEN, _FOUR = _file(["n", 3, 8, 8]), _file([4, 3, 8, 8])


@pytest.mark.parametrize(
    ("file", "wanted", "batches"),
    [
        (_OPEN, (None, None, None), (1, 1, 8)),
        (_OPEN, (None, None, 1), (1, 1, 1)),
        (_OPEN, (2, None, None), (2, 2, 8)),
        (_OPEN, (16, None, None), (16, 16, 16)),
        (_OPEN, (None, 4, None), (1, 4, 8)),
        (_OPEN, (None, 32, None), (1, 32, 32)),
        (_OPEN, (2, 3, 5), (2, 3, 5)),
        (_FOUR, (None, None, None), (4, 4, 4)),
        (_FOUR, (4, None, 4), (4, 4, 4)),
        (_file(["n", 3], [4, 3]), (None, None, 2), (1, 1, 2)),
        (_file([4, 3], []), (None, None, None), (4, 4, 4)),
        (_file([-1, 3]), (None, None, None), (1, 1, 8)),
    ],
)
def test_batches_of_a_model(file: OnnxFile, wanted: tuple[int | None, ...], batches: tuple[int, int, int]) -> None:
    assert fit_batches(file, Batches(*wanted)) == batches


@pytest.mark.parametrize(
    ("file", "wanted", "says"),
    [
        (_OPEN, (4, 2, None), "the batches 4, 2, 8 are out of order."),
        (_OPEN, (None, 4, 2), "the batches 1, 4, 2 are out of order."),
        (_OPEN, (9, None, 8), "the batches 9, 9, 8 are out of order."),
        (_FOUR, (None, None, 8), "m.onnx has the fixed batch 4, and 8 was asked for."),
        (_FOUR, (4, 4, 8), "m.onnx has the fixed batch 4, and 8 was asked for."),
        (_FOUR, (1, None, None), "m.onnx has the fixed batch 4, and 1 was asked for."),
    ],
)
def test_batches_that_a_model_cannot_have(file: OnnxFile, wanted: tuple[int | None, ...], says: str) -> None:
    with pytest.raises(UsageError) as caught:
        fit_batches(file, Batches(*wanted))
    assert caught.value.message == says


def test_an_open_image_size_is_refused() -> None:
    with pytest.raises(ModelError, match=r"the input 'x0' has the shape \(\?, 3, \?, 8\); only its first size may be"):
        fit_batches(_file(["n", 3, "height", 8]), Batches())


def test_a_profile_for_each_input_of_open_batch() -> None:
    options = BuildOptions(min_batch=1, opt_batch=2, max_batch=4)
    assert profiles(_file(["n", 3], [5], [None]), options) == (
        InputProfile("x0", (1, 3), (2, 3), (4, 3)),
        InputProfile("x2", (1,), (2,), (4,)),
    )
    assert profiles(_FOUR, options) == ()


def _half(model: onnx.ModelProto) -> onnx.ModelProto:
    for index, name in enumerate(("conv1", "b"), start=1):
        set_to(f"half{index}", np.ones((4, 4, 1, 1), np.float16))(model)
        rewire(name, 1, f"half{index}")(model)
    return model


def _float(model: onnx.ModelProto) -> onnx.ModelProto:
    float_weight("conv1", "w1")(model)
    rewire("b", 1, "plain")(model)
    return model


_MODELS = {"int8": good("tensorrt"), "fp16": _half(good("tensorrt")), "fp32": _float(good("tensorrt"))}


@pytest.mark.parametrize("own", _MODELS)
def test_a_single_file_has_the_precision_of_its_convolutions(own: str, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(_MODELS[own], path)
    for precision in ("auto", own):
        source = find_source(path, precision, allow_failed=False)
        assert (source.file.path, source.precision, source.calibration_sha256) == (path, own, "")
    for other in set(_MODELS) - {own}:
        with pytest.raises(UsageError, match=f"m.onnx computes in {own}, and --precision {other} was asked for"):
            find_source(path, other, allow_failed=False)


def test_paths_that_are_nothing(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no.onnx does not exist or is not a file"):
        find_source(tmp_path / "no.onnx", "auto", allow_failed=False)
    for path in (tmp_path, tmp_path / "no"):
        with pytest.raises(BundleError, match="is not a bundle"):
            find_source(path, "auto", allow_failed=False)


_INT8_CPU, _INT8, _FP16, _FP32 = "model.int8.cpu-x86.onnx", "model.int8.tensorrt.onnx", "model.fp16.onnx", "model.onnx"


def _bundle(folder: Path, verdicts: dict[str, str]) -> Path:
    """A bundle whose every artifact is the same small graph."""
    folder.mkdir()
    (folder / "calibration.json").write_text("{}")
    artifacts = []
    for name, verdict in verdicts.items():
        onnx.save(good("tensorrt"), folder / name)
        words = name.split(".")
        precision, target = (words[1], words[2] if len(words) > 3 else "any") if len(words) > 2 else ("fp32", "any")
        size, digest = (folder / name).stat().st_size, sha256_of_file(folder / name)
        artifacts.append(Artifact(name, "classifier", precision, target, digest, size, verdict, None))
    spec = PreprocessSpec(8, 8, "bicubic", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    manifest = Manifest(
        schema_version=1, task="classification", classes=("a", "b"), preprocess=spec, run=RunOrigin("/r", "1" * 64),
        backbone="net", edgetune_version="0.1.0", created="2026-01-02T03:04:05+00:00", artifacts=tuple(artifacts),
        files={},
    )  # fmt: skip
    write_manifest(folder, manifest)
    return folder


_ALL_PASS = {_FP32: "PASS", _FP16: "PASS", _INT8_CPU: "PASS", _INT8: "PASS"}


@pytest.mark.parametrize(
    ("verdicts", "precision", "allow_failed", "name"),
    [
        (_ALL_PASS, "auto", False, _INT8),
        (_ALL_PASS, "int8", False, _INT8),
        (_ALL_PASS, "fp16", False, _FP16),
        (_ALL_PASS, "fp32", False, _FP32),
        ({**_ALL_PASS, _INT8: "FAIL"}, "auto", False, _FP16),
        ({**_ALL_PASS, _INT8: "NOT-RUN", _FP16: "FAIL"}, "auto", False, _FP32),
        ({**_ALL_PASS, _INT8: "FAIL"}, "auto", True, _INT8),
        ({**_ALL_PASS, _INT8: "FAIL"}, "int8", True, _INT8),
        ({_FP32: "PASS", _INT8_CPU: "PASS"}, "auto", False, _FP32),
    ],
)
def test_the_artifact_that_is_taken(
    verdicts: dict[str, str], precision: str, allow_failed: bool, name: str, tmp_path: Path
) -> None:
    bundle = _bundle(tmp_path / "bundle", verdicts)
    source = find_source(bundle, precision, allow_failed=allow_failed)
    assert source.file.path == bundle / name
    is_int8 = name == _INT8
    assert source.precision == ("int8" if is_int8 else "fp16" if name == _FP16 else "fp32")
    assert source.calibration_sha256 == (sha256_of_file(bundle / "calibration.json") if is_int8 else "")


@pytest.mark.parametrize(
    ("verdicts", "precision", "says"),
    [
        ({_FP32: "PASS", _INT8_CPU: "PASS"}, "int8", "has no int8 artifact for TensorRT."),
        ({_FP32: "PASS"}, "fp16", "has no fp16 artifact for TensorRT."),
        ({_INT8_CPU: "PASS"}, "auto", "has no auto artifact for TensorRT."),
        ({**_ALL_PASS, _FP16: "FAIL"}, "fp16", "no artifact to build from passed parity with the PyTorch model "),
        (dict.fromkeys(_ALL_PASS, "NOT-RUN"), "auto", f"({_INT8}: NOT-RUN, {_FP16}: NOT-RUN, {_FP32}: NOT-RUN)"),
    ],
)
def test_artifacts_that_are_not_there_or_failed(
    verdicts: dict[str, str], precision: str, says: str, tmp_path: Path
) -> None:  # fmt: skip
    bundle = _bundle(tmp_path / "bundle", verdicts)
    with pytest.raises(ArtifactError) as caught:
        find_source(bundle, precision, allow_failed=False)
    assert says in caught.value.message
    assert caught.value.hint


def test_a_changed_artifact_is_refused(tmp_path: Path) -> None:
    bundle = _bundle(tmp_path / "bundle", _ALL_PASS)
    content = bytearray((bundle / _INT8).read_bytes())
    content[-1] ^= 1
    (bundle / _INT8).write_bytes(content)
    with pytest.raises(BundleError):
        find_source(bundle, "auto", allow_failed=False)

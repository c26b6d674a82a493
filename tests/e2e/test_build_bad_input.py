"""Models and options that no engine can be built from: one clear line, the right exit code, and an empty cache."""

from __future__ import annotations

import dataclasses
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from edgetune.core.bundle import load_bundle, write_manifest
from edgetune.runners.cuda import gpu_identity
from edgetune.runners.trt_library import installed_backends
from tests.building import TARGET, build, check_refused, folders, good_file, needs_rtx, saved
from tests.unit.quantize.qdq_breaks import Break, as_operator, rewire, set_to
from tests.unit.quantize.qdq_graphs import find, good, put_constant, sort

pytestmark = pytest.mark.e2e

_Make = Callable[[Path], Path]


def _cut(folder: Path) -> Path:
    path = good_file(folder)
    path.write_bytes(path.read_bytes()[:-100])
    return path


def _holding(content: bytes, name: str = "m.onnx") -> _Make:
    def make(folder: Path) -> Path:
        (folder / name).write_bytes(content)
        return folder / name

    return make


def _short_tensor(folder: Path) -> Path:
    model = good("tensorrt")
    (weights,) = [entry for entry in model.graph.initializer if entry.name == "w2"]
    weights.raw_data = weights.raw_data[:-1]
    return saved(model, folder / "m.onnx")


def _external(folder: Path, location: str) -> Path:
    """The good graph with its weights in `w.bin`, which the model then looks for at `location`."""
    path = folder / "m.onnx"
    onnx.save(good("tensorrt"), path, save_as_external_data=True, location="w.bin", size_threshold=16)
    model = onnx.load(path, load_external_data=False)
    for entry in (entry for tensor in model.graph.initializer for entry in tensor.external_data):
        if entry.key == "location":
            entry.value = location
    return saved(model, path)


def _missing_data(folder: Path) -> Path:
    path = _external(folder, "w.bin")
    (folder / "w.bin").unlink()
    return path


def _half_data(folder: Path) -> Path:
    path = _external(folder, "w.bin")
    (folder / "w.bin").write_bytes((folder / "w.bin").read_bytes()[:100])
    return path


def _moved_data(location: str) -> _Make:
    """The data file one folder up, where `location` finds it."""

    def make(folder: Path) -> Path:
        (folder / "model").mkdir()
        path = _external(folder / "model", location.format(folder=folder))
        (folder / "model" / "w.bin").rename(folder / "w.bin")
        return path

    return make


def _linked_data(folder: Path) -> Path:
    path = _moved_data("link.bin")(folder)
    (path.parent / "link.bin").symlink_to("../w.bin")
    return path


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (_cut, "good.onnx is not ONNX, or was cut off"),
        (_holding(b""), "m.onnx holds no ONNX graph (0 bytes)."),
        (_holding(b"dear diary\n"), "m.onnx is not ONNX, or was cut off"),
        (_holding(b'{"schema_version": 1}', "manifest.json"), "is not ONNX, or was cut off"),
        (lambda folder: folder, "is not a bundle"),
        (lambda folder: folder / "no.onnx", "no.onnx does not exist or is not a file."),
        (_short_tensor, "raw_data size (143 bytes) is too small"),
        (_missing_data, "the file 'w.bin' with the weights of 'unit' is missing."),
        (_half_data, "exceeds available data"),
        (_moved_data("../w.bin"), "the weights of 'unit' lie outside the model's folder, at '../w.bin'."),
        (_moved_data("{folder}/w.bin"), "lie outside the model's folder, at '/"),
        (_linked_data, "the weights of 'unit' lie outside the model's folder, at 'link.bin'."),
        (lambda folder: _external(folder, "a\0b"), "lie outside the model's folder, at 'a\\x00b'."),
    ],
    ids=[
        "truncated", "empty", "text", "JSON", "a folder that is no bundle", "missing", "a short tensor",
        "missing weights", "half the weights", "weights above", "weights at an absolute path",
        "weights behind a link", "NUL in a location",
    ],
)  # fmt: skip
def test_files_that_are_no_whole_model(make: _Make, words: str, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    check_refused(build(make(tmp_path / "in"), "--engine-cache", tmp_path / "cache"), words)
    assert folders(tmp_path / "cache") == []


def _foreign_operator(model: onnx.ModelProto) -> None:
    as_operator("c", "Foo", ["conv1"])(model)
    find(model, "c").domain = "my.own"
    model.opset_import.append(helper.make_opsetid("my.own", 1))


def _unsigned(zero_point: int) -> Break:
    return set_to("c_zero", np.uint8(zero_point))


def _int32_bias(model: onnx.ModelProto) -> None:
    put_constant(model, "i", np.ones(4, np.int32), 2**-13)
    rewire("b", 2, "dq_i")(model)


def _open_size(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_param = "height"


def _scale(value: float) -> Break:
    return set_to("c_scale", np.float32(value))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (as_operator("c", "Foo", ["conv1"]), "No Op registered for Foo"),
        (_unsigned(0), "node 'q_c' (rule 'activation-type'): an activation is uint8, expected int8."),
        (_unsigned(128), "node 'q_c' (rule 'nonzero-zero-point')"),
        (set_to("c_zero", np.int8(5)), "node 'q_c' (rule 'nonzero-zero-point')"),
        (_int32_bias, "node 'dq_i' (rule 'int32-bias')"),
        (_scale(0), "(rule 'scale-value'): the scale 0 is not finite and positive."),
        (_scale(-1), "(rule 'scale-value'): the scale -1 is not finite and positive."),
        (_scale(float("inf")), "(rule 'scale-value'): the scale inf is not finite and positive."),
        (_scale(float("nan")), "the weights 'c_scale' hold NaN or infinity."),
        (set_to("bias2", np.array([1, np.nan, 0, 0], np.float32)), "the weights 'bias2' hold NaN or infinity."),
        (_open_size, "the input 'image' has the shape (?, ?, 8, 3); only its first size may be open."),
    ],
    ids=[
        "unknown operator", "u8 zero point 0", "u8 zero point 128", "s8 zero point 5", "int32 bias", "scale 0",
        "scale -1", "scale inf", "scale NaN", "NaN weight", "open image size",
    ],
)  # fmt: skip
def test_graphs_that_tensorrt_would_refuse_or_misread(spoil: Break, words: str, tmp_path: Path) -> None:
    model = good("tensorrt")
    spoil(model)
    sort(model)
    path = saved(model, tmp_path / "m.onnx")
    check_refused(build(path, "--engine-cache", tmp_path / "cache"), words)
    assert folders(tmp_path / "cache") == []


@needs_rtx
def test_an_operator_of_another_domain_is_named_by_the_parser(tmp_path: Path) -> None:
    model = good("tensorrt")
    _foreign_operator(model)
    path = saved(model, tmp_path / "m.onnx")
    check_refused(build(path, *TARGET, "--engine-cache", tmp_path / "cache"), "node 'c' (Foo): ")
    assert folders(tmp_path / "cache") == []


def _fixed(model: onnx.ModelProto) -> None:
    for entry in (*model.graph.input, *model.graph.output):
        entry.type.tensor_type.shape.dim[0].dim_value = 4


@pytest.mark.parametrize(
    ("words", "says", "exit_code"),
    [
        (["--max-batch", "8"], "fixed.onnx has the fixed batch 4, and 8 was asked for.", 2),
        (["--min-batch", "4", "--opt-batch", "2"], "has the fixed batch 4, and 2 was asked for.", 2),
        (["--precision", "fp16"], "computes in int8, and --precision fp16 was asked for", 2),
        (["--min-batch", "0"], "0 is not in the range 1<=x<=4096.", 2),
        (["--workspace", "12parsecs"], "12parsecs is not a size such as 512MiB or 2GiB.", 2),
        (["--workspace", "0"], "0 is not a size that memory can have.", 2),
        (["--timeout", "0"], "0.0 is not in the range x>0.", 2),
        (["--backend", "cuda"], "'cuda' is not one of", 2),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_options_that_do_not_fit_the_model(words: list[str], says: str, exit_code: int, tmp_path: Path) -> None:
    model = good("tensorrt")
    _fixed(model)
    path = saved(model, tmp_path / "fixed.onnx")
    check_refused(build(path, *words, "--engine-cache", tmp_path / "cache"), says, exit_code)
    assert folders(tmp_path / "cache") == []


@needs_rtx
@pytest.mark.parametrize(
    ("words", "says", "exit_code"),
    [
        (["--targets", "sm86", "--min-batch", "4", "--max-batch", "2"], "the batches 4, 4, 2 are out of order.", 2),
        (["--targets", "sm50"], "--targets 'sm50' is not known to tensorrt-rtx", 2),
        (["--targets", "none"], "--targets 'none' is not known to tensorrt-rtx", 2),
        (["--targets", "sm86,moon"], "--targets 'moon' is not known to tensorrt-rtx", 2),
        (["--targets", "sm75"], "FP32 GEMM is not supported", 1),
        (["--targets", "sm86", "--workspace", "1KB"], "no tactics to implement the operation within workspace", 1),
        (["--targets", "sm86", "--version-compatible"], "--version-compatible means nothing to tensorrt-rtx", 2),
        (["--targets", "sm86", "--timing-cache", "x"], "--timing-cache means nothing to tensorrt-rtx", 2),
        (["--targets", "sm86", "--optimization-level", "5"], "--optimization-level means nothing to", 2),
        (["--targets", "sm86", "--hardware-compatible", "ampere-plus"], "--hardware-compatible means nothing to", 2),
        (["--targets", "sm86", "--timeout", "0.001"], "the build did not end within 0.1 s and was stopped.", 1),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_options_that_the_backend_refuses(words: list[str], says: str, exit_code: int, tmp_path: Path) -> None:
    done = build(good_file(tmp_path), "--backend", "tensorrt-rtx", *words, "--engine-cache", tmp_path / "cache")
    check_refused(done, says, exit_code)
    assert folders(tmp_path / "cache") == []


@needs_rtx
@pytest.mark.skipif(gpu_identity() is not None, reason="there is a GPU here")
def test_no_gpu_to_build_for(tmp_path: Path) -> None:
    words = (good_file(tmp_path), "--backend", "tensorrt-rtx", "--targets", "current")
    check_refused(build(*words), "--targets current builds for the GPU of this machine, and none was found.")


@pytest.mark.skipif("tensorrt" in installed_backends(), reason="TensorRT is installed here")
def test_a_backend_that_is_not_installed(tmp_path: Path) -> None:
    check_refused(build(good_file(tmp_path), "--backend", "tensorrt"), "tensorrt is not installed for this Python.")


def test_what_a_bundle_does_not_have(small_bundle: Path, tmp_path: Path) -> None:
    cache = ("--engine-cache", tmp_path / "cache")
    check_refused(build(small_bundle, "--precision", "fp16", *cache), "has no fp16 artifact for TensorRT.")
    for_cpus = small_bundle / "model.int8.cpu-x86.onnx"
    check_refused(build(for_cpus, *cache), "TensorRT would refuse or misread node")
    bundle = tmp_path / "bundle"
    shutil.copytree(small_bundle, bundle)
    manifest = load_bundle(bundle).manifest
    failed = tuple(dataclasses.replace(artifact, verdict="FAIL") for artifact in manifest.artifacts)
    write_manifest(bundle, dataclasses.replace(manifest, artifacts=failed))
    refused = build(bundle, *cache)
    check_refused(refused, "no artifact to build from passed parity with the PyTorch model (model.int8.tensorrt.onnx")
    assert "--allow-failed" in refused.stderr
    assert folders(tmp_path / "cache") == []


_ASK = """
import sys
from edgetune.cli.render import show_error
from edgetune.core.engine_record import BuildOptions
from edgetune.core.errors import EdgetuneError
from edgetune.engine.build import run_build
from edgetune.engine.protocol import InputProfile, WorkRequest

model, engine, name, smallest, onnx_sha256 = sys.argv[1:]
shapes = [(batch, 8, 8, 3) for batch in (int(smallest), 2, 8)]
request = WorkRequest(
    "tensorrt-rtx", model, onnx_sha256, engine, BuildOptions(targets=("sm86",)), (InputProfile(name, *shapes),), "", 1
)
try:
    run_build(request, timeout_s=60)
except EdgetuneError as error:
    show_error("build", error, as_json=False)
"""


@needs_rtx
@pytest.mark.parametrize(
    ("name", "smallest", "digest", "says"),
    [
        ("picture", "1", "", "the profile names the input 'picture', the model has image."),
        ("image", "4", "", "please ensure that the optimization profiles satisfy MIN<=OPT<=MAX"),
        ("image", "1", "0" * 64, "good.onnx changed while the build began."),
    ],
    ids=["an input that is not there", "smallest over best", "another file"],
)
def test_a_request_that_does_not_fit_the_model(
    name: str, smallest: str, digest: str, says: str, tmp_path: Path
) -> None:  # fmt: skip
    words = [sys.executable, "-c", _ASK, good_file(tmp_path), tmp_path / "model.engine", name, smallest, digest]
    done = subprocess.run([*map(str, words)], capture_output=True, text=True, timeout=120, check=False)
    check_refused(done, says)
    assert not (tmp_path / "model.engine").exists()

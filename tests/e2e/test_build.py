"""Engines built by real processes without a GPU: what is in them, the cache, and what runs in float after all."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgetune.core.engine_files import ENGINE_NAME, check_engine, read_sidecar
from edgetune.core.files import sha256_of_file
from edgetune.quantize.lint import check_for_tensorrt
from tests.building import TARGET, build, build_data, command, folders, good_file, needs_rtx, saved
from tests.unit.quantize.qdq_breaks import Break, each, rewire, set_to
from tests.unit.quantize.qdq_graphs import good

pytestmark = [pytest.mark.e2e, needs_rtx]

_GPUS = ("--backend", "tensorrt-rtx", "--targets", "sm86,sm89,sm120")
_CONVOLUTIONS = 49  # of EfficientNet-Lite0


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("engines")


@pytest.fixture(scope="module")
def int8(small_bundle: Path, cache: Path) -> dict[str, Any]:
    """The answer of the first INT8 build."""
    return build_data(small_bundle, *_GPUS, "--engine-cache", cache)


def test_every_convolution_of_the_bundle_runs_in_int8(int8: dict[str, Any], small_bundle: Path) -> None:
    everything = {"int8": _CONVOLUTIONS, "fp16": 0, "fp32": 0}
    assert int8["proof"] == {
        "planned": everything,
        "seen": everything,
        "lost": {},
        "unseen": [],
        "unproved": [],
        "holds": True,
    }
    assert int8["artifact"] == "model.int8.tensorrt.onnx"
    assert int8["key"]["precision"] == "int8"
    assert int8["key"]["onnx_sha256"] == sha256_of_file(small_bundle / int8["artifact"])
    assert int8["key"]["calibration_sha256"] == sha256_of_file(small_bundle / "calibration.json")
    assert int8["key"]["options"]["targets"] == ["sm86", "sm89", "sm120"]
    assert int8["key"]["host"]["gpu"] == ""
    assert not int8["reused"]
    assert int8["errors"] == []


def test_the_engine_takes_the_camera_s_bytes(int8: dict[str, Any]) -> None:
    assert int8["inputs"] == [{"name": "image", "dtype": "uint8", "shape": [None, 224, 224, 3]}]
    assert int8["outputs"] == [{"name": "logits", "dtype": "float32", "shape": [None, 3]}]


def test_the_sidecar_tells_the_same_and_matches_the_engine(int8: dict[str, Any]) -> None:
    record = check_engine(Path(int8["folder"]))
    assert Path(int8["folder"]).name == record.key.fingerprint
    assert (record.sha256, record.size_bytes) == (int8["sha256"], int8["size_bytes"])
    assert record.sha256 == sha256_of_file(Path(int8["folder"]) / ENGINE_NAME)
    kernels = [layer for layer in record.layers if layer.kind == "correlation"]
    assert [layer.inputs[0] for layer in kernels] == ["Int8"] * _CONVOLUTIONS
    assert record.peak_memory_bytes > 50_000_000
    assert record.parity is None


def test_a_second_build_finds_the_engine_and_rebuild_replaces_it(
    int8: dict[str, Any], small_bundle: Path, cache: Path
) -> None:
    words = (small_bundle, *_GPUS, "--engine-cache", cache)
    again = build_data(*words)
    assert again["reused"]
    assert (again["sha256"], again["created"]) == (int8["sha256"], int8["created"])
    assert "found in the cache" in build(*words).stdout
    anew = build_data(*words, "--rebuild")
    assert not anew["reused"]
    assert anew["folder"] == int8["folder"]
    assert anew["messages"] == []
    assert check_engine(Path(anew["folder"])).sha256 == anew["sha256"]
    assert folders(cache) == [Path(int8["folder"]).name]


def test_an_fp32_engine_computes_in_fp32(small_bundle: Path, tmp_path: Path) -> None:
    done = build(small_bundle, *TARGET, "--precision", "fp32", "--max-batch", "2", "--engine-cache", tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    rows = [line.split() for line in done.stdout.splitlines()]
    for row in (["INT8", "0", "0"], ["FP16", "0", "0"], ["FP32", str(_CONVOLUTIONS), str(_CONVOLUTIONS)]):
        assert row in rows
    (name,) = folders(tmp_path)
    assert f"next: edgetune info {tmp_path / name}" in done.stdout
    record = read_sidecar(tmp_path / name)
    assert (record.artifact, record.key.precision) == ("model.onnx", "fp32")
    assert record.key.calibration_sha256 == ""
    assert record.key.options.max_batch == 2


def _plain_model() -> onnx.ModelProto:
    """x (n, 3, 8, 8) float -> Conv without a name -> mean; the weights are a Constant node."""
    weights = numpy_helper.from_array(np.random.default_rng(0).normal(size=(4, 3, 3, 3)).astype(np.float32), "w")
    nodes = [
        helper.make_node("Constant", [], ["w"], value=weights),
        helper.make_node("Conv", ["x", "w"], ["c"]),
        helper.make_node("GlobalAveragePool", ["c"], ["y"]),
    ]
    image = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 8, 8])
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4, 1, 1])
    graph = helper.make_graph(nodes, "plain", [image], [output])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_an_onnx_file_of_another_tool_builds(tmp_path: Path) -> None:
    path = saved(_plain_model(), tmp_path / "plain.onnx")
    data = build_data(path, *TARGET, "--engine-cache", tmp_path / "cache")
    assert data["proof"]["planned"] == data["proof"]["seen"] == {"int8": 0, "fp16": 0, "fp32": 1}
    assert data["inputs"] == [{"name": "x", "dtype": "float32", "shape": [None, 3, 8, 8]}]
    assert (data["key"]["precision"], data["artifact"]) == ("fp32", "plain.onnx")


def test_data_files_beside_a_link_are_read_and_not_those_beside_its_target(tmp_path: Path) -> None:
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
    model = good("tensorrt")
    onnx.save(model, tmp_path / "here" / "m.onnx", save_as_external_data=True, location="w.bin", size_threshold=16)
    (tmp_path / "here" / "m.onnx").rename(tmp_path / "there" / "m.onnx")
    (tmp_path / "here" / "m.onnx").symlink_to("../there/m.onnx")
    data = build_data(tmp_path / "here" / "m.onnx", *TARGET, "--engine-cache", tmp_path / "cache")
    assert data["proof"]["seen"]["int8"] == 2


_VECTOR_SCALE = each(set_to("c_scale", np.full(1, 2**-6, np.float32)), set_to("c_zero", np.zeros(1, np.int8)))


@pytest.mark.parametrize(
    ("node", "spoil", "cause"),
    [
        ("b", _VECTOR_SCALE, "runs in fp32: the scale of its input has the shape (1,), expected a scalar"),
        ("conv1", rewire("conv1", 0, "x"), "runs in fp32: its input is not quantized"),
    ],
    ids=["a scale of shape (1,)", "a float input"],
)
def test_an_int8_layer_that_runs_in_float_exits_3_and_is_named(
    node: str, spoil: Break, cause: str, tmp_path: Path
) -> None:
    model = good("tensorrt")
    spoil(model)
    assert check_for_tensorrt(model)  # it warns, and lets the graph through
    words = (saved(model, tmp_path / "m.onnx"), *TARGET, "--engine-cache", tmp_path / "cache")
    done = build(*words)
    assert done.returncode == 3
    assert f"FAIL: {node} {cause}" in done.stdout
    assert ["INT8", "2", "1"] in [line.split() for line in done.stdout.splitlines()]
    data = build_data(*words, exit_code=3)
    assert data["reused"]
    assert data["proof"]["lost"] == {node: cause}
    assert not data["proof"]["holds"]
    assert data["errors"] == [{"code": "gate", "message": f"{node} {cause}", "hint": ""}]
    assert read_sidecar(Path(data["folder"])).proof.lost == {node: cause}


def test_two_processes_build_one_engine_once(tmp_path: Path) -> None:
    words = command(good_file(tmp_path), *TARGET, "--engine-cache", tmp_path / "cache", "--json")
    both = [subprocess.Popen(words, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    answers = [json.loads(process.communicate(timeout=120)[0]) for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert sorted(answer["data"]["reused"] for answer in answers) == [False, True]
    assert len({answer["data"]["sha256"] for answer in answers}) == 1
    assert folders(tmp_path / "cache") == [Path(answers[0]["data"]["folder"]).name]


def test_a_module_in_the_current_folder_is_not_taken_for_the_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = good_file(tmp_path)
    for name in ("tensorrt", "tensorrt_rtx", "tensorrt_rtx_bindings", "secrets"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('a script of the user ran')")
    monkeypatch.chdir(tmp_path)
    code = f"import sys; sys.path[:] = {[*filter(None, sys.path)]}; from edgetune.cli.main import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "build", str(path), *TARGET, "--engine-cache", "cache"],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_a_file_name_that_is_no_text_builds(tmp_path: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/mod\xff.onnx"))
    good_file(tmp_path).rename(path)
    data = build_data(path, *TARGET, "--engine-cache", tmp_path / "cache")
    assert data["artifact"] == "mod\\udcff.onnx"
    check_engine(Path(data["folder"]))


def test_the_progress_bar_reaches_its_end(tmp_path: Path) -> None:
    words = command(good_file(tmp_path), *TARGET, "--engine-cache", tmp_path / "cache")
    ours, theirs = pty.openpty()
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=theirs)
    os.close(theirs)
    shown = _read_all(ours)
    assert process.wait(timeout=60) == 0
    os.close(ours)
    first, last = shown.split("build:")[1], shown.rpartition("build:")[2]
    assert first.lstrip().startswith("0%")
    assert last.lstrip().startswith("100%")


def _read_all(terminal: int) -> str:
    """What is shown until the other side closes, which Linux reports as an I/O error."""
    shown = b""
    while True:
        try:
            piece = os.read(terminal, 65536)
        except OSError:
            piece = b""
        if not piece:
            return shown.decode()
        shown += piece

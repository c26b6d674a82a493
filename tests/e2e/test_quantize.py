"""edgetune quantize on models made elsewhere: real processes, real files, and every kind of bad input."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from edgetune.quantize.census import count_operators, fused_layers
from edgetune.runners.choice import runs_here
from edgetune.runners.ort_runner import OrtRunner

pytestmark = pytest.mark.e2e

NORMALISATION = ("--mean", "0.485", "0.456", "0.406", "--std", "0.229", "0.224", "0.225")
SIZE = 32


def edgetune(*words: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "edgetune.cli.main", "quantize", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


def foreign_model(*, opset: int = 17, size: int = SIZE, seed: int = 0) -> onnx.ModelProto:
    """A small convolutional classifier as exporters write them: float NCHW input, a fixed batch of 1."""
    generator = np.random.default_rng(seed)

    def weights(name: str, *shape: int) -> onnx.TensorProto:
        spread = np.sqrt(2.0 / np.prod(shape[1:]))
        return numpy_helper.from_array(generator.normal(0, spread, shape).astype(np.float32), name)

    nodes = [
        helper.make_node("Conv", ["input", "w1"], ["c1"], pads=[1, 1, 1, 1], strides=[2, 2], kernel_shape=[3, 3]),
        helper.make_node("Relu", ["c1"], ["r1"]),
        helper.make_node("Conv", ["r1", "w2"], ["c2"], pads=[1, 1, 1, 1], kernel_shape=[3, 3]),
        helper.make_node("Relu", ["c2"], ["r2"]),
        helper.make_node("GlobalAveragePool", ["r2"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("Gemm", ["flat", "w3"], ["scores"], transB=1),
    ]
    graph = helper.make_graph(
        nodes, "foreign",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, 3, size, size])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, [1, 5])],
        [weights("w1", 16, 3, 3, 3), weights("w2", 32, 16, 3, 3), weights("w3", 5, 32)],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


@pytest.fixture(scope="module")
def camera(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 images in folders, of several sizes."""
    folder = tmp_path_factory.mktemp("camera")
    generator = np.random.default_rng(1)
    for index in range(40):
        place = folder / f"day{index % 3}"
        place.mkdir(exist_ok=True)
        small = generator.integers(0, 256, (6, 8, 3), dtype=np.uint8)
        Image.fromarray(small).resize((40 + index, 50), Image.Resampling.BICUBIC).save(place / f"{index}.png")
    return folder


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "foreign.onnx"
    onnx.save(foreign_model(), path)
    return path


def normalised(images: np.ndarray) -> np.ndarray:
    mean, std = (np.array(NORMALISATION[start : start + 3], float) for start in (1, 5))
    values: np.ndarray = ((images / 255.0 - mean) / std).transpose(0, 3, 1, 2).astype(np.float32)
    return values


@pytest.mark.parametrize("target", ["cpu-x86", "cpu-arm", "tensorrt"])
def test_a_foreign_model_becomes_int8_that_takes_images(
    model: Path, camera: Path, tmp_path: Path, target: str
) -> None:  # fmt: skip
    out = tmp_path / "int8.onnx"
    done = edgetune(model, "--calib", camera, "--out", out, "--target", target, *NORMALISATION, "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)["data"]
    assert told["images"] == 40
    assert told["integer_layers"] == 2
    assert "logits" in next(iter(told["kept_float"].values()))
    assert told["comparison"]["sqnr_db"] > 20
    assert (told["speedup"] is not None) is runs_here(target)  # a speed elsewhere says nothing about the target
    assert "slower than float" not in done.stderr or runs_here(target)
    pixels = np.random.default_rng(2).integers(0, 256, (1, SIZE, SIZE, 3), dtype=np.uint8)
    with OrtRunner(out) as quantized, OrtRunner(model) as exact:
        scores = quantized.infer({"image": pixels})["scores"]
        expected = exact.infer({"input": normalised(pixels)})["scores"]
    noise, signal = np.square(scores - expected).sum(), np.square(expected).sum()
    assert 10 * np.log10(signal / noise) > 15  # pure noise images: nothing like what was calibrated


def test_convolutions_run_as_integers(model: Path, camera: Path, tmp_path: Path) -> None:
    out = tmp_path / "int8.onnx"
    assert edgetune(model, "--calib", camera, "--out", out, *NORMALISATION).returncode == 0
    assert fused_layers(count_operators(out)) == (2, 1)


def test_the_same_images_give_the_same_file(model: Path, camera: Path, tmp_path: Path) -> None:
    renamed = tmp_path / "renamed"
    renamed.mkdir()
    for index, path in enumerate(sorted(camera.rglob("*.png"), reverse=True)):
        shutil.copy(path, renamed / f"{index:03d}.png")
    for folder, name in ((camera, "a.onnx"), (renamed, "b.onnx")):
        assert edgetune(model, "--calib", folder, "--out", tmp_path / name, *NORMALISATION).returncode == 0
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


def _with_nan(model: onnx.ModelProto) -> onnx.ModelProto:
    weights = numpy_helper.to_array(model.graph.initializer[1]).copy()
    weights[0, 0, 0, 0] = np.nan
    model.graph.initializer[1].CopyFrom(numpy_helper.from_array(weights, "w2"))
    return model


def _with_two_inputs(model: onnx.ModelProto) -> onnx.ModelProto:
    model.graph.input.append(helper.make_tensor_value_info("other", TensorProto.FLOAT, [1]))
    return model


def _of_no_layer(model: onnx.ModelProto) -> onnx.ModelProto:
    nodes = [helper.make_node("GlobalAveragePool", ["input"], ["p"]), helper.make_node("Flatten", ["p"], ["scores"])]
    del model.graph.node[:], model.graph.initializer[:]
    model.graph.node.extend(nodes)
    return model


def _of_unknown_operator(model: onnx.ModelProto) -> onnx.ModelProto:
    model.graph.node[1].op_type = "Frobnicate"
    return model


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (_with_nan, "'w2' of"),
        (_with_two_inputs, "expected one input"),
        (_of_no_layer, "nothing to quantize"),
        (_of_unknown_operator, "Frobnicate"),
    ],
)
def test_a_model_that_cannot_be_quantized_is_refused(
    spoil: Callable[[onnx.ModelProto], onnx.ModelProto], words: str, camera: Path, tmp_path: Path
) -> None:  # fmt: skip
    onnx.save(spoil(foreign_model()), tmp_path / "m.onnx")
    _check_refused(edgetune(tmp_path / "m.onnx", "--calib", camera, "--out", tmp_path / "o", *NORMALISATION), words)
    assert not (tmp_path / "o").exists()


def test_a_model_that_is_none_is_refused(camera: Path, tmp_path: Path) -> None:
    (tmp_path / "text.onnx").write_text("this is a letter")
    (tmp_path / "empty.onnx").write_bytes(b"")
    onnx.save(foreign_model(), tmp_path / "cut.onnx")
    (tmp_path / "cut.onnx").write_bytes((tmp_path / "cut.onnx").read_bytes()[:-300])
    for name in ("text", "empty", "cut", "missing"):
        done = edgetune(tmp_path / f"{name}.onnx", "--calib", camera, "--out", tmp_path / "o", *NORMALISATION)
        _check_refused(done, f"{name}.onnx")


def test_normalisation_must_be_told(model: Path, camera: Path, tmp_path: Path) -> None:
    _check_refused(edgetune(model, "--calib", camera, "--out", tmp_path / "o"), "normalised", exit_code=2)


def test_no_images_a_few_images_and_damaged_images(model: Path, camera: Path, tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    out = tmp_path / "o.onnx"
    _check_refused(edgetune(model, "--calib", tmp_path / "none", "--out", out, *NORMALISATION), "no images")
    _check_refused(edgetune(model, "--calib", tmp_path / "gone", "--out", out, *NORMALISATION), "not a folder")
    few = tmp_path / "few"
    few.mkdir()
    (few / "broken.png").write_bytes(b"\x89PNG nothing more")
    _check_refused(edgetune(model, "--calib", few, "--out", out, *NORMALISATION), "not one calibration image")
    for path in sorted(camera.rglob("*.png"))[:3]:
        shutil.copy(path, few / path.name)
    done = edgetune(model, "--calib", few, "--out", out, *NORMALISATION)
    assert done.returncode == 0, done.stderr
    assert "only 3 calibration images" in done.stderr
    assert "broken.png" in done.stderr


def test_an_existing_output_and_an_unknown_target_are_refused(model: Path, camera: Path, tmp_path: Path) -> None:
    out = tmp_path / "o.onnx"
    out.write_bytes(b"somebody's")
    _check_refused(edgetune(model, "--calib", camera, "--out", out, *NORMALISATION), "exists already")
    assert out.read_bytes() == b"somebody's"
    _check_refused(
        edgetune(model, "--calib", camera, "--out", out, "--force", "--target", "npu", *NORMALISATION), "npu", 2
    )
    _check_refused(edgetune(model, "--calib", camera, "--out", model, "--force", *NORMALISATION), "itself", 2)


def _check_refused(done: subprocess.CompletedProcess[str], words: str, exit_code: int = 1) -> None:
    assert done.returncode == exit_code, done.stderr
    first = done.stderr.splitlines()[0]
    assert first.startswith("error: ")
    assert words in first
    assert "Traceback" not in done.stderr

"""A pass that is killed again and again gives the very bits of one that was not."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgetune.features.cache import FeatureCache
from tests.unit.features.killed_pass import BATCH, SPEC, digest, files_in, passed

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

REPOSITORY = Path(__file__).resolve().parents[3]
COUNT = 66


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """66 noisy photos; five are copies of others, in blocks of their own, and three are no images."""
    folder = tmp_path_factory.mktemp("images")
    random = np.random.default_rng(0)
    for index in range(COUNT):
        Image.fromarray(random.integers(0, 256, (18, 20, 3), np.uint8)).save(folder / f"{index:02}.png")
    for copy, original in [(9, 1), (30, 2), (44, 43), (60, 3), (61, 64)]:
        shutil.copy(folder / f"{original:02}.png", folder / f"{copy:02}.png")
    for broken in (5, 23, 59):
        (folder / f"{broken:02}.png").write_text(f"no image {broken}")
    return folder


@pytest.fixture(scope="module")
def convolution(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ONNX model of one convolution, whose 8 channels are averaged."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    size = SPEC.crop_size
    weight = np.random.default_rng(1).standard_normal((8, 3, 3, 3)).astype(np.float32)
    nodes = [
        helper.make_node("Cast", ["image"], ["wide"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["wide"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["planes", "weight"], ["maps"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["maps"], ["lit"]),
        helper.make_node("ReduceMean", ["lit"], ["features"], axes=[2, 3], keepdims=0),
    ]
    graph = helper.make_graph(
        nodes,
        "convolution",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", size, size, 3])],
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["N", 8])],
        [numpy_helper.from_array(weight, "weight")],
    )
    path = tmp_path_factory.mktemp("model") / "convolution.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), path)
    return path


def _shards(cache: Path) -> int:
    return sum(1 for _ in cache.rglob("*.npy"))


def _start(images: Path, cache: Path, runner: str, delay_ms: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.unit.features.killed_pass", str(images), str(cache), runner, str(delay_ms)]
    return subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)


def _kill_after(images: Path, cache: Path, runner: str, shards: int, later_s: float) -> None:
    """SIGKILL, when the cache holds so many shards and a moment has passed: somewhere among the blocks that follow."""
    with _start(images, cache, runner, delay_ms=30) as process:
        deadline = time.monotonic() + 30
        while _shards(cache) < shards and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.002)
        time.sleep(later_s)
        process.kill()
        process.wait(30)
        assert process.returncode == -signal.SIGKILL, "the pass was over before it was killed"


@pytest.mark.parametrize("runner", ["composition", "onnxruntime"])
def test_a_killed_pass_goes_on_to_the_same_bits(images: Path, convolution: Path, tmp_path: Path, runner: str) -> None:
    model = "composition" if runner == "composition" else str(convolution)
    uninterrupted = digest(passed(images, tmp_path / "whole", model))
    cache = tmp_path / "killed"
    for shards, later_s in [(0, 0.15), (1, 0.0), (4, 0.05), (5, 0.11), (8, 0.02)]:
        _kill_after(images, cache, model, shards, later_s)
    left = _shards(cache)
    assert 8 <= left < _most_shards()
    with _start(images, cache, model, 0) as last:
        assert last.stdout is not None
        assert last.stdout.read().strip() == uninterrupted
        assert last.wait(60) == 0
    assert _shards(cache) > left
    assert digest(passed(images, cache, model)) == uninterrupted  # and from the cache alone
    assert FeatureCache(cache / "0").rows == COUNT - 3 - 5  # what was there was never written again


def _most_shards() -> int:
    """Of two blocks each, for each version; one more for the end."""
    return 3 * (COUNT // (2 * BATCH) + 1)


def test_the_test_would_notice_another_batch(images: Path, tmp_path: Path) -> None:
    """The same image in a smaller block has other features, so a pass that filled gaps image by image would differ."""
    whole = passed(images, tmp_path / "a", "composition")
    fewer = tmp_path / "fewer"
    shutil.copytree(images, fewer)
    (fewer / "02.png").unlink()
    other = passed(fewer, tmp_path / "b", "composition")
    assert files_in(fewer)[0].path.name == files_in(images)[0].path.name
    assert (whole.features[0] != other.features[0]).any()

"""edgetune parity on two ONNX files that cannot be compared: one clear line each, and the right exit code."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.parity_refusals import NORMALISATION, check_refused, edgetune, tree

pytestmark = pytest.mark.e2e


@dataclass(frozen=True)
class Room:
    path: Path
    photos: Path

    def file(self, name: str, content: str | bytes) -> Path:
        path = self.path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path


Words = tuple[str | Path, ...]
Case = tuple[Callable[[Room], Words], str, int]


@pytest.fixture
def room(tmp_path: Path, photos: Path) -> Room:
    return Room(tmp_path, photos)


def model(*, width: int = 8, inputs: str = "input", layout: str = "NCHW") -> onnx.ModelProto:
    """Pixels of `width` through one convolution."""
    shape: list[int | str] = ["N", 3, width, width] if layout == "NCHW" else ["N", 5]
    weights = np.random.default_rng(0).normal(size=(4, 3, 3, 3)).astype(np.float32)
    nodes = [
        helper.make_node("Conv", [inputs, "w"], ["c"], kernel_shape=[3, 3]),
        helper.make_node("GlobalAveragePool", ["c"], ["p"]),
        helper.make_node("Flatten", ["p"], ["scores"]),
    ]
    if layout != "NCHW":
        nodes = [helper.make_node("Relu", [inputs], ["scores"])]
    graph = helper.make_graph(
        nodes, "small", [helper.make_tensor_value_info(inputs, TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["N", 4 if layout == "NCHW" else 5])],
        [numpy_helper.from_array(weights, "w")] if layout == "NCHW" else [],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def _pair(room: Room, second: bytes, *options: str | Path) -> Words:
    first = room.file("a.onnx", model().SerializeToString())
    return (first, room.file("b.onnx", second), *(options or ("--data", room.photos, *NORMALISATION)))


def _npz(room: Room, **arrays: np.ndarray) -> Words:
    np.savez(room.path / "data.npz", **arrays)  # type: ignore[arg-type]
    return _pair(room, model().SerializeToString(), "--data", room.path / "data.npz")


def _other_outputs() -> bytes:
    changed = model()
    changed.graph.node[2].op_type = "Identity"
    del changed.graph.output[0].type.tensor_type.shape.dim[:]
    for size in ("N", 4, 1, 1):
        dimension = changed.graph.output[0].type.tensor_type.shape.dim.add()
        setattr(dimension, "dim_param" if size == "N" else "dim_value", size)
    return bytes(changed.SerializeToString())


def _with_nan() -> bytes:
    changed = model()
    weights = numpy_helper.to_array(changed.graph.initializer[0]).copy()
    weights[0] = np.nan
    changed.graph.initializer[0].CopyFrom(numpy_helper.from_array(weights, "w"))
    return bytes(changed.SerializeToString())


MODELS: dict[str, Case] = {
    "missing": (lambda room: (room.path / "a.onnx", room.path / "b.onnx", "--data", room.photos), "a.onnx", 1),
    "text": (lambda room: _pair(room, b"this is a letter"), "b.onnx", 1),
    "empty": (lambda room: _pair(room, b""), "b.onnx", 1),
    "truncated": (lambda room: _pair(room, model().SerializeToString()[:-200]), "b.onnx", 1),
    "another shape": (lambda room: _pair(room, model(width=9).SerializeToString()), "other sizes", 1),
    "no images in it": (lambda room: _pair(room, model(layout="NF").SerializeToString()), "b.onnx", 1),
    "another output": (lambda room: _pair(room, _other_outputs()), "output", 1),
    "no data": (lambda room: _pair(room, model().SerializeToString(), *NORMALISATION), "compared on --data", 2),
    "options of a bundle": (
        lambda room: _pair(room, model().SerializeToString(), "--data", room.photos, "--require"),
        "--require is for a BUNDLE only", 2,
    ),
    "wrong keys": (lambda room: _npz(room, other=np.zeros((2, 3, 8, 8), np.float32)), "other", 1),
    "wrong shape": (lambda room: _npz(room, input=np.zeros((2, 3, 8, 9), np.float32)), "input", 1),
    "no rows": (lambda room: _npz(room, input=np.zeros((0, 3, 8, 8), np.float32)), "data.npz", 1),
    "no archive": (
        lambda room: _pair(room, model().SerializeToString(), "--data", room.file("data.npz", "numbers")),
        "data.npz", 1,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_refused_in_one_line(name: str, room: Room) -> None:
    words, said, exit_code = MODELS[name]
    given = words(room)
    before = tree(room.path)
    check_refused(edgetune(*given), said, exit_code)
    assert tree(room.path) == before


def test_a_model_with_nan_fails_and_does_not_crash(room: Room) -> None:
    done = edgetune(*_pair(room, _with_nan()))
    assert done.returncode in {1, 3}, done.stderr
    assert "Traceback" not in done.stderr
    assert "NaN" in done.stdout + done.stderr
